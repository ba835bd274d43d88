package driver

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/internal/shm"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Config is how a driver sets up a queue.
type Config struct {
	Size     uint16
	Features virtio.Features
	// IndirectEntries is the length of each head's indirect table, if FIndirectDesc is negotiated; 0: 64.
	IndirectEntries int
}

// Queue is the driver side of one virtqueue. One goroutine at a time.
type Queue struct {
	cfg                Config
	mask               uint16
	mem                *guestmem.Memory
	desc, avail, used  guestmem.GPA
	descB              []byte
	availFlags         shm.U16
	availHead          shm.U16 // idx
	availRing          shm.Ring
	usedEvent          shm.U16
	usedHead           shm.Word
	usedRing           shm.Ring
	availEvent         shm.U16
	next               []uint16 // free list
	freeHead           uint16
	freeN              int
	availIdx, kickedAt uint16
	usedSeen           uint16
	held               []uint16 // descriptors a head holds
	tables             []Buffer
	callsOff           bool
}

// New lays a queue out in the arena. All areas are zero.
func New(a *Arena, c Config) (*Queue, error) {
	var errs [3]error
	var areas [3]guestmem.GPA
	areas[0], errs[0] = a.Alloc(virtio.DescTableBytes(c.Size), guestmem.PageSize)
	areas[1], errs[1] = a.Alloc(virtio.AvailRingBytes(c.Size), virtio.AvailAlign)
	areas[2], errs[2] = a.Alloc(virtio.UsedRingBytes(c.Size), guestmem.PageSize)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for i, n := range [3]int{virtio.DescTableBytes(c.Size), virtio.AvailRingBytes(c.Size), virtio.UsedRingBytes(c.Size)} {
		b, err := a.mem.Slice(areas[i], n)
		if err != nil {
			return nil, fmt.Errorf("driver queue: %w", err)
		}
		clear(b)
	}
	return NewAt(a, a.mem, c, areas[0], areas[1], areas[2])
}

// NewAt takes a queue whose areas somebody else has laid out in mem and zeroed, as legacy transports do; a is only for
// indirect tables and need not hold the areas. Nothing is written before the first Add: the device may be running already.
func NewAt(a *Arena, mem *guestmem.Memory, c Config, desc, avail, used guestmem.GPA) (*Queue, error) {
	n := int(c.Size)
	q := &Queue{
		cfg: c, mask: c.Size - 1, mem: mem, desc: desc, avail: avail, used: used,
		next: make([]uint16, n), held: make([]uint16, n), freeN: n,
	}
	if err := q.attach(); err != nil {
		return nil, fmt.Errorf("driver queue: %w", err)
	}
	for i := range q.next {
		q.next[i] = uint16(i + 1)
	}
	if c.Features.Has(virtio.FIndirectDesc) {
		return q, q.makeTables(a)
	}
	return q, nil
}

func (q *Queue) attach() error {
	n := int(q.cfg.Size)
	var errs [10]error
	var availB, usedB []byte
	q.descB, errs[0] = q.mem.Slice(q.desc, virtio.DescTableBytes(q.cfg.Size))
	availB, errs[1] = q.mem.Slice(q.avail, virtio.AvailRingBytes(q.cfg.Size))
	usedB, errs[2] = q.mem.Slice(q.used, virtio.UsedRingBytes(q.cfg.Size))
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	q.availFlags, errs[3] = shm.U16At(availB, 0)
	q.availHead, errs[4] = shm.U16At(availB, 2)
	q.availRing, errs[5] = shm.RingAt(availB, 4, 2*n, 2)
	q.usedEvent, errs[6] = shm.U16At(availB, 4+2*n)
	q.usedHead, errs[7] = shm.WordAt(usedB, 0)
	q.usedRing, errs[8] = shm.RingAt(usedB, 4, 8*n, 4)
	q.availEvent, errs[9] = shm.U16At(usedB, 4+8*n)
	return errors.Join(errs[:]...)
}

func (q *Queue) makeTables(a *Arena) error {
	if q.cfg.IndirectEntries == 0 {
		q.cfg.IndirectEntries = 64
	}
	q.tables = make([]Buffer, q.cfg.Size)
	for i := range q.tables {
		b, err := a.Buffer(q.cfg.IndirectEntries * virtio.DescSize)
		if err != nil {
			return err
		}
		q.tables[i] = b
	}
	return nil
}

// Areas are the addresses of descriptor table, available ring and used ring.
func (q *Queue) Areas() (desc, avail, used guestmem.GPA) { return q.desc, q.avail, q.used }

// Size is the number of entries.
func (q *Queue) Size() uint16 { return q.cfg.Size }

// Free is how many descriptors are free.
func (q *Queue) Free() int { return q.freeN }

