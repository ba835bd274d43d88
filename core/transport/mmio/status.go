package mmio

import (
	"context"
	"errors"
	"fmt"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// errFeatures: the driver accepted what was not offered.
var errFeatures = errors.New("features were not offered")

// writeStatus is a write to Status (2.1, 3.1.1). The caller holds op.
func (r *Registers) writeStatus(ctx context.Context, v uint32) {
	switch {
	case v == 0:
		r.reset(ctx)
	case v > 0xff:
		r.complain("driver's write ignored: the device status has 8 bits", "value", v)
	default:
		r.advance(ctx, virtio.Status(v)&driverStatus)
	}
}

// reset is the driver's reset (2.4). Until it is complete Status reads as before. A device that cannot even reset was closed:
// it does nothing any more, which is as good.
func (r *Registers) reset(ctx context.Context) {
	err := r.dev.Reset(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		r.complain("reset", "error", err)
	}
	r.mu.Lock()
	r.forget()
	r.mu.Unlock()
	r.tell(false)
}

// advance sets status bits. None is ever cleared but by a reset, as a driver must not (2.1.1).
func (r *Registers) advance(ctx context.Context, bits virtio.Status) {
	r.mu.Lock()
	before, negotiated := r.status, r.negotiated
	r.mu.Unlock()
	bits &^= before
	var refused error
	if bits&(virtio.StatusFeaturesOK|virtio.StatusDriverOK) != 0 && !negotiated {
		if refused = r.negotiate(ctx); refused != nil {
			if ctx.Err() != nil {
				return // the machine has ended
			}
			r.complain("features refused", "error", refused)
			bits &^= virtio.StatusFeaturesOK
		}
	}
	if ctx.Err() != nil {
		return
	}
	start := bits.Has(virtio.StatusDriverOK)
	if refused != nil {
		bits &^= virtio.StatusDriverOK
	}
	r.mu.Lock()
	r.status |= bits
	if r.status.Has(virtio.StatusDriverOK) && r.unheard {
		r.unheard, r.interrupts = false, r.interrupts|InterruptConfig
	}
	now := r.status
	r.dev.SetStatus(now)
	r.mu.Unlock()
	switch {
	case start && refused != nil:
		r.fail("DRIVER_OK without features that the device takes", refused)
	case start:
		r.start(ctx, now)
	default:
		r.tell(false)
	}
}

// negotiate tells the device the driver's features.
func (r *Registers) negotiate(ctx context.Context) error {
	r.mu.Lock()
	f := r.driverFeatures
	r.mu.Unlock()
	if extra := f &^ r.offered(); extra != 0 {
		return fmt.Errorf("%w: bits %v", errFeatures, extra)
	}
	if err := r.dev.SetFeatures(ctx, f); err != nil {
		return err
	}
	r.mu.Lock()
	r.driverFeatures, r.negotiated = f, true
	r.mu.Unlock()
	return nil
}

// start is DRIVER_OK: the device serves every queue that is ready. The caller holds op.
func (r *Registers) start(ctx context.Context, now virtio.Status) {
	r.tell(false) // InterruptStatus first: a queue may interrupt before it is known to have started
	if now.Has(virtio.StatusFailed) {
		return
	}
	r.mu.Lock()
	r.serving = !r.broken && !r.dev.NeedsReset()
	serving := r.serving
	if !serving {
		r.interrupts |= InterruptConfig
	}
	interrupt := r.interrupts&InterruptConfig != 0
	r.mu.Unlock()
	for i := 0; serving && i < len(r.queues) && ctx.Err() == nil; i++ {
		r.mu.Lock()
		ready := r.queues[i].ready
		r.mu.Unlock()
		if ready && !r.startQueue(ctx, i) {
			return
		}
	}
	r.tell(interrupt)
}
