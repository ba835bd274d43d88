package shm

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Word is a 32-bit little-endian word in shared memory, at a 4-aligned address.
type Word struct{ p *uint32 }

// U16 is a 16-bit little-endian field in shared memory, at a 2-aligned address.
type U16 struct {
	p     *uint32
	shift uint8
}

// WordAt returns the word at b[off:off+4]. It fails unless the range lies in b and is 4-aligned in memory.
func WordAt(b []byte, off int) (Word, error) {
	if off < 0 || off > len(b)-4 {
		return Word{}, fmt.Errorf("word at %d: outside %d bytes", off, len(b))
	}
	// SAFETY: off+4 <= len(b), so the pointer is inside b; alignment is checked before it is used as *uint32. The result
	// keeps heap memory alive; mapped memory must outlive it (guestmem.Memory.Close's rule).
	p := unsafe.Pointer(&b[off])
	if uintptr(p)%4 != 0 {
		return Word{}, fmt.Errorf("word at %d: not 4-aligned", off)
	}
	return Word{(*uint32)(p)}, nil
}

// U16At returns the field at b[off:off+2]. It fails unless the range lies in b and is 2-aligned in memory.
func U16At(b []byte, off int) (U16, error) {
	if off < 0 || off > len(b)-2 {
		return U16{}, fmt.Errorf("field at %d: outside %d bytes", off, len(b))
	}
	// SAFETY: as above. The aligned word that holds a 2-aligned field starts at most 2 bytes before it and ends at most 2
	// after it, in the same page; guest memory is whole pages, and heap rings are allocated in whole pages too.
	p := unsafe.Pointer(&b[off])
	switch uintptr(p) % 4 {
	case 0:
		return U16{(*uint32)(p), 0}, nil
	case 2:
		return U16{(*uint32)(unsafe.Add(p, -2)), 16}, nil
	}
	return U16{}, fmt.Errorf("field at %d: not 2-aligned", off)
}

// Load reads the word.
func (w Word) Load() uint32 { return atomic.LoadUint32(w.p) }

// Store writes the word.
func (w Word) Store(v uint32) { atomic.StoreUint32(w.p, v) }

// Load reads the field.
func (f U16) Load() uint16 { return uint16(atomic.LoadUint32(f.p) >> f.shift) } //nolint:gosec // G115: the field is the low or high half

// Store writes the field and leaves the other half of its word alone, also while somebody else changes that.
func (f U16) Store(v uint16) {
	for {
		old := atomic.LoadUint32(f.p)
		if atomic.CompareAndSwapUint32(f.p, old, old&^(0xffff<<f.shift)|uint32(v)<<f.shift) {
			return
		}
	}
}

// Ring is an array of 16-bit or 64-bit entries in shared memory whose bounds were checked once.
type Ring struct{ base unsafe.Pointer }

// RingAt returns the array of n bytes that starts at b[off]. It fails unless it lies in b and is align-aligned in memory.
func RingAt(b []byte, off, n, align int) (Ring, error) {
	if off < 0 || n <= 0 || off > len(b)-n {
		return Ring{}, fmt.Errorf("array at %d+%d: outside %d bytes", off, n, len(b))
	}
	// SAFETY: the whole array lies in b.
	p := unsafe.Pointer(&b[off])
	if uintptr(p)%uintptr(align) != 0 {
		return Ring{}, fmt.Errorf("array at %d: not %d-aligned", off, align)
	}
	return Ring{p}, nil
}

// Load16 reads the 16-bit entry i. The caller has i below the number of entries that RingAt checked.
func (r Ring) Load16(i uint16) uint16 {
	// SAFETY: i is masked by the queue size; see U16At for the word's bounds.
	p := unsafe.Add(r.base, 2*int(i))
	half := int(uintptr(p) & 2)
	return uint16(atomic.LoadUint32((*uint32)(unsafe.Add(p, -half))) >> (8 * half)) //nolint:gosec // G115: the entry is one half of the word
}

// Load64 reads the 64-bit entry i of an 8-aligned array.
func (r Ring) Load64(i int) uint64 {
	// SAFETY: i is bounded by the caller, the array is 8-aligned.
	return atomic.LoadUint64((*uint64)(unsafe.Add(r.base, 8*i)))
}

// Store64 writes the 64-bit entry i of an 8-aligned array in one piece. A plain store: order with other stores of this
// process is the program's, which is all that in-flight tracking needs (it is read after this process died).
func (r Ring) Store64(i int, v uint64) {
	// SAFETY: as Load64.
	*(*uint64)(unsafe.Add(r.base, 8*i)) = v
}

// Store32 writes the 32-bit entry i of a 4-aligned array, plainly; publish it by a Word.Store.
func (r Ring) Store32(i int, v uint32) {
	// SAFETY: i is bounded by the caller, the array is 4-aligned.
	*(*uint32)(unsafe.Add(r.base, 4*i)) = v
}

// Load32 reads the 32-bit entry i of a 4-aligned array.
func (r Ring) Load32(i int) uint32 {
	// SAFETY: i is bounded by the caller, the array is 4-aligned.
	return *(*uint32)(unsafe.Add(r.base, 4*i))
}

// Holds tells whether the address addr lies in b.
func Holds(b []byte, addr uintptr) bool {
	// SAFETY: the address is compared, never followed.
	return len(b) > 0 && addr-uintptr(unsafe.Pointer(&b[0])) < uintptr(len(b))
}
