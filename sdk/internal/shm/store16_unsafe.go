//go:build !race

package shm

import "unsafe"

// Store16 writes the 16-bit entry i, plainly; publish it by a U16.Store or Word.Store.
func (r Ring) Store16(i int, v uint16) {
	// SAFETY: i is bounded by the caller, the array is 2-aligned.
	*(*uint16)(unsafe.Add(r.base, 2*i)) = v
}
