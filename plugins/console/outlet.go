package main

import (
	"context"
	"sync"
	"sync/atomic"
)

// What an outlet does with output while nobody is connected.
const (
	unconnectedKeep  = "keep"  // the newest bytes are kept for whoever connects next
	unconnectedDrop  = "drop"  // it is dropped
	unconnectedBlock = "block" // the port waits
)

// outlet is the output half of a backend whose peer comes and goes. While one is connected it gets every byte, and the
// port waits if it does not read; the policy says what happens while none is.
type outlet struct {
	policy  string
	dropped atomic.Uint64

	// turn is held by who writes: Write, or the flush of what was kept.
	turn    chan struct{}
	kept    keep // under turn
	flushes sync.WaitGroup

	mu      sync.Mutex
	conn    stream          // nil: nobody is connected
	gone    context.Context //nolint:containedctx // ends with conn, not with a call
	cancel  context.CancelFunc
	changed chan struct{} // closed, and replaced, when conn changes
}

func newOutlet(policy string, backlog int) *outlet {
	return &outlet{policy: policy, kept: keep{limit: backlog}, turn: make(chan struct{}, 1), changed: make(chan struct{})}
}

// attach connects s: what was kept goes to it first.
func (o *outlet) attach(s stream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.set(s)
	gone := o.gone
	o.flushes.Go(func() {
		select {
		case o.turn <- struct{}{}:
			o.flush(gone, s)
			<-o.turn
		case <-gone.Done():
		}
	})
}

// detach disconnects s, if it still is what is connected. A Write to it that waits goes on by the policy.
func (o *outlet) detach(s stream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s == nil || o.conn != s {
		return
	}
	o.cancel()
	o.set(nil)
}

func (o *outlet) set(s stream) {
	o.conn = s
	o.gone, o.cancel = context.WithCancel(context.Background())
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *outlet) state() (conn stream, gone context.Context, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.conn, o.gone, o.changed
}

// Write sends p to who is connected, or does with it what the policy says.
func (o *outlet) Write(ctx context.Context, p []byte) (int, error) {
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-o.turn }()
	for done := 0; ; {
		conn, gone, changed := o.state()
		switch {
		case conn != nil:
			n := o.send(ctx, gone, conn, p[done:])
			if done += n; done == len(p) {
				return done, nil
			}
		case o.policy == unconnectedKeep:
			o.dropped.Add(uint64(o.kept.add(p[done:]))) //nolint:gosec // G115: a length
			return len(p), nil
		case o.policy == unconnectedDrop:
			o.dropped.Add(uint64(len(p) - done))
			return len(p), nil
		default:
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
		if err := ctx.Err(); err != nil {
			return done, err
		}
	}
}

// send writes what was kept and then p to conn, until ctx or gone ends. A conn that fails is detached.
func (o *outlet) send(ctx, gone context.Context, conn stream, p []byte) (n int) {
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(gone, cancel)()
	if !o.flush(both, conn) {
		return 0
	}
	n, err := writeStream(both, conn, p)
	if err != nil && both.Err() == nil {
		o.detach(conn)
	}
	return n
}

// flush writes what was kept to conn; false: not all.
func (o *outlet) flush(ctx context.Context, conn stream) bool {
	for len(o.kept.bytes()) > 0 {
		n, err := writeStream(ctx, conn, o.kept.bytes())
		o.kept.remove(n)
		if err != nil {
			if ctx.Err() == nil {
				o.detach(conn)
			}
			return false
		}
	}
	return true
}

// close disconnects whoever is connected and waits for the flush.
func (o *outlet) close() {
	conn, _, _ := o.state()
	o.detach(conn)
	o.flushes.Wait()
}

func (o *outlet) counters(add func(string, uint64)) { add("output_dropped_bytes", o.dropped.Load()) }

// keep holds the newest bytes, at most limit. It takes at most twice that much memory.
type keep struct {
	limit int
	buf   []byte
	off   int
}

func (k *keep) bytes() []byte { return k.buf[k.off:] }

// add appends p and returns how many of the oldest bytes it dropped for it.
func (k *keep) add(p []byte) (dropped int) {
	if over := len(p) - k.limit; over > 0 {
		dropped, p = over, p[over:]
	}
	over := max(0, len(k.bytes())+len(p)-k.limit)
	k.remove(over)
	if k.off >= k.limit {
		k.buf = k.buf[:copy(k.buf, k.buf[k.off:])]
		k.off = 0
	}
	k.buf = append(k.buf, p...)
	return dropped + over
}

// remove drops the n oldest bytes.
func (k *keep) remove(n int) {
	if k.off += n; k.off == len(k.buf) {
		k.buf, k.off = k.buf[:0], 0
	}
}
