package mmio

import (
	"context"
	"slices"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Write is a driver's write of p at offset. It returns when the write has had its effect, which for Status, QueueReady and
// the configuration space may mean that a plugin was asked; reads of other vCPUs go on meanwhile. What the specification
// does not allow is ignored.
func (r *Registers) Write(offset uint64, p []byte) {
	if r.o.Context.Err() != nil {
		return
	}
	switch {
	case offset >= RegConfig:
		r.writeConfig(offset-RegConfig, p)
	case len(p) != 4 || offset%4 != 0:
		r.complain("driver's access ignored: registers are written in aligned words of 32 bits", "offset", offset, "bytes", len(p))
	default:
		r.writeRegister(int(offset), get32(p, 0))
	}
}

func (r *Registers) writeRegister(reg int, v uint32) {
	switch reg {
	case RegQueueNotify:
		r.notify(v)
	case RegStatus:
		r.change(func(ctx context.Context) { r.writeStatus(ctx, v) })
	case RegQueueReady:
		r.mu.Lock()
		i := r.queueSel
		r.mu.Unlock()
		r.change(func(ctx context.Context) { r.writeReady(ctx, i, v) })
	default:
		r.mu.Lock()
		refusal := r.store32(reg, v)
		r.mu.Unlock()
		if refusal != "" {
			r.complain("driver's write ignored: "+refusal, "offset", reg, "value", v)
			return
		}
		r.tell(false)
	}
}

// store32 is a write to a register that only this package looks at. The caller holds mu.
func (r *Registers) store32(reg int, v uint32) (refusal string) {
	switch reg {
	case RegDeviceFeaturesSel:
		r.deviceSel = v
	case RegDriverFeaturesSel:
		r.driverSel = v
	case RegDriverFeatures:
		return r.storeFeatures(v)
	case RegQueueSel:
		r.queueSel = v
	case RegInterruptACK:
		r.interrupts &^= v
	case RegSHMSel:
	case RegQueueNum, RegQueueDescLow, RegQueueDescHigh, RegQueueDriverLow, RegQueueDriverHigh, RegQueueDeviceLow,
		RegQueueDeviceHigh:
		return r.storeQueue(reg, v)
	case RegQueueReset:
		return "VIRTIO_F_RING_RESET was not offered"
	default:
		return "no such writable register"
	}
	return ""
}

func (r *Registers) storeFeatures(v uint32) (refusal string) {
	switch {
	case r.negotiated:
		return "features cannot change after FEATURES_OK"
	case r.driverSel > 1:
		if v != 0 {
			return "there are no such features"
		}
	default:
		shift := 32 * r.driverSel
		r.driverFeatures = r.driverFeatures&^(0xffffffff<<shift) | virtio.Features(v)<<shift
	}
	return ""
}

func (r *Registers) storeQueue(reg int, v uint32) (refusal string) {
	if uint64(r.queueSel) >= uint64(len(r.queues)) {
		return "there is no such queue"
	}
	i := int(r.queueSel)
	q := &r.queues[i]
	if q.ready {
		return "the queue is ready"
	}
	switch reg {
	case RegQueueNum:
		q.size = 0
		if v == 0 || v&(v-1) != 0 || v > uint32(r.dev.QueueSizeMax(i)) {
			return "a queue size is a power of two, at most QueueNumMax"
		}
		q.size = uint16(v) //nolint:gosec // at most QueueNumMax
	case RegQueueDescLow:
		q.desc = low(q.desc, v)
	case RegQueueDescHigh:
		q.desc = high(q.desc, v)
	case RegQueueDriverLow:
		q.driver = low(q.driver, v)
	case RegQueueDriverHigh:
		q.driver = high(q.driver, v)
	case RegQueueDeviceLow:
		q.device = low(q.device, v)
	case RegQueueDeviceHigh:
		q.device = high(q.device, v)
	}
	return ""
}

func low(a guestmem.GPA, v uint32) guestmem.GPA  { return a&^0xffffffff | guestmem.GPA(v) }
func high(a guestmem.GPA, v uint32) guestmem.GPA { return a&0xffffffff | guestmem.GPA(v)<<32 }

// notify is an available buffer notification (4.2.3.3) that no descriptor took.
func (r *Registers) notify(v uint32) {
	r.mu.Lock()
	ok := uint64(v) < uint64(len(r.queues)) && r.queues[v].started
	r.mu.Unlock()
	switch {
	case !ok:
		r.complain("driver's notification ignored: no such queue is running", "queue", v)
	case r.o.Kick != nil:
		r.o.Kick(v)
	}
}

// writeConfig is a write to the configuration space (2.5). Drivers may do that at any time: 5.3 wants it for emerg_wr.
func (r *Registers) writeConfig(offset uint64, p []byte) {
	if n := len(p); offset >= configMax || n > 8 || n == 0 || n&(n-1) != 0 {
		r.complain("driver's access ignored: the configuration space is written in 1, 2, 4 or 8 bytes", "offset", offset, "bytes", n)
		return
	}
	p = slices.Clone(p) // the caller's buffer is its own again if the machine ends
	r.change(func(ctx context.Context) {
		if err := r.dev.WriteConfig(ctx, int(offset), p); err != nil { //nolint:gosec // less than configMax
			r.complain("driver's write to the configuration space ignored", "error", err)
			return
		}
		r.tell(false)
	})
}
