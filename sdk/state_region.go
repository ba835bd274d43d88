package sdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/internal/shm"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// The state region is two slots, each half of the region (rounded down to 8 bytes), written in turn. A slot is
//
//	0 u64 sequence · 8 u32 length · 12 u32 CRC-32C of sequence, length and state · 16 the state
//
// in native byte order. A slot whose sequence is 0 or above stateSequenceMax, whose length does not fit or whose check sum is
// wrong holds nothing; of two that hold something the higher sequence counts.
const (
	stateHeader      = 16
	stateSequenceMax = 1 << 63
	// stateRegionMin and stateRegionMax bound the region that is mapped. Arbitrary: launchers give 64 KiB.
	stateRegionMin = 4096
	stateRegionMax = 1 << 20
)

// crcTable is CRC-32C's (Castagnoli), which processors compute.
var crcTable = crc32.MakeTable(crc32.Castagnoli)

// stateMemory is the memory of a region. Stores reach it in the order of the calls. Its order under the death of this process is
// what tests replace it for.
type stateMemory interface {
	size() int
	// load64 and store64 access an 8-aligned word in one piece.
	load64(off int) uint64
	store64(off int, v uint64)
	read(b []byte, off int)
	write(off int, b []byte)
}

// sharedState is mapped (or heap) memory.
type sharedState []byte

func (m sharedState) size() int { return len(m) }

// word is the word at off, which stateRegion has inside the memory and aligned.
func (m sharedState) word(off int) shm.Word64 {
	w, err := shm.Word64At(m, off)
	if err != nil {
		panic("BUG: state region: " + err.Error())
	}
	return w
}

func (m sharedState) load64(off int) uint64     { return m.word(off).Load() }
func (m sharedState) store64(off int, v uint64) { m.word(off).Store(v) }
func (m sharedState) read(b []byte, off int)    { copy(b, m[off:]) }
func (m sharedState) write(off int, b []byte)   { copy(m[off:], b) }

// stateRegion reads and writes the slots. Not safe for concurrent use.
type stateRegion struct {
	mem stateMemory
	// last is the slot that holds the newest state, -1: none does; sequence is its.
	last     int
	sequence uint64
	head     [stateHeader]byte // of the slot being written; here, so that save allocates nothing
}

func newStateRegion(mem stateMemory) *stateRegion { return &stateRegion{mem: mem, last: -1} }

// slotBytes is the size of a slot.
func (r *stateRegion) slotBytes() int { return r.mem.size() / 2 &^ 7 }

// room is the longest state that fits.
func (r *stateRegion) room() int { return min(r.slotBytes()-stateHeader, MaxStateBytes) }

// slotSum is a slot's check sum.
func slotSum(head, state []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:12], crcTable), crcTable, state)
}

// save makes b the newest state. A process that is killed in it, at any instruction, leaves the former state or b: the other
// slot is not touched, and this one holds nothing from the first store to the last.
func (r *stateRegion) save(b []byte) {
	slot := 0
	if r.last == 0 {
		slot = 1
	}
	at := slot * r.slotBytes()
	next := r.sequence + 1
	head := r.head[:]
	binary.NativeEndian.PutUint64(head, next)
	binary.NativeEndian.PutUint32(head[8:], uint32(len(b))) //nolint:gosec // G115: at most room
	binary.NativeEndian.PutUint32(head[12:], slotSum(head, b))
	r.mem.store64(at, 0)
	r.mem.write(at+stateHeader, b)
	r.mem.store64(at+8, binary.NativeEndian.Uint64(head[8:]))
	r.mem.store64(at, next)
	r.last, r.sequence = slot, next
}

// load returns a copy of the newest state, nil if there is none, and takes up from there. err tells of slots that hold what is no
// state, in words for a log; the other slot may hold one.
func (r *stateRegion) load() (state []byte, err error) {
	r.last, r.sequence = -1, 0
	var errs []error
	for slot := range 2 {
		b, sequence, err := r.slot(slot)
		if err != nil {
			errs = append(errs, fmt.Errorf("slot %d: %w", slot, err))
		}
		if sequence > r.sequence {
			state, r.last, r.sequence = b, slot, sequence
		}
	}
	return state, errors.Join(errs...)
}

// slot reads one slot; sequence 0: it holds nothing. The region's content is nobody's to trust: it is copied, then checked.
func (r *stateRegion) slot(slot int) (state []byte, sequence uint64, err error) {
	at := slot * r.slotBytes()
	sequence = r.mem.load64(at)
	if sequence == 0 {
		return nil, 0, nil
	}
	if sequence > stateSequenceMax {
		return nil, 0, fmt.Errorf("sequence %d: want at most %d", sequence, uint64(stateSequenceMax))
	}
	var head [stateHeader]byte
	binary.NativeEndian.PutUint64(head[:], sequence)
	binary.NativeEndian.PutUint64(head[8:], r.mem.load64(at+8))
	n := binary.NativeEndian.Uint32(head[8:])
	if uint64(n) > uint64(r.room()) { //nolint:gosec // G115: room is positive
		return nil, 0, fmt.Errorf("length %d: want at most %d", n, r.room())
	}
	state = make([]byte, n)
	r.mem.read(state, at+stateHeader)
	if sum := binary.NativeEndian.Uint32(head[12:]); sum != slotSum(head[:], state) {
		return nil, 0, fmt.Errorf("%d bytes: the check sum is wrong", n)
	}
	return state, sequence, nil
}

// clear makes both slots hold nothing.
func (r *stateRegion) clear() {
	r.mem.store64(0, 0)
	r.mem.store64(r.slotBytes(), 0)
	r.last, r.sequence = -1, 0
}

// mapState maps the region behind fd, which it leaves open.
func mapState(fd int) (sharedState, error) {
	const op = "state region"
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", op, os.NewSyscallError("fstat", err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size < stateRegionMin || st.Size > stateRegionMax {
		return nil, fmt.Errorf("%s: %w: %d bytes (mode %#o): want a memfd of %d to %d bytes", op, pluginrpc.ErrInvalid, st.Size, st.Mode, stateRegionMin, stateRegionMax)
	}
	b, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, os.NewSyscallError("mmap", err))
	}
	return b, nil
}
