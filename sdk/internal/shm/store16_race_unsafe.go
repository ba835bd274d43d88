//go:build race

package shm

import "unsafe"

// Store16 writes the 16-bit entry i. Load16 reads two entries at once and drops one; the race detector would take a plain
// store to the dropped one for a race.
func (r Ring) Store16(i int, v uint16) {
	// SAFETY: i is bounded by the caller, the array is 2-aligned; see U16At for the word's bounds.
	p := unsafe.Add(r.base, 2*i)
	half := uintptr(p) & 2
	U16{(*uint32)(unsafe.Add(p, -int(half))), uint8(8 * half)}.Store(v)
}
