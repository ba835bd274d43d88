package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
)

const (
	// sendPatience is the longest that a peer which does not read may hold up a call of Send. Arbitrary: a peer that is only busy reads
	// again by then, and a driver's queue is not held up so long that it looks dead.
	sendPatience = 100 * time.Millisecond
	// socketMTU is the largest packet if the configuration names none: what both ends take without having agreed on it.
	socketMTU = 1500
	// maxSocketFrame is the longest frame taken from a peer, in bytes: a header with VLAN tags and the longest IP packet there is (65535).
	// A stream that announces a longer one has lost its framing.
	maxSocketFrame = 65550
	// minFrame is an Ethernet header: nothing shorter is a frame.
	minFrame = 14
)

// socket is a back-end whose peer is another program: another VM's socket, passt, QEMU. What goes over it are whole Ethernet frames:
// on a stream each after its length, 32 bits big-endian, as QEMU and passt have it; otherwise each a datagram.
//
// It has one peer at a time. Without one the link is down; it tries until there is one again. A stream's listener refuses a second
// peer: left waiting in the listener's queue it would believe that it was connected.
//
// A peer that does not read holds up the sender by sendPatience once; then frames are dropped until it reads again. A frame that a
// stream took half of is finished first, also if nothing more is to be sent.
type socket struct {
	env     *sdk.Env
	changed func()
	mtu     int
	source  peerSource
	waiter  *waiter
	news    *news

	cur    atomic.Pointer[conn] // nil: no peer
	counts socketCounters

	stop    context.CancelFunc
	running sync.WaitGroup
	closing sync.Once
	failure error // of Close
}

// socketCounters only grow. Of frames unless they say otherwise.
type socketCounters struct {
	connections, refused    atomic.Uint64 // peers
	badPeers                atomic.Uint64 // peers that broke the framing
	rxLong, rxShort         atomic.Uint64
	txNoPeer, txFull, txBad atomic.Uint64
}

// newSocket makes the back-end that cfg describes; changed is called, from another goroutine and perhaps before newSocket returns,
// when the link goes up or down. Errors are those of the settings, and of the own end's address.
func newSocket(env *sdk.Env, cfg *settings, changed func()) (backend, error) {
	source, err := socketSource(cfg)
	if err != nil {
		return nil, err
	}
	w, err := newWaiter()
	if err != nil {
		return nil, errors.Join(err, source.close())
	}
	s := &socket{env: env, changed: changed, mtu: cfg.MTU, source: source, waiter: w, news: &news{env: env}}
	if s.mtu == 0 {
		s.mtu = socketMTU
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.running.Go(func() { source.run(ctx, s) })
	return s, nil
}

// Offer implements backend: no offloads, for neither framing has a place for their header.
func (s *socket) Offer() offer { return offer{Pairs: 1, MTU: s.mtu} }

// SetOffloads implements backend: none were offered.
func (s *socket) SetOffloads(virtio.Features) error { return nil }

// SetPairs implements backend: there is one.
func (s *socket) SetPairs(int) error { return nil }

// Port implements backend.
func (s *socket) Port(int) port { return s }

// Link implements backend.
func (s *socket) Link() bool { return s.cur.Load() != nil }

// Statistics implements backend.
func (s *socket) Statistics() map[string]uint64 {
	c := &s.counts
	return map[string]uint64{
		"socket_connections":        c.connections.Load(),
		"socket_refused":            c.refused.Load(),
		"socket_bad_peers":          c.badPeers.Load(),
		"socket_rx_dropped_long":    c.rxLong.Load(),
		"socket_rx_dropped_short":   c.rxShort.Load(),
		"socket_tx_dropped_no_peer": c.txNoPeer.Load(),
		"socket_tx_dropped_full":    c.txFull.Load(),
		"socket_tx_dropped_refused": c.txBad.Load(),
	}
}

// Close implements backend. Idempotent.
func (s *socket) Close() error {
	s.closing.Do(func() {
		s.stop()
		s.running.Wait()
		s.failure = errors.Join(s.source.close(), s.waiter.close())
	})
	return s.failure
}

// acquire returns the present peer, for as long as it is not released, or nil.
func (s *socket) acquire() *conn {
	if c := s.cur.Load(); c != nil && c.retain() {
		return c
	}
	return nil
}

// lost ends the use of c, whose peer has gone or is not to be had any more. Any goroutine.
func (s *socket) lost(c *conn, err error) {
	s.cur.CompareAndSwap(c, nil) // nobody begins to use it
	c.fail(err)
}

// Send implements port.
func (s *socket) Send(ctx context.Context, frames []frame) (int, error) {
	c := s.acquire()
	if c == nil {
		s.counts.txNoPeer.Add(uint64(len(frames)))
		return markDropped(frames), nil
	}
	defer c.release()
	dropped, err := c.wire.send(ctx, c.fd, frames)
	switch {
	case err != nil: // the peer's end: told where the link's state is
		s.lost(c, err)
	case c.wire.unfinished(): // whoever watches the connection goes on
		c.over.wake()
	}
	return dropped, nil
}

// Receive implements port.
func (s *socket) Receive(frames []frame) (int, error) {
	c := s.acquire()
	if c == nil {
		return 0, nil
	}
	defer c.release()
	n, err := c.wire.receive(c.fd, frames)
	if err != nil {
		s.lost(c, err)
	}
	return n, nil
}

// Wait implements port.
func (s *socket) Wait(ctx context.Context) error {
	c := s.acquire()
	if c == nil {
		_, err := s.waiter.wait(ctx, -1, 0, -1)
		return err
	}
	defer c.release()
	if c.wire.buffered() {
		return ctx.Err()
	}
	_, err := s.waiter.wait(ctx, c.fd, unix.POLLIN, -1)
	return err
}

// Wake implements port.
func (s *socket) Wake() { s.waiter.wake() }
