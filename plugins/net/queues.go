package main

import (
	"context"
	"errors"
	"slices"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// role is what a queue is for.
type role int

const (
	roleNone role = iota
	roleRx
	roleTx
	roleCtrl
)

// role tells what queue index is for, and of which pair. The control queue comes after all pairs if VIRTIO_NET_F_MQ was
// negotiated, else after the first (5.1.2).
func (d *device) role(index int) (role, *pair) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pairs := 1
	if d.features.Has(virtio.FNetMQ) {
		pairs = len(d.pairs)
	}
	switch {
	case index < 2*pairs && index%2 == 0:
		return roleRx, &d.pairs[index/2]
	case index < 2*pairs:
		return roleTx, &d.pairs[index/2]
	case index == 2*pairs && d.features.Has(virtio.FNetCtrlVQ):
		return roleCtrl, nil
	}
	return roleNone, nil
}

// RunQueue implements sdk.QueueRunner.
func (d *device) RunQueue(ctx context.Context, q *sdk.Queue) error {
	return d.runQueue(ctx, q, q.Index())
}

// ring is the part of sdk.Queue that the loops use.
type ring interface {
	Pop() (*virtq.Chain, bool, error)
	Unpop(c *virtq.Chain) bool
	Resubmitted() int
	Complete(c *virtq.Chain)
	Flush() error
	Wait(ctx context.Context) error
	Wake() error
}

func (d *device) runQueue(ctx context.Context, q ring, index int) error {
	d.enter(q)
	defer d.leave(q)
	kind, p := d.role(index)
	switch kind {
	case roleRx:
		return newReceiver(d, p, q).run(ctx)
	case roleTx:
		return newSender(d, p, q).run(ctx)
	case roleCtrl:
		return newControl(d).run(ctx, q)
	case roleNone:
	}
	return idle(ctx, q)
}

// idle serves a queue that is for nothing: what comes goes back unused.
func idle(ctx context.Context, q ring) error {
	return serve(ctx, q, func(*virtq.Chain) {})
}

// serve gives each chain to handle and completes it, until ctx ends.
func serve(ctx context.Context, q ring, handle func(c *virtq.Chain)) error {
	for {
		for {
			if ctx.Err() != nil && q.Resubmitted() == 0 {
				return nil
			}
			c, ok, err := q.Pop()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			handle(c)
			q.Complete(c)
			if err := q.Flush(); err != nil {
				return err
			}
		}
		if err := q.Wait(ctx); err != nil {
			return stopped(ctx, err)
		}
	}
}

// stopped is nil if err is only that ctx ended.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// enter and leave know the running queues. When the first one starts, the state is saved, so that a later instance knows that it
// takes over.
func (d *device) enter(q ring) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = append(d.running, q)
	if !d.saved {
		d.saved = true
		d.save()
	}
}

func (d *device) leave(q ring) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = slices.DeleteFunc(d.running, func(r ring) bool { return r == q })
	d.saved = len(d.running) > 0
}
