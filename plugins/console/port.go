package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virtplug/virtplug/sdk/virtq"
)

const (
	// chunk is the most bytes moved at once between a chain and a back-end: Linux's buffers are 4 KiB for input and at
	// most 32 KiB for output.
	chunk = 32 << 10
	// emergencySize is how many bytes of emergency writes may wait for the back-end.
	emergencySize = 4 << 10
	// tailMax is how much output of a chain that cannot be given back is kept when its queue stops: more than any driver
	// puts into one.
	tailMax = 1 << 20
	// closeWait is how long closing a port waits for the host's end to take the tail.
	closeWait = time.Second
	// failEvery is the least time between two reports of a back-end's errors.
	failEvery = 10 * time.Second
)

// queue is what a port uses of *sdk.Queue.
type queue interface {
	Pop() (c *virtq.Chain, ok bool, err error)
	Unpop(c *virtq.Chain) bool
	Resubmitted() int
	Wait(ctx context.Context) error
	Finish(c *virtq.Chain) error
}

// port moves bytes between one pair of queues and one back-end.
type port struct {
	id   int
	be   backend
	open *gate // the guest has the port open
	fail func(error)
	// inUse is called when a queue shows, at its start, that the driver uses the port already; nil: of no interest.
	inUse func()

	// sent is how many bytes of the next transmit chain went out before the queue was stopped; tail is output that goes
	// before it. Of the goroutine that serves the transmitq.
	sent int
	tail []byte
	// unread is input that the driver had no buffer for after all. Of the goroutine that serves the receiveq.
	unread []byte

	writeTurn chan struct{} // held by who calls be.Write
	emergency chan byte
	emergOnce sync.Once
	quit      context.Context //nolint:containedctx // ends when the device closes
	stop      context.CancelFunc
	workers   sync.WaitGroup

	failMu   sync.Mutex
	failedAt time.Time

	in, out, lost, badBuffers, emergDropped, failures atomic.Uint64
}

func newPort(id int, be backend, fail func(error)) *port {
	p := &port{id: id, be: be, open: newGate(), fail: fail, writeTurn: make(chan struct{}, 1), emergency: make(chan byte, emergencySize)}
	p.quit, p.stop = context.WithCancel(context.Background())
	return p
}

// receive serves the port's receiveq (5.3.6): input of the back-end goes to the driver's buffers. Input is read only when
// a buffer is there and the guest has the port open; what is not read stays with the back-end.
func (p *port) receive(ctx context.Context, q queue) error {
	first, err := p.detect(q)
	if err != nil {
		return err
	}
	r := receiver{p: p, q: q, held: first, buf: make([]byte, chunk)}
	err = r.run(ctx)
	if r.held != nil { // the queue cannot stop before it is finished; empty, since there was nothing to put into it
		err = errors.Join(err, q.Finish(r.held))
	}
	if err = stopped(ctx, err); err != nil {
		return err
	}
	return takeOld(q, q.Finish) // empty too
}

// takeOld gives f the chains that a former instance left in flight and this run of a queue did not come to: the next one
// would not get them.
func takeOld(q queue, f func(*virtq.Chain) error) error {
	for q.Resubmitted() > 0 {
		c, _, err := q.Pop()
		if err != nil {
			return err
		}
		if err := f(c); err != nil {
			return err
		}
	}
	return nil
}

// receiver is one run of a receiveq.
type receiver struct {
	p   *port
	q   queue
	buf []byte
	// held is a chain that could not be given back (a former instance left it in flight). Otherwise none is held while
	// waiting for input, so that a crash leaves none in flight.
	held *virtq.Chain
}

