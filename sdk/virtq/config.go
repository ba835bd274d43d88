package virtq

import (
	"fmt"
	"math/bits"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/internal/shm"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Config is what a queue is activated with.
type Config struct {
	// Index is the queue's number, for messages.
	Index int
	// Size is the number of entries: a power of two, at most 32768.
	Size uint16
	// The three areas (2.7): descriptor table, available ring, used ring. Aligned to 16, 2 and 4; each in one region.
	DescArea, DriverArea, DeviceArea guestmem.GPA
	// Features are the negotiated ones; FIndirectDesc and FEventIdx matter here.
	Features virtio.Features
	// NextAvail is the next available-ring entry to take, unless Recover.
	NextAvail uint16
	// Inflight is the in-flight region, at least InflightBytes(Size) long and 8-aligned; nil: no tracking.
	Inflight []byte
	// Recover: Inflight holds what a former instance left. Chains in flight are popped again first, in their order.
	Recover bool
}

// Activate validates c against mem and makes the queue. Afterwards ring accesses cannot fail.
// mem must stay open until the queue is no longer used. Errors name the area and what is wrong with it.
func Activate(mem *guestmem.Memory, c Config) (*Queue, error) {
	fail := func(what string, err error) (*Queue, error) {
		return nil, fmt.Errorf("activate queue %d: %s: %w", c.Index, what, err)
	}
	if c.Size == 0 || c.Size > virtio.QueueSizeMax || bits.OnesCount16(c.Size) != 1 {
		return fail("size", fmt.Errorf("%d is not a power of two up to %d", c.Size, virtio.QueueSizeMax))
	}
	desc, err := area(mem, c.DescArea, virtio.DescTableBytes(c.Size), virtio.DescAlign)
	if err != nil {
		return fail("descriptor table", err)
	}
	avail, err := area(mem, c.DriverArea, virtio.AvailRingBytes(c.Size), virtio.AvailAlign)
	if err != nil {
		return fail("available ring", err)
	}
	used, err := area(mem, c.DeviceArea, virtio.UsedRingBytes(c.Size), virtio.UsedAlign)
	if err != nil {
		return fail("used ring", err)
	}
	q := &Queue{
		mem: mem, index: c.Index, size: c.Size, mask: c.Size - 1,
		indirect: c.Features.Has(virtio.FIndirectDesc), eventIdx: c.Features.Has(virtio.FEventIdx),
		desc: desc, chains: make([]Chain, c.Size), staged: make([]uint16, 0, c.Size),
	}
	for i := range q.chains {
		q.chains[i].q = q
		q.chains[i].head = uint16(i)
	}
	n := int(c.Size)
	var errs [6]error
	q.availFlags, errs[0] = shm.U16At(avail, 0)
	q.availIdx, errs[1] = shm.U16At(avail, 2)
	q.availRing, errs[2] = shm.RingAt(avail, 4, 2*n, virtio.AvailAlign)
	q.usedEvent, errs[3] = shm.U16At(avail, 4+2*n)
	q.usedHead, errs[4] = shm.WordAt(used, 0)
	q.usedRing, errs[5] = shm.RingAt(used, 4, 8*n, virtio.UsedAlign)
	for _, err := range errs {
		if err != nil {
			return fail("ring", err)
		}
	}
	if q.availEvent, err = shm.U16At(used, 4+8*n); err != nil {
		return fail("used ring", err)
	}
	head := q.usedHead.Load()
	q.usedIdx = uint16(head >> 16)
	q.kicksOff = !q.eventIdx && head&virtio.UsedFNoNotify != 0 // left by a former instance: EnableKicks must clear it
	q.nextAvail, q.availSeen = c.NextAvail, c.NextAvail
	if c.Inflight != nil {
		if err := q.openInflight(c.Inflight, c.Recover); err != nil {
			return fail("in-flight region", err)
		}
	}
	return q, nil
}

func area(mem *guestmem.Memory, a guestmem.GPA, n int, align guestmem.GPA) ([]byte, error) {
	if a%align != 0 {
		return nil, fmt.Errorf("%v is not a multiple of %d", a, align)
	}
	return mem.Slice(a, n)
}
