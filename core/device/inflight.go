package device

import (
	"encoding/binary"
	"fmt"
	"os"
)

// Layout of a split queue's in-flight region, that of vhost-user ("Inflight I/O tracking"). Native byte order.
const (
	inflightHeader  = 16 // u64 features, u16 version, u16 desc_num, u16 last_batch_head, u16 used_idx
	inflightEntry   = 16 // u8 inflight, 5 bytes unused, u16 next, u64 counter
	inflightVersion = 1

	offVersion   = 8
	offDescNum   = 10
	offLastBatch = 12
	offUsedIdx   = 14
	offNext      = 6

	// offUsedRingIdx is where the used ring's index is (2.7.8).
	offUsedRingIdx = 2
)

// newInflight gives q a fresh in-flight region: nothing in flight, in step with the used ring.
func (q *queue) newInflight(table []region) error {
	used, err := q.usedIndex(table)
	if err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	f, err := makeInflight(q.size, used)
	if err != nil {
		return fmt.Errorf("queue %d: in-flight region: %w", q.index, err)
	}
	q.inflight = replace(q.inflight, f)
	return nil
}

// makeInflight creates the region for a queue of size entries as a sealed memfd.
func makeInflight(size, used uint16) (*os.File, error) {
	var head [inflightHeader]byte
	binary.NativeEndian.PutUint16(head[offVersion:], inflightVersion)
	binary.NativeEndian.PutUint16(head[offDescNum:], size)
	binary.NativeEndian.PutUint16(head[offUsedIdx:], used)
	return sealedMemfd("virtplug-inflight", inflightHeader+inflightEntry*int64(size), head[:])
}

// countInflight counts the chains that a dead instance left in flight, given the used ring's index: entries of a last
// batch that was published but not cleared do not count. The region was written by a plugin: nothing in it is trusted.
func countInflight(f *os.File, size, used uint16) (int, error) {
	b := make([]byte, inflightHeader+inflightEntry*int(size))
	if _, err := f.ReadAt(b, 0); err != nil {
		return 0, fmt.Errorf("in-flight region: %w", err)
	}
	entry := func(i uint16) []byte { return b[inflightHeader+inflightEntry*int(i):][:inflightEntry] }
	batch := used - binary.NativeEndian.Uint16(b[offUsedIdx:])
	head := binary.NativeEndian.Uint16(b[offLastBatch:])
	for ; batch > 0 && batch <= size && head < size; batch-- {
		e := entry(head)
		e[0] = 0
		head = binary.NativeEndian.Uint16(e[offNext:])
	}
	n := 0
	for i := range size {
		if entry(i)[0] == 1 {
			n++
		}
	}
	return n, nil
}

// usedIndex reads the used ring's index through the memory's file, so that the launcher maps no guest memory.
func (q *queue) usedIndex(table []region) (uint16, error) {
	at := q.device + offUsedRingIdx
	r := within(table, at, 2)
	if r == nil {
		return 0, fmt.Errorf("used ring %v: not in guest memory", q.device)
	}
	var b [2]byte
	if _, err := r.file.ReadAt(b[:], r.offset+int64(at-r.gpa)); err != nil { //nolint:gosec // inside the region
		return 0, fmt.Errorf("read used ring %v: %w", q.device, err)
	}
	return binary.LittleEndian.Uint16(b[:]), nil
}
