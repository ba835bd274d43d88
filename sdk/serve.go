package sdk

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/virtq"
)

// DefaultBusyPoll is how long a queue looks for more work after a batch before it sleeps. A wake-up across cores costs
// about 50 µs, so a driver that is awake comes back sooner than that; 20 µs is where more brought nothing.
const DefaultBusyPoll = 20 * time.Microsecond

// serve runs the device's loop and reports how it ended.
func (q *Queue) serve(ctx context.Context, dev Device) {
	runtime.LockOSThread() // a blocking read on a locked thread costs one wake-up, not two
	defer runtime.UnlockOSThread()
	err := q.guard(func() error { return q.runLoop(ctx, dev) })
	if err == nil && ctx.Err() == nil {
		err = errors.New("the device's RunQueue returned though the queue was not to stop: nothing serves it any more")
	}
	switch broken := (*virtq.DriverError)(nil); {
	case err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err()):
	case errors.As(err, &broken):
		q.vq.Break(err)
		q.p.OnBroken(err)
	default:
		q.vq.Break(err)
		q.p.OnError(fmt.Errorf("queue %d: %w", q.p.Index, err))
	}
}

func (q *Queue) runLoop(ctx context.Context, dev Device) error {
	switch d := dev.(type) {
	case QueueRunner:
		return d.RunQueue(ctx, q)
	case BatchHandler:
		return q.loop(ctx, d.HandleBatch)
	case ChainHandler:
		return Serve(ctx, q, d.HandleChain)
	}
	return fmt.Errorf("device %T: implements none of QueueRunner, BatchHandler, ChainHandler", dev)
}

// guard turns a fault on guest memory (its file was truncated: SIGBUS) into a driver's error. Other panics go on: a bug of
// the device ends its process, and the launcher starts another.
func (q *Queue) guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			error
			Addr() uintptr
		}:
			if !q.p.Mem.Holds(r.Addr()) {
				panic(r)
			}
			err = &virtq.DriverError{Op: "access guest memory", Queue: q.p.Index, Section: "2.6", Err: fmt.Errorf("%w: %w", virtq.ErrMemory, r)}
		default:
			panic(r)
		}
	}()
	return f()
}

// Serve is the standard loop of one queue: pop, handle, complete, notify, sleep. It returns nil when ctx ends.
// A QueueRunner calls it for queues that need nothing special.
func Serve(ctx context.Context, q *Queue, handle func(context.Context, *Queue, *virtq.Chain) error) error {
	return q.loop(ctx, func(ctx context.Context, q *Queue, batch []*virtq.Chain) error {
		for _, c := range batch {
			err := handle(ctx, q, c)
			if err == ErrLater { //nolint:errorlint // a sentinel on the hot path; wrapping it makes no sense
				continue
			}
			if err != nil {
				q.failed(err)
			}
			q.vq.Complete(c)
		}
		return nil
	})
}

// loop pops in batches: publishing every few chains lets driver and device overlap.
func (q *Queue) loop(ctx context.Context, handle func(context.Context, *Queue, []*virtq.Chain) error) error {
	var batch [BatchSize]*virtq.Chain
	done := ctx.Done()
	for {
		n, err := q.vq.PopBatch(batch[:])
		if err != nil {
			return err
		}
		if n > 0 {
			if err := handle(ctx, q, batch[:n]); err != nil {
				q.failed(err)
			}
			if err := q.Flush(); err != nil {
				return err
			}
			q.spin.worked()
		}
		select {
		case <-done:
			if q.vq.Resubmitted() == 0 { // what a former instance left must be served: nobody would do it later
				return nil
			}
			continue
		default:
		}
		if n > 0 || q.spin.wait(q.vq) {
			continue
		}
		if err := q.Wait(ctx); err != nil {
			return err
		}
	}
}

// spinner busy-polls for a while after work was found. While that finds nothing it does so more seldom, never in shorter
// spells: a spell shorter than the driver's round trip (about most) never finds anything, so it could never recover.
type spinner struct {
	most   time.Duration
	armed  bool
	misses int // in a row
	skip   int // batches to let pass
	every  int // how many to let pass after the next miss
}

const (
	missesAllowed = 8  // arbitrary: single misses are chance
	skipMost      = 64 // arbitrary: what always misses costs 1/64 of most a batch
)

func newSpinner(most time.Duration) spinner {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err == nil && set.Count() < 2 {
		most = 0 // on one processor the driver cannot run while we look
	}
	return spinner{most: most}
}

func (s *spinner) worked() { s.armed = s.most > 0 }

// due tells whether to look for more now.
func (s *spinner) due() bool {
	if !s.armed {
		return false
	}
	s.armed = false
	if s.skip > 0 {
		s.skip--
		return false
	}
	return true
}

// found learns from a look.
func (s *spinner) found(more bool) {
	if more {
		s.misses, s.every = 0, 0
		return
	}
	if s.misses++; s.misses >= missesAllowed {
		s.every = min(max(1, 2*s.every), skipMost)
		s.skip = s.every
	}
}

// wait looks for more; false: sleep.
func (s *spinner) wait(vq *virtq.Queue) bool {
	if !s.due() {
		return false
	}
	const looks = 8 // about 0.2 µs between two readings of the clock
	for start := time.Now(); ; {
		if vq.SpinUntilMore(looks) {
			s.found(true)
			return true
		}
		if time.Since(start) >= s.most {
			s.found(false)
			return false
		}
	}
}