// Add puts a chain into the ring without publishing it; ok is false if it does not fit. With indirect descriptors
// negotiated, chains of two or more buffers become a table. Allocates nothing.
func (q *Queue) Add(readable, writable []Buffer) (head uint16, ok bool) {
	n := len(readable) + len(writable)
	if n == 0 || q.freeN == 0 {
		return 0, false
	}
	if q.tables != nil && n > 1 && n <= q.cfg.IndirectEntries {
		return q.addIndirect(readable, writable), true
	}
	if n > q.freeN {
		return 0, false
	}
	head = q.freeHead
	at := head
	for i := range n {
		last := i == n-1
		next := q.next[at]
		putDesc(q.descB, int(at), bufferAt(readable, writable, i), i >= len(readable), !last, next)
		if !last {
			at = next
		} else {
			q.freeHead = next
		}
	}
	q.freeN -= n
	q.held[head] = uint16(n) //nolint:gosec // G115: at most Size
	q.push(head)
	return head, true
}

func (q *Queue) addIndirect(readable, writable []Buffer) (head uint16) {
	head = q.freeHead
	q.freeHead = q.next[head]
	q.freeN--
	q.held[head] = 1
	t := q.tables[head]
	table, err := q.mem.Slice(t.Addr, int(t.Len))
	if err != nil {
		panic("BUG: " + err.Error()) // tables come from the arena
	}
	n := len(readable) + len(writable)
	for i := range n {
		putDesc(table, i, bufferAt(readable, writable, i), i >= len(readable), i < n-1, uint16(i+1))
	}
	PutDesc(q.descB[int(head)*virtio.DescSize:], t.Addr, uint32(n*virtio.DescSize), virtio.DescFIndirect, 0) //nolint:gosec // G115: small
	q.push(head)
	return head
}

func bufferAt(readable, writable []Buffer, i int) Buffer {
	if i < len(readable) {
		return readable[i]
	}
	return writable[i-len(readable)]
}

func putDesc(table []byte, i int, b Buffer, write, more bool, next uint16) {
	var flags uint16
	if write {
		flags |= virtio.DescFWrite
	}
	if more {
		flags |= virtio.DescFNext
	}
	PutDesc(table[i*virtio.DescSize:], b.Addr, b.Len, flags, next)
}

// PutDesc writes one descriptor's 16 bytes (2.7.5).
func PutDesc(b []byte, addr guestmem.GPA, n uint32, flags, next uint16) {
	binary.LittleEndian.PutUint64(b, uint64(addr))
	binary.LittleEndian.PutUint64(b[8:], uint64(n)|uint64(flags)<<32|uint64(next)<<48)
}

func (q *Queue) push(head uint16) {
	q.availRing.Store16(int(q.availIdx&q.mask), head)
	q.availIdx++
}

// Publish makes what Add put in visible to the device and tells whether it wants a kick (2.7.13, 2.7.10).
func (q *Queue) Publish() (kick bool) {
	q.availHead.Store(q.availIdx)
	if q.cfg.Features.Has(virtio.FEventIdx) {
		event, old := q.availEvent.Load(), q.kickedAt
		q.kickedAt = q.availIdx
		return q.availIdx-event-1 < q.availIdx-old
	}
	return q.usedHead.Load()&virtio.UsedFNoNotify == 0
}

// Used takes the next used element; ok is false if there is none. The head's descriptors are free again.
func (q *Queue) Used() (head uint16, written uint32, ok bool) {
	if uint16(q.usedHead.Load()>>16) == q.usedSeen {
		return 0, 0, false
	}
	slot := int(q.usedSeen & q.mask)
	q.usedSeen++
	id := q.usedRing.Load32(2 * slot)
	written = q.usedRing.Load32(2*slot + 1)
	head = uint16(id) & q.mask //nolint:gosec // G115: masked
	if q.held[head] == 0 || id > uint32(q.mask) {
		panic(fmt.Sprintf("BUG: the device used head %d, which is not in flight", id))
	}
	q.release(head)
	return head, written, true
}

func (q *Queue) release(head uint16) {
	last := head
	for range q.held[head] - 1 {
		last = q.next[last]
	}
	q.next[last] = q.freeHead
	q.freeHead = head
	q.freeN += int(q.held[head])
	q.held[head] = 0
}

// HasUsed tells whether Used would return something.
func (q *Queue) HasUsed() bool {
	return uint16(q.usedHead.Load()>>16) != q.usedSeen
}

// EnableCalls asks for a call at the next used buffer and tells whether one is there already: then do not sleep.
func (q *Queue) EnableCalls() (more bool) {
	if q.cfg.Features.Has(virtio.FEventIdx) {
		q.usedEvent.Store(q.usedSeen)
	} else if q.callsOff {
		q.availFlags.Store(0)
		q.callsOff = false
	}
	return q.HasUsed()
}

// CallAfter asks for a call only when n more buffers are used (event indices; otherwise as EnableCalls).
func (q *Queue) CallAfter(n uint16) (more bool) {
	if !q.cfg.Features.Has(virtio.FEventIdx) {
		return q.EnableCalls()
	}
	q.usedEvent.Store(q.usedSeen + n - 1)
	return uint16(q.usedHead.Load()>>16)-q.usedSeen >= n
}

// DisableCalls asks for none; advisory, and nothing with event indices.
func (q *Queue) DisableCalls() {
	if !q.cfg.Features.Has(virtio.FEventIdx) && !q.callsOff {
		q.availFlags.Store(virtio.AvailFNoInterrupt)
		q.callsOff = true
	}
}
