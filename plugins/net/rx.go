package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

const (
	// rxBatch is the most packets that Receive gives at once; arbitrary.
	rxBatch = 32
	// rxFlushBytes is how much the driver gets before it is told; arbitrary: enough to share a call, little enough to overlap.
	rxFlushBytes = 128 << 10
	// roomPatience is how long a packet waits for buffers that it fits into, when the driver has given all it had for now. Arbitrary:
	// far above the time that a driver needs to refill its queue.
	roomPatience = 100 * time.Millisecond
	// troublePause is how long to leave a back-end alone that failed; arbitrary.
	troublePause = 100 * time.Millisecond
)

// receiver is one run of a receiveq.
//
// It holds chains until there is a frame for them, which the back-end puts straight into guest memory; the header follows. Held
// chains are the newest of the ring, so that they can be given back to it at the end.
type receiver struct {
	d     *device
	p     *pair
	q     ring
	rules *rules
	// held are chains with room for a header and at least one byte, oldest first; room is what they have room for altogether.
	held []*virtq.Chain
	room int
	// frames[:ready] have room in held: each that of one chain, or the first one that of several.
	frames [rxBatch]frame
	ready  int
	merged bool // frames[0] has several chains
	// spare is memory of our own: for a packet's end that held has no room for, and for what nobody gets.
	spare []byte
	waste [1]frame
	// staged counts what was completed and not flushed.
	stagedChains, stagedBytes int
}

func newReceiver(d *device, p *pair, q ring) *receiver { return &receiver{d: d, p: p, q: q} }

// run gives the driver what arrives until ctx ends.
func (r *receiver) run(ctx context.Context) (err error) {
	defer func() { // also when the driver broke the ring: the queue cannot stop before every chain is back
		err = errors.Join(stopped(ctx, err), giveBack(r.q, r.held), finishOld(r.q))
	}()
	for {
		more, err := r.serveSome(ctx)
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if more && r.stagedChains < rxBatch && r.stagedBytes < rxFlushBytes {
			continue
		}
		if err := r.flush(); err != nil {
			return err
		}
		if more {
			continue
		}
		if err := r.p.port.Wait(ctx); err != nil {
			return err
		}
	}
}

// serveSome receives once; more: look again before waiting for the back-end.
func (r *receiver) serveSome(ctx context.Context) (more bool, err error) {
	if now := r.d.rules.Load(); now != r.rules {
		r.rules, r.ready = now, 0
	}
	if !r.rules.up || r.p.index >= r.rules.pairs {
		return r.discard(ctx)
	}
	if err := r.gather(); err != nil {
		return false, err
	}
	if len(r.held) == 0 {
		if err := r.flush(); err != nil {
			return false, err
		}
		return true, r.q.Wait(ctx)
	}
	if r.ready == 0 {
		r.makeRoom()
	}
	n := r.ready
	if limit := r.d.rxLimit; limit != nil {
		n = 1 // nobody knows what comes
		if wait := limit.ready(); wait > 0 {
			r.p.rx.waits.Add(1)
			return true, errors.Join(r.flush(), pause(ctx, wait))
		}
	}
	n, err = r.p.port.Receive(r.frames[:n])
	if err != nil {
		return true, r.troubled(ctx, err)
	}
	r.p.receiving.worked()
	if n == 0 {
		return false, nil
	}
	return true, r.deliver(ctx, n)
}

// troubled notes that the back-end failed, and leaves it alone for a while.
func (r *receiver) troubled(ctx context.Context, err error) error {
	r.p.receiving.failed("receive", err, r.d.tell)
	return errors.Join(r.flush(), pause(ctx, troublePause))
}

// need is the room for a header and the longest frame.
func (r *receiver) need() int { return r.rules.headerSize + r.rules.longest }

// merges tells whether the oldest chain alone is too short for every frame, and others may be joined to it.
func (r *receiver) merges() bool {
	return r.rules.mergeable && len(r.held) > 0 && r.held[0].WritableLen() < r.need()
}

// gather takes chains: a batch of those that have room for any frame, or as many as one frame may need.
func (r *receiver) gather() error {
	for {
		if enough := len(r.held) >= rxBatch; r.merges() && r.room >= r.need() || !r.merges() && enough {
			return nil
		}
		if _, ok, err := r.take(); err != nil || !ok {
			return err
		}
	}
}

// take takes the next chain that has room for a header and a byte; ok is false if there is none now. Others go back empty.
func (r *receiver) take() (c *virtq.Chain, ok bool, err error) {
	for {
		c, ok, err = r.q.Pop()
		if err != nil || !ok {
			return nil, false, err
		}
		if c.WritableLen() > r.rules.headerSize {
			r.held = append(r.held, c)
			r.room += c.WritableLen()
			r.ready = 0
			return c, true, nil
		}
		r.p.rx.buffers.Add(1)
		r.complete(c)
	}
}

func (r *receiver) complete(c *virtq.Chain) {
	r.q.Complete(c)
	r.stagedChains++
	r.stagedBytes += c.Writer().Written()
}

func (r *receiver) flush() error {
	r.stagedChains, r.stagedBytes = 0, 0
	return r.q.Flush()
}

