package device

import (
	"context"
)

// StopQueue stops queue i and returns the index of the next available-ring entry that was not taken. Everything taken
// has been completed, unless no instance could be had within Restart.StopWait: then chains stay in flight, and StartQueue
// with the same addresses continues them. Stopping a queue that does not run returns its base.
func (d *Device) StopQueue(ctx context.Context, i int) (next uint16, err error) {
	const op = "stop queue"
	if err := d.lock(ctx); err != nil {
		return 0, d.err(op, err)
	}
	defer func() { d.unlock() }()
	q, err := d.queue(i)
	if err != nil {
		return 0, d.err(op, err)
	}
	ctx = context.WithoutCancel(ctx)
	var hung *live
	for attempt := 0; q.running; attempt++ {
		if l := d.current(); l != nil {
			err := d.finish(ctx, l, q)
			if err == nil {
				break
			}
			d.lose(l, err)
			hung = l
		}
		if attempt > 0 || !d.awaitInstance(ctx) {
			d.ensureGone(hung)
			d.stopAlone(q)
			break
		}
		var cancel context.CancelFunc // a second instance that hangs too must not take as long as the first
		ctx, cancel = context.WithTimeout(ctx, d.opts.Restart.StopWait)
		defer cancel()
	}
	return q.base, nil
}

// ensureGone waits for the end of an instance that did not stop its queue: after the answer the rings are the machine's, and
// nobody may write to them. The supervisor closes it too. nil: there is none.
func (d *Device) ensureGone(l *live) {
	if l == nil {
		return
	}
	if err := l.inst.Close(); err != nil {
		d.log.Error("queue stopped although its plugin instance cannot be ended", "error", err)
	}
}

// finish stops q on l for good. If only a former instance served it (the device is paused), l completes what is in flight.
func (d *Device) finish(ctx context.Context, l *live, q *queue) error {
	if q.on != l && q.served {
		if err := d.startOn(ctx, l, q); err != nil {
			return err
		}
	}
	if q.on == l {
		if err := d.stopOn(ctx, l, q); err != nil {
			return err
		}
	}
	d.mu.Lock()
	q.running, q.on, q.served = false, nil, false
	q.inflight = replace(q.inflight, nil)
	d.mu.Unlock()
	return nil
}

// awaitInstance gives op away until there is an instance, for at most Restart.StopWait.
func (d *Device) awaitInstance(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, d.opts.Restart.StopWait)
	defer cancel()
	d.unlock()
	defer func() { d.op <- struct{}{} }()
	for {
		d.mu.Lock()
		state, changed := d.state, d.changed
		d.mu.Unlock()
		switch state {
		case StateReady:
			return true
		case StateFailed, StateClosed, StateNew:
			return false
		case StateRestarting, StateDegraded:
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// stopAlone answers for a plugin that is not there, from the used ring and the in-flight region.
func (d *Device) stopAlone(q *queue) {
	next, left := q.base, 0
	if q.served && q.inflight != nil {
		used, err := q.usedIndex(d.memory)
		if err == nil {
			left, err = countInflight(q.inflight, q.size, used)
			next = used + uint16(left) //nolint:gosec // at most the queue size
		}
		if err != nil {
			d.log.Error("queue stopped without an instance: ring not readable", "queue", q.index, "error", err)
		}
	}
	if left > 0 {
		d.log.Warn("queue stopped without an instance: chains stay in flight", "queue", q.index, "chains", left)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	q.running, q.on, q.base = false, nil, next
	if q.carry = left > 0; !q.carry {
		q.served, q.inflight = false, replace(q.inflight, nil)
	}
}