func (r *receiver) run(ctx context.Context) error {
	for {
		open, leave, err := r.p.open.enter(ctx)
		if err != nil {
			return err
		}
		err = r.serve(ctx, open)
		leave()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// serve runs until open ends, which it does with ctx or when the guest closes the port.
func (r *receiver) serve(ctx, open context.Context) error {
	for open.Err() == nil {
		if err := r.deliver(ctx); err != nil {
			return err
		}
		room, err := r.room(ctx)
		if err != nil {
			return err
		}
		n, err := r.p.be.Read(open, r.buf[:min(room, len(r.buf))])
		r.p.unread = append(r.p.unread, r.buf[:n]...)
		if n == 0 && err != nil && open.Err() == nil {
			if !errors.Is(err, io.EOF) {
				r.p.report(fmt.Errorf("port %d: read input: %w", r.p.id, err))
			}
			<-ctx.Done() // there will be no input any more
		}
	}
	return r.deliver(ctx) // what was read before the guest closed the port
}

// deliver moves what was read to the driver. What is left when ctx ends is delivered by the next run.
func (r *receiver) deliver(ctx context.Context) error {
	p := r.p
	for len(p.unread) > 0 {
		room, err := r.room(ctx)
		if err != nil {
			return err
		}
		c := r.held
		if r.held = nil; c == nil {
			if c, _, err = r.q.Pop(); err != nil {
				return err
			}
			if c == nil { // the driver took back what it had shown
				continue
			}
		}
		n, err := c.Writer().Write(p.unread[:min(room, len(p.unread), c.Writer().Len())])
		p.unread = p.unread[n:]
		p.in.Add(uint64(n)) //nolint:gosec // G115: a length
		if err := errors.Join(err, r.q.Finish(c)); err != nil {
			return fmt.Errorf("port %d: fill input buffer: %w", p.id, err)
		}
	}
	p.unread = nil
	return nil
}

// room waits until the driver has a buffer and returns its size; the buffer stays in the queue.
func (r *receiver) room(ctx context.Context) (int, error) {
	for {
		if r.held != nil && r.held.Writer().Len() > 0 {
			return r.held.Writer().Len(), nil
		}
		c, ok := r.held, r.held != nil
		r.held = nil
		if !ok {
			var err error
			if c, ok, err = r.q.Pop(); err != nil {
				return 0, err
			}
		}
		if !ok {
			if err := r.q.Wait(ctx); err != nil {
				return 0, err
			}
			continue
		}
		n := c.Writer().Len()
		if n == 0 {
			r.p.badBuffers.Add(1)
			if err := r.q.Finish(c); err != nil {
				return 0, err
			}
			continue
		}
		if !r.q.Unpop(c) {
			r.held = c
		}
		return n, nil
	}
}

// transmit serves the port's transmitq: the driver's bytes go to the back-end. A chain is finished when all its bytes are
// written; if the queue stops before, the chain goes back to it, and the rest is written when it is served again.
func (p *port) transmit(ctx context.Context, q queue) error {
	c, err := p.detect(q)
	if err != nil {
		return err
	}
	if !p.writeTail(ctx) {
		return p.leave(q, c)
	}
	buf := make([]byte, chunk)
	for {
		ok := c != nil
		if !ok {
			if c, ok, err = q.Pop(); err != nil {
				return err
			}
		}
		if !ok {
			if err := q.Wait(ctx); err != nil {
				return stopped(ctx, err)
			}
			continue
		}
		if !p.transmitChain(ctx, c, buf) {
			return p.leave(q, c)
		}
		p.sent = 0
		if err := q.Finish(c); err != nil {
			return err
		}
		c = nil
	}
}

// transmitChain writes c's bytes; false: ctx ended before all were written.
func (p *port) transmitChain(ctx context.Context, c *virtq.Chain, buf []byte) bool {
	r := c.Reader()
	r.Skip(p.sent)
	for r.Len() > 0 {
		n, _ := r.Read(buf) // no error while bytes are left
		done, ok := p.output(ctx, buf[:n])
		if p.sent += done; !ok {
			return false
		}
	}
	return true
}

// output writes b and returns how much of it is done with; false: ctx ended before all was.
func (p *port) output(ctx context.Context, b []byte) (int, bool) {
	done, err := p.write(ctx, b)
	p.out.Add(uint64(done)) //nolint:gosec // G115: a length
	switch {
	case done == len(b):
		return done, true
	case ctx.Err() != nil:
		return done, false
	}
	// The host's end failed: these bytes are lost, counted and told; the guest goes on.
	p.lost.Add(uint64(len(b) - done)) //nolint:gosec // G115: a length
	p.report(fmt.Errorf("port %d: %w", p.id, err))
	return len(b), true
}

// leave ends a run of a transmitq whose host's end does not take c, if there is one, before the queue stops.
func (p *port) leave(q queue, c *virtq.Chain) error {
	if c != nil {
		if err := p.giveBack(q, c); err != nil {
			return err
		}
	}
	return takeOld(q, func(c *virtq.Chain) error { return p.giveBack(q, c) })
}

// giveBack returns a chain whose bytes were written up to p.sent to the queue. One that a former instance left in flight
// cannot go back: then its bytes wait here, as far as tailMax allows.
func (p *port) giveBack(q queue, c *virtq.Chain) error {
	if q.Unpop(c) {
		return nil
	}
	// The chain's reader may be ahead of what was written: read it from the start.
	left, before := max(0, c.ReadableLen()-p.sent), len(p.tail)
	skip := p.sent
	for _, b := range c.Readable() {
		k := min(skip, len(b))
		skip -= k
		p.tail = append(p.tail, b[k:min(len(b), k+tailMax-min(tailMax, len(p.tail)))]...)
	}
	if n := left - (len(p.tail) - before); n > 0 {
		p.lost.Add(uint64(n))
		p.report(fmt.Errorf("port %d: stopped with %d bytes of output that its host end does not take: lost", p.id, n))
	}
	p.sent = 0
	return q.Finish(c)
}

// writeTail writes what giveBack kept; false: ctx ended before all was written.
func (p *port) writeTail(ctx context.Context) bool {
	for len(p.tail) > 0 {
		done, ok := p.output(ctx, p.tail)
		if p.tail = p.tail[done:]; !ok {
			return false
		}
	}
	p.tail = nil
	return true
}

func (p *port) write(ctx context.Context, b []byte) (int, error) {
	select {
	case p.writeTurn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-p.writeTurn }()
	return p.be.Write(ctx, b)
}

// report tells a back-end's error, not too often.
func (p *port) report(err error) {
	p.failures.Add(1)
	p.failMu.Lock()
	now := time.Now()
	tell := p.failedAt.IsZero() || now.Sub(p.failedAt) >= failEvery
	if tell {
		p.failedAt = now
	}
	p.failMu.Unlock()
	if tell {
		p.fail(err)
	}
}

// detect looks, once at a queue's start, whether the driver has buffers in it. A chain that it cannot give back it returns.
func (p *port) detect(q queue) (*virtq.Chain, error) {
	if p.inUse == nil {
		return nil, nil //nolint:nilnil // of no interest
	}
	c, ok, err := q.Pop()
	if err != nil || !ok {
		return nil, err
	}
	p.inUse()
	if q.Unpop(c) {
		return nil, nil //nolint:nilnil // the next Pop returns it
	}
	return c, nil
}

// reset forgets what belongs to the driver's buffers.
func (p *port) reset() { p.sent = 0 }

func (p *port) counters(add func(string, uint64)) {
	add("input_bytes", p.in.Load())
	add("output_bytes", p.out.Load())
	add("output_lost_bytes", p.lost.Load())
	add("host_errors", p.failures.Load())
	add("bad_buffers", p.badBuffers.Load())
	add("emergency_dropped_bytes", p.emergDropped.Load())
	p.be.Counters(add)
}

func (p *port) close() error {
	p.stop()
	p.workers.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	if !p.writeTail(ctx) {
		p.lost.Add(uint64(len(p.tail)))
		p.report(fmt.Errorf("port %d: closed with %d bytes of output that its host end does not take: lost", p.id, len(p.tail)))
	}
	return p.be.Close()
}

// stopped is nil if err only says that ctx ended.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}
