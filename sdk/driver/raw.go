package driver

import "github.com/virtplug/virtplug/sdk/virtio"

// Raw gives a hostile driver access to every field of the ring; nothing is checked or kept consistent.
type Raw struct{ q *Queue }

// Raw returns the ring's fields.
func (q *Queue) Raw() Raw { return Raw{q} }

// Desc is descriptor i's 16 bytes, aliasing guest memory.
func (r Raw) Desc(i uint16) []byte {
	return r.q.descB[int(i)*virtio.DescSize : (int(i)+1)*virtio.DescSize]
}

// SetAvail writes entry slot of the available ring.
func (r Raw) SetAvail(slot, head uint16) { r.q.availRing.Store16(int(slot&r.q.mask), head) }

// SetAvailIdx writes the available index.
func (r Raw) SetAvailIdx(idx uint16) { r.q.availHead.Store(idx); r.q.availIdx = idx }

// AvailIdx is the driver's own idea of the available index.
func (r Raw) AvailIdx() uint16 { return r.q.availIdx }

// UsedIdx reads the used index.
func (r Raw) UsedIdx() uint16 { return uint16(r.q.usedHead.Load() >> 16) }

// SetUsedIdx writes the used index, which only the device may.
func (r Raw) SetUsedIdx(idx uint16) { r.q.usedHead.Store(uint32(idx) << 16) }

// SetUsedEvent writes used_event.
func (r Raw) SetUsedEvent(v uint16) { r.q.usedEvent.Store(v) }
