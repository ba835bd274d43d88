package mmio

import (
	"context"
	"errors"
	"fmt"
)

// writeReady is a write to QueueReady of queue i. The caller holds op.
func (r *Registers) writeReady(ctx context.Context, i, v uint32) {
	if uint64(i) >= uint64(len(r.queues)) || v > 1 {
		r.complain("driver's write ignored: QueueReady", "queue", i, "value", v)
		return
	}
	n := int(i)
	r.mu.Lock()
	q := &r.queues[n]
	was, started, start := q.ready, q.started, r.serving && v == 1
	if v == 1 {
		q.ready = true // its addresses are settled
	}
	r.mu.Unlock()
	switch {
	case was == (v == 1):
		return
	case start:
		if !r.startQueue(ctx, n) {
			return
		}
	case started:
		r.stopQueue(ctx, n)
	}
	r.mu.Lock()
	q.ready = v == 1
	r.mu.Unlock()
	r.tell(false)
}

// errSize: the driver's QueueNum was none.
var errSize = errors.New("QueueNum was not a power of two up to QueueNumMax")

// startQueue has the device serve queue i, which is ready. If it cannot, the device needs a reset. The caller holds op.
func (r *Registers) startQueue(ctx context.Context, i int) bool {
	r.mu.Lock()
	q := r.queues[i]
	r.queues[i].started = true // before it is: an interrupt's notification may come at once
	r.mu.Unlock()
	err := errSize
	if q.size != 0 {
		err = r.dev.SetQueue(i, q.size, q.desc, q.driver, q.device)
	}
	if err == nil {
		err = r.dev.SetQueueBase(i, 0)
	}
	if err == nil {
		err = r.dev.StartQueue(ctx, i)
	}
	if err == nil {
		return true
	}
	r.mu.Lock()
	r.queues[i].started = false
	r.mu.Unlock()
	if ctx.Err() != nil {
		return false // the machine has ended: that is no fault of the driver's
	}
	r.fail("a queue cannot start", fmt.Errorf("queue %d: %w", i, err))
	return false
}

// stopQueue ends the device's use of queue i. When it returns the ring is the driver's. The caller holds op.
func (r *Registers) stopQueue(ctx context.Context, i int) {
	_, err := r.dev.StopQueue(ctx, i)
	if err == nil {
		err = r.dev.SetQueue(i, 1, 0, 0, 0) // chains left in flight by a dead plugin are withdrawn
	}
	if err != nil {
		r.complain("queue stopped", "queue", i, "error", err)
	}
	r.mu.Lock()
	r.queues[i].started = false
	r.mu.Unlock()
}