// makeRoom lays frames over the held chains.
func (r *receiver) makeRoom() {
	skip := r.rules.headerSize
	if r.merged = r.merges(); !r.merged {
		for _, c := range r.held[:min(len(r.held), rxBatch)] {
			if r.rules.mergeable && c.WritableLen() < r.need() {
				break
			}
			f := &r.frames[r.ready]
			f.bufs = roomAfter(f.bufs[:0], c.Writable(), skip)
			r.ready++
		}
		return
	}
	f := &r.frames[0]
	f.bufs = f.bufs[:0]
	for _, c := range r.held {
		f.bufs = roomAfter(f.bufs, c.Writable(), skip)
		skip = 0
	}
	if missing := r.need() - r.room; missing > 0 {
		f.bufs = append(f.bufs, r.ownMemory()[:missing])
	}
	r.ready = 1
}

// roomAfter appends to dst what follows the first skip bytes of bufs.
func roomAfter(dst, bufs [][]byte, skip int) [][]byte {
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		dst = append(dst, b[skip:])
		skip = 0
	}
	return dst
}

func (r *receiver) ownMemory() []byte {
	if r.spare == nil {
		r.spare = make([]byte, frameMax)
	}
	return r.spare
}

// deliver gives the driver the first n frames, those that it wants. Chains that they did not need stay held.
func (r *receiver) deliver(ctx context.Context, n int) error {
	r.ready = 0
	if r.merged {
		if !r.wanted(&r.frames[0]) {
			return nil
		}
		chains, err := r.chainsFor(ctx, &r.frames[0])
		if chains > 0 {
			r.put(&r.frames[0], r.held[:chains])
			r.held = append(r.held[:0], r.held[chains:]...)
		}
		return err
	}
	kept := 0
	for i := range n {
		if f := &r.frames[i]; r.wanted(f) && r.fits(f, r.held[i].WritableLen()) {
			r.put(f, r.held[i:i+1])
			continue
		}
		r.held[kept] = r.held[i]
		kept++
	}
	r.held = append(r.held[:kept], r.held[n:]...)
	return nil
}

// wanted tells whether the driver gets f, and makes its header the driver's.
func (r *receiver) wanted(f *frame) bool {
	r.d.rxLimit.passed(f.n)
	var head [filterBytes]byte
	peek(head[:], f.bufs)
	if !r.rules.filter.wants(&head, f.n) {
		r.p.rx.filter.Add(1)
		return false
	}
	long := f.n > r.rules.whole && f.hdr.gsoType() == virtio.NetGSONone // 5.1.4.1
	if long || f.n < etherHeader || !f.hdr.toDriver(f.n, r.rules.guest) {
		r.p.rx.header.Add(1)
		return false
	}
	return true
}

// fits tells whether f, with its header, is inside room: a back-end that says otherwise is wrong.
func (r *receiver) fits(f *frame, room int) bool {
	if f.n+r.rules.headerSize <= room {
		return true
	}
	r.p.rx.room.Add(1)
	return false
}

// peek copies the first bytes of bufs.
func peek(dst []byte, bufs [][]byte) {
	for _, b := range bufs {
		if len(dst) == 0 {
			return
		}
		dst = dst[copy(dst, b):]
	}
}

// chainsFor is how many of the held chains f takes. If its end is in our own memory it waits a little for more chains, and 0 says
// that there were none.
func (r *receiver) chainsFor(ctx context.Context, f *frame) (n int, err error) {
	if !r.fits(f, max(r.room, r.need())) {
		return 0, nil
	}
	want := f.n + r.rules.headerSize
	if r.room < want {
		if ok, err := r.extend(ctx, r.ownMemory()[:want-r.room]); !ok {
			r.p.rx.room.Add(1)
			return 0, err
		}
	}
	for room := 0; room < want; n++ {
		room += r.held[n].WritableLen()
	}
	return n, nil
}

// extend puts the end of a frame into further chains; false: they did not come.
func (r *receiver) extend(ctx context.Context, end []byte) (bool, error) {
	var late atomic.Bool
	t := time.AfterFunc(roomPatience, func() {
		late.Store(true)
		_ = r.q.Wake() // without it the next kick does
	})
	defer t.Stop()
	for len(end) > 0 {
		c, ok, err := r.take()
		if err != nil {
			return false, err
		}
		if ok {
			for _, b := range c.Writable() {
				end = end[copy(b, end):]
			}
			continue
		}
		if late.Load() {
			return false, nil
		}
		if err := errors.Join(r.flush(), r.q.Wait(ctx)); err != nil {
			return false, err
		}
	}
	return true, nil
}

// put completes chains with f, whose bytes are in them already, and its header.
func (r *receiver) put(f *frame, chains []*virtq.Chain) {
	f.hdr.setField(virtio.NetHeaderNumBuffers, uint16(len(chains))) //nolint:gosec // G115: at most the queue's size
	left := f.n
	for i, c := range chains {
		w := c.Writer()
		r.room -= c.WritableLen()
		if i == 0 {
			_, _ = w.Write(f.hdr[:r.rules.headerSize]) // there is room: take
		}
		left -= w.Advance(left)
		r.complete(c)
	}
	r.p.rx.packets.Add(1)
	r.p.rx.bytes.Add(uint64(f.n)) //nolint:gosec // G115: not negative
}

// discard takes a frame that nobody gets, since the link is down or the driver does not use the pair.
func (r *receiver) discard(ctx context.Context) (more bool, err error) {
	r.waste[0].bufs = append(r.waste[0].bufs[:0], r.ownMemory())
	n, err := r.p.port.Receive(r.waste[:])
	if err != nil {
		return true, r.troubled(ctx, err)
	}
	r.p.rx.link.Add(uint64(n)) //nolint:gosec // G115: not negative
	return n > 0, nil
}
