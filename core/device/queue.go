package device

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// queue is what the broker knows of one virtqueue. Changed with op held, and mu for what getters read (base, running).
type queue struct {
	index                int
	size                 uint16
	desc, driver, device guestmem.GPA
	base                 uint16
	kick, call           *os.File // the machine's; nil: none given
	ownKick, ownCall     *os.File // eventfds that stand in for missing ones
	inflight             *os.File // non-nil while running, or if carry

	running bool
	// on is the instance that was told to serve the queue; nil: none yet since StartQueue.
	on *live
	// served: some instance may have taken chains since the region was made, so the next one must recover.
	served bool
	// carry: the queue was stopped without an instance, with chains in flight; the next start continues them.
	carry bool
}

// forget is a reset: the kick and call descriptors stay.
func (q *queue) forget() {
	q.inflight = replace(q.inflight, nil)
	q.ownKick, q.ownCall = replace(q.ownKick, nil), replace(q.ownCall, nil)
	*q = queue{index: q.index, kick: q.kick, call: q.call}
}

// SetQueue gives queue i its size in entries and the guest-physical addresses of its descriptor, driver and device areas
// (2.7). ErrBadRequest if it runs, or if they are not aligned. That they lie in guest memory is checked by StartQueue.
func (d *Device) SetQueue(i int, size uint16, desc, driver, device guestmem.GPA) error {
	return d.changeQueue("set queue", i, func(q *queue) error {
		switch {
		case q.running:
			return fmt.Errorf("%w: it is running", ErrBadRequest)
		case !validSize(size, virtio.QueueSizeMax):
			return fmt.Errorf("%w: size %d: not a power of two up to %d", ErrBadRequest, size, virtio.QueueSizeMax)
		case desc%virtio.DescAlign != 0 || driver%virtio.AvailAlign != 0 || device%virtio.UsedAlign != 0:
			return fmt.Errorf("%w: areas %v, %v, %v: not aligned to %d, %d, %d", ErrBadRequest, desc, driver, device,
				virtio.DescAlign, virtio.AvailAlign, virtio.UsedAlign)
		}
		if q.carry && (q.size != size || q.desc != desc || q.driver != driver || q.device != device) {
			q.carry, q.inflight = false, replace(q.inflight, nil) // another ring: nothing to continue
		}
		q.size, q.desc, q.driver, q.device = size, desc, driver, device
		return nil
	})
}

// SetQueueBase sets the index of the next available-ring entry to take. ErrBadRequest while the queue runs.
func (d *Device) SetQueueBase(i int, next uint16) error {
	return d.changeQueue("set queue base", i, func(q *queue) error {
		if q.running {
			return fmt.Errorf("%w: it is running", ErrBadRequest)
		}
		q.base = next
		return nil
	})
}

// QueueBase is what SetQueueBase set or the last StopQueue found.
func (d *Device) QueueBase(i int) uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i < 0 || i >= len(d.queues) {
		return 0
	}
	return d.queues[i].base
}

// QueueRunning tells whether queue i was started and not stopped; also true while an instance is being restarted.
func (d *Device) QueueRunning(i int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return i >= 0 && i < len(d.queues) && d.queues[i].running
}

// SetKick sets the descriptor on which the driver's available buffer notifications of queue i arrive: 8-byte counts, an
// eventfd as a rule. nil: there is none. The device owns f from now on, also on error. A running queue is stopped and
// started again with it.
func (d *Device) SetKick(ctx context.Context, i int, f *os.File) error {
	return d.setNotifier(ctx, "set kick", i, f, func(q *queue) **os.File { return &q.kick })
}

// SetCall sets the descriptor to which used buffer notifications of queue i are written, as SetKick.
func (d *Device) SetCall(ctx context.Context, i int, f *os.File) error {
	return d.setNotifier(ctx, "set call", i, f, func(q *queue) **os.File { return &q.call })
}

func (d *Device) setNotifier(ctx context.Context, op string, i int, f *os.File, field func(*queue) **os.File) error {
	if err := d.lock(ctx); err != nil {
		_ = replace(f, nil)
		return d.err(op, err)
	}
	defer d.unlock()
	q, err := d.queue(i)
	if err != nil {
		_ = replace(f, nil)
		return d.err(op, err)
	}
	ctx = context.WithoutCancel(ctx)
	l := d.current()
	if !q.running || l == nil || q.on != l {
		*field(q) = replace(*field(q), f)
		return nil
	}
	if err := d.stopOn(ctx, l, q); err != nil {
		*field(q) = replace(*field(q), f)
		if d.lost(l, err) {
			return nil
		}
		return d.err(op, err)
	}
	*field(q) = replace(*field(q), f)
	if err := d.restartOn(ctx, l, q, d.memory); err != nil && !d.lost(l, err) {
		return d.err(op, err)
	}
	return nil
}

