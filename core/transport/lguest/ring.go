package lguest

import (
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Layout is where the areas of a ring are: the legacy layout of VIRTIO 1.2, 2.7.2, with an alignment of PageSize.
type Layout struct {
	// Size is the number of entries.
	Size uint16
	// Desc, Avail and Used are the descriptor table, the available ring right behind it, and the used ring on the next page.
	Desc, Avail, Used guestmem.GPA
}

// RingLayout lays a ring of size entries out at address at, which is a multiple of PageSize.
func RingLayout(at guestmem.GPA, size uint16) Layout {
	avail := at + guestmem.GPA(virtio.DescTableBytes(size))                                                //nolint:gosec // G115: below 1 MiB
	used := (avail + guestmem.GPA(virtio.AvailRingBytes(size)) + PageSize - 1) &^ guestmem.GPA(PageSize-1) //nolint:gosec // G115: below 1 MiB
	return Layout{Size: size, Desc: at, Avail: avail, Used: used}
}

// layoutOf is the layout of a ring of the page.
func layoutOf(r Ring) Layout { return RingLayout(r.Address(), r.Num) }

// Address is where the ring is.
func (r Ring) Address() guestmem.GPA { return guestmem.GPA(r.PFN) * PageSize }

// Bytes is the ring's length, vring_size(): 10246 for 256 entries.
func (l Layout) Bytes() uint64 {
	return uint64(l.Used-l.Desc) + uint64(virtio.UsedRingBytes(l.Size)) //nolint:gosec // G115: not negative
}

// Pages is how many pages the ring takes: 3 for 256 entries.
func (l Layout) Pages() int {
	return int((l.Bytes() + PageSize - 1) / PageSize) //nolint:gosec // G115: at most 200
}
