package shm

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Word64 is a 64-bit word in shared memory, in native byte order, at an 8-aligned address.
type Word64 struct{ p *uint64 }

// Word64At returns the word at b[off:off+8]. It fails unless the range lies in b and is 8-aligned in memory.
func Word64At(b []byte, off int) (Word64, error) {
	if off < 0 || off > len(b)-8 {
		return Word64{}, fmt.Errorf("word of 64 bits at %d: outside %d bytes", off, len(b))
	}
	// SAFETY: off+8 <= len(b), so the pointer is inside b; alignment is checked before it is used as *uint64. The result
	// keeps heap memory alive; mapped memory must outlive it, which is the caller's affair.
	p := unsafe.Pointer(&b[off])
	if uintptr(p)%8 != 0 {
		return Word64{}, fmt.Errorf("word of 64 bits at %d: not 8-aligned", off)
	}
	return Word64{(*uint64)(p)}, nil
}

// Load reads the word.
func (w Word64) Load() uint64 { return atomic.LoadUint64(w.p) }

// Store writes the word, in one piece: after what the program stored before it, before what it stores after it.
func (w Word64) Store(v uint64) { atomic.StoreUint64(w.p, v) }