// StartQueue lets the plugin serve queue i. It needs SetMemory and SetQueue before; features not set are taken as none.
// ErrBadRequest if it runs, is not set up, or does not lie in guest memory. Without an instance the queue starts when the
// next one is there.
func (d *Device) StartQueue(ctx context.Context, i int) error {
	const op = "start queue"
	if err := d.lock(ctx); err != nil {
		return d.err(op, err)
	}
	defer d.unlock()
	q, err := d.queue(i)
	if err != nil {
		return d.err(op, err)
	}
	switch {
	case q.running:
		err = fmt.Errorf("%w: queue %d: it is running", ErrBadRequest, i)
	case q.size == 0:
		err = fmt.Errorf("%w: queue %d: it has no addresses", ErrBadRequest, i)
	default:
		err = q.checkAreas(d.memory)
	}
	if err == nil && !q.carry {
		err = q.newInflight(d.memory)
	}
	if err != nil {
		return d.err(op, err)
	}
	d.mu.Lock()
	q.running, q.on, q.served, q.carry = true, nil, q.carry, false
	paused, l := d.paused, d.cur
	d.mu.Unlock()
	if l == nil || paused {
		return nil
	}
	if err := d.startOn(context.WithoutCancel(ctx), l, q); err != nil && !d.lost(l, err) {
		d.mu.Lock()
		q.running, q.served = false, false
		q.inflight = replace(q.inflight, nil)
		d.mu.Unlock()
		return d.err(op, err)
	}
	return nil
}

// startOn tells l to serve q, then rings the doorbell once, lest a notification be lost. The caller holds op.
func (d *Device) startOn(ctx context.Context, l *live, q *queue) error {
	kick, err := orEventfd(q.kick, &q.ownKick)
	if err != nil {
		return fmt.Errorf("queue %d: kick: %w", q.index, err)
	}
	call, err := orEventfd(q.call, &q.ownCall)
	if err != nil {
		return fmt.Errorf("queue %d: call: %w", q.index, err)
	}
	if d.memoryOn != l {
		if err := d.attach(ctx, l, d.memory); err != nil {
			return err
		}
	}
	recovering := q.served
	q.on, q.served = l, true
	n, err := l.inst.StartQueue(ctx, pluginrpc.QueueStart{
		Index: q.index, Size: q.size,
		DescArea: q.desc, DriverArea: q.driver, DeviceArea: q.device,
		Kick: fd(kick), Call: fd(call), Inflight: fd(q.inflight),
		NextAvail: q.base, Recover: recovering,
	})
	if err != nil {
		q.on = nil
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	q.ring()
	if recovering {
		d.log.Info("queue continues", "queue", q.index, "resubmitted", n)
		signal(call) // the former instance may have died between publishing and notifying
	}
	return nil
}

// ring wakes the plugin, which may have missed a notification.
func (q *queue) ring() {
	if q.kick != nil {
		signal(q.kick)
	} else if q.ownKick != nil {
		signal(q.ownKick)
	}
}

// stopOn stops q on l and keeps its base; q.running stays as it is. An instance that cannot stop a queue is of no more
// use: the error is always ErrLost. The caller holds op.
func (d *Device) stopOn(ctx context.Context, l *live, q *queue) error {
	st, err := l.inst.StopQueue(ctx, q.index)
	if err != nil {
		return fmt.Errorf("%w: stop queue %d: %w", ErrLost, q.index, err)
	}
	if st.Broken != "" {
		d.quiet.line(d.log.Warn, "queue was broken by the driver", "queue", q.index, "reason", st.Broken)
	}
	d.mu.Lock()
	q.base, q.on = st.NextAvail, nil
	d.mu.Unlock()
	return nil
}

// restartOn starts q again after stopOn, from a fresh in-flight region. An instance that refuses that is of no more use:
// the error is always ErrLost.
func (d *Device) restartOn(ctx context.Context, l *live, q *queue, table []region) error {
	err := q.newInflight(table)
	if err == nil {
		if q.served = false; d.paused {
			return nil
		}
		err = d.startOn(ctx, l, q)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

// changeQueue runs f on queue i with op and mu held.
func (d *Device) changeQueue(op string, i int, f func(*queue) error) error {
	if err := d.lock(d.background); err != nil {
		return d.err(op, err)
	}
	defer d.unlock()
	q, err := d.queue(i)
	if err != nil {
		return d.err(op, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := f(q); err != nil {
		return d.err(op, fmt.Errorf("queue %d: %w", i, err))
	}
	return nil
}

// queue is queue i. The caller holds op.
func (d *Device) queue(i int) (*queue, error) {
	if i < 0 || i >= len(d.queues) {
		return nil, fmt.Errorf("%w: queue %d: the device has %d", ErrBadRequest, i, len(d.queues))
	}
	return &d.queues[i], nil
}

// anyRunning tells whether a queue runs.
func (d *Device) anyRunning() bool {
	for i := range d.queues {
		if d.queues[i].running {
			return true
		}
	}
	return false
}

// checkAreas tells whether each of the queue's areas lies in one region.
func (q *queue) checkAreas(table []region) error {
	if len(table) == 0 {
		return fmt.Errorf("%w: queue %d: there is no memory table", ErrBadRequest, q.index)
	}
	var errs []error
	check := func(name string, a guestmem.GPA, n int) {
		if within(table, a, uint64(n)) == nil { //nolint:gosec // a size
			errs = append(errs, fmt.Errorf("%w: queue %d: %s area %v+%#x: %w", ErrBadRequest, q.index, name, a, n, guestmem.ErrRange))
		}
	}
	check("descriptor", q.desc, virtio.DescTableBytes(q.size))
	check("driver", q.driver, virtio.AvailRingBytes(q.size))
	check("device", q.device, virtio.UsedRingBytes(q.size))
	return errors.Join(errs...)
}
