package main

import (
	"context"
	"errors"
	"slices"

	"github.com/virtplug/virtplug/sdk/virtq"
)

// txBatch is the most packets that Send gets at once; arbitrary.
const txBatch = 32

// sender is one run of a transmitq.
type sender struct {
	d      *device
	p      *pair
	q      ring
	chains [txBatch]*virtq.Chain
	frames [txBatch]frame
}

func newSender(d *device, p *pair, q ring) *sender { return &sender{d: d, p: p, q: q} }

// run sends what the driver makes available until ctx ends.
func (s *sender) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(stopped(ctx, err), finishOld(s.q)) }()
	done := ctx.Done()
	for {
		n, err := s.pop()
		if n > 0 {
			if err := s.transmit(ctx, s.chains[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		select {
		case <-done:
			if s.q.Resubmitted() == 0 {
				return nil
			}
			continue
		default:
		}
		if n > 0 {
			continue
		}
		if err := s.q.Wait(ctx); err != nil {
			return err
		}
	}
}

// pop takes up to a batch.
func (s *sender) pop() (n int, err error) {
	for n < txBatch {
		c, ok, err := s.q.Pop()
		if err != nil || !ok {
			return n, err
		}
		s.chains[n] = c
		n++
	}
	return n, nil
}

// transmit sends and completes chains, as many at once as the limits let. When ctx ends meanwhile, it gives the others back to the
// ring.
func (s *sender) transmit(ctx context.Context, chains []*virtq.Chain) error {
	for len(chains) > 0 {
		n := s.sendSome(ctx, chains)
		for _, c := range chains[:n] {
			s.q.Complete(c)
		}
		if err := s.q.Flush(); err != nil {
			return err
		}
		chains = chains[n:]
		if len(chains) == 0 {
			return nil
		}
		s.p.tx.waits.Add(1)
		if err := pause(ctx, s.d.txLimit.ready()); err != nil {
			return errors.Join(err, giveBack(s.q, chains))
		}
	}
	return nil
}

// sendSome sends what the limits let pass now, and returns how many chains that were.
func (s *sender) sendSome(ctx context.Context, chains []*virtq.Chain) (n int) {
	r := s.d.rules.Load()
	frames, bad := 0, 0
	limit := s.d.txLimit
	for _, c := range chains {
		if limit.ready() > 0 {
			break
		}
		n++
		f := &s.frames[frames]
		if !f.parse(c, r) {
			bad++
			continue
		}
		limit.passed(f.n)
		frames++
	}
	count := &s.p.tx
	if bad > 0 {
		count.header.Add(uint64(bad))
	}
	if frames == 0 {
		return n
	}
	if !r.up {
		count.link.Add(uint64(frames))
		return n
	}
	dropped, err := s.p.port.Send(ctx, s.frames[:frames])
	if err != nil {
		dropped = frames
		s.p.sending.failed("send", err, s.d.tell)
	} else {
		s.p.sending.worked()
	}
	if dropped > 0 {
		count.backend.Add(uint64(dropped))
	}
	if dropped < frames {
		count.packets.Add(uint64(frames - dropped))
		count.bytes.Add(sentBytes(s.frames[:frames]))
	}
	return n
}

// sentBytes is how many bytes those of frames have that were not dropped.
func sentBytes(frames []frame) (bytes uint64) {
	for i := range frames {
		if f := &frames[i]; !f.dropped {
			bytes += uint64(f.n) //nolint:gosec // G115: not negative
		}
	}
	return bytes
}

// parse makes f of a driver's chain: a header, then the frame, in any number of buffers.
func (f *frame) parse(c *virtq.Chain, r *rules) bool {
	in := c.Reader()
	f.hdr, f.dropped = header{}, false
	if in.ReadFull(f.hdr[:r.headerSize]) != nil {
		return false
	}
	f.n = in.Len()
	if f.n < etherHeader || f.n > frameMax || f.hdr.fromDriver(f.n, r.host) != nil {
		return false
	}
	if f.hdr.gsoType() == 0 && f.n > r.whole {
		return false
	}
	f.bufs = in.Rest(f.bufs[:0])
	return true
}

// giveBack returns the newest chains of a queue, oldest first in chains, to the ring; those that it does not take are finished
// unused.
func giveBack(q ring, chains []*virtq.Chain) error {
	for _, c := range slices.Backward(chains) {
		if !q.Unpop(c) {
			q.Complete(c)
		}
	}
	return q.Flush()
}

// finishOld finishes, unused, what a former instance left in flight and this run of a queue did not come to: the next one would not
// get it.
func finishOld(q ring) error {
	for q.Resubmitted() > 0 {
		c, _, err := q.Pop()
		if err != nil {
			return err
		}
		q.Complete(c)
	}
	return q.Flush()
}
