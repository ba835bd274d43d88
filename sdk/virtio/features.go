package virtio

import (
	"fmt"
	"math/bits"
	"strings"
)

// Features is a set of feature bits (2.2): bit n of the specification is 1<<n.
type Features uint64

// Feature bits that every device type shares (section 6).
const (
	// FIndirectDesc: descriptors may point to a table of descriptors (2.7.5.3).
	FIndirectDesc Features = 1 << 28
	// FEventIdx: used_event and avail_event steer notifications (2.7.7, 2.7.10).
	FEventIdx Features = 1 << 29
	// FVersion1: the device follows VIRTIO 1.0 or later; absent: legacy.
	FVersion1 Features = 1 << 32
	// FAccessPlatform: addresses need translation by the platform (an IOMMU).
	FAccessPlatform Features = 1 << 33
	// FRingPacked: packed virtqueues (2.8).
	FRingPacked Features = 1 << 34
	// FInOrder: the device uses buffers in the order in which they were made available.
	FInOrder Features = 1 << 35
	// FOrderPlatform: memory accesses are ordered as by the platform.
	FOrderPlatform Features = 1 << 36
	// FRingReset: one queue can be reset alone (2.6.1).
	FRingReset Features = 1 << 40
)

// RingFeatures are the bits that the virtqueue implementation decides, not the device type.
const RingFeatures = FIndirectDesc | FEventIdx | FVersion1 | FRingPacked | FInOrder | FRingReset

// Has tells whether all bits of f2 are set.
func (f Features) Has(f2 Features) bool { return f&f2 == f2 }

// String lists the bits by number, lowest first: "{1,28,32}".
func (f Features) String() string {
	var b strings.Builder
	b.WriteByte('{')
	for i, v := 0, uint64(f); v != 0; i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		n := bits.TrailingZeros64(v)
		fmt.Fprint(&b, n)
		v &^= 1 << n
	}
	b.WriteByte('}')
	return b.String()
}
