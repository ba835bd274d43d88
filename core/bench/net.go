package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virtplug/virtplug/core/machine/loopback"
)

// NetPattern is which way packets go.
type NetPattern string

// Patterns of a NetLoad.
const (
	// NetSend: the driver sends as fast as the device takes. What comes back, if the back-end is loopback, is received.
	NetSend NetPattern = "send"
	// NetReceive: the peer sends as fast as the back-end takes.
	NetReceive NetPattern = "receive"
	// NetEcho: the driver sends, and whoever is at the other end sends back; times are measured.
	NetEcho NetPattern = "echo"
)

// NetPatterns lists them all.
func NetPatterns() []NetPattern { return []NetPattern{NetSend, NetReceive, NetEcho} }

// NetLoad is a load on a network device.
type NetLoad struct {
	Pattern NetPattern
	// FrameBytes is the length of each Ethernet frame without its checksum; MinFrame to MaxFrame. Longer ones than the device's MTU
	// allows are TCP segments for the other side to cut (TSO), which both sides must have negotiated.
	FrameBytes int
	// Depth is how many frames are in flight on each pair: in the transmit queue (0: all that it holds), or with NetEcho on their
	// way around (0: one).
	Depth int
	// Batch is how many frames are made available at once; 0: 32.
	Batch int
	// Peer is the other end of the back-end; nil: nobody, and frames come back by themselves if Returns (back-end loopback).
	Peer    NetPeer
	Returns bool
	// Duration is how long to measure, after Warmup.
	Duration, Warmup time.Duration
	// Settle is how long to wait in the end for frames on their way while none arrives; then they are told as lost. 0: half a
	// second.
	Settle time.Duration
	// PID is the plugin's process, for its CPU time; 0: unknown.
	PID int
	// PinDriver ties the driver's threads of pair n to processor n modulo the number of processors.
	PinDriver bool
	// Poll makes the driver look at its rings without end in stead of sleeping until the device calls.
	Poll bool
}

// Lengths of frames: the shortest has room for the bench's own marks, the longest is what a TCP segment of 64 KiB makes.
const (
	MinFrame = 64
	MaxFrame = 65534
)

// netSample is what is read at the beginning and the end of measuring.
type netSample struct {
	sent, received, kicks, calls uint64
	plugin                       time.Duration
	pluginErr                    error
}

// RunNet loads the network device behind m.
func RunNet(ctx context.Context, m *loopback.Machine, l NetLoad) (r NetResult, err error) {
	n, err := newNetRun(ctx, m, l)
	if err != nil {
		return r, fmt.Errorf("bench net: %w", err)
	}
	defer func() {
		if e := n.end(); e != nil {
			err = errors.Join(err, fmt.Errorf("bench net: %w", e))
		}
	}()
	if err := n.start(); err != nil {
		return r, fmt.Errorf("bench net: %w", err)
	}
	if err := sleep(ctx, l.Warmup); err != nil {
		return r, err
	}
	from := n.sample()
	begin := time.Now()
	n.phase.Store(netMeasure)
	err = sleep(ctx, l.Duration)
	n.phase.Store(netAfter)
	elapsed := time.Since(begin)
	to := n.sample()
	if err != nil {
		return r, err
	}
	if err := errors.Join(n.stopSenders(), n.settle(ctx), n.end()); err != nil {
		return r, fmt.Errorf("bench net: %w", err)
	}
	return n.result(ctx, from, to, elapsed)
}

// Phases of a netRun, which workers read.
const (
	netBefore = iota
	netMeasure
	netAfter
)

// netRun is a load under way.
type netRun struct {
	m       *loopback.Machine
	l       NetLoad
	ends    netEnds
	pairs   []*netPair
	phase   atomic.Int32
	drops0  uint64 // the device's, when it began
	senders sync.WaitGroup
	others  sync.WaitGroup
	stopTx  atomic.Bool
	stopRx  atomic.Bool
	ended   bool
	mu      sync.Mutex
	errs    []error
}

func newNetRun(ctx context.Context, m *loopback.Machine, l NetLoad) (*netRun, error) {
	l.Batch, l.Settle = cmp.Or(l.Batch, 32), cmp.Or(l.Settle, 500*time.Millisecond)
	if l.FrameBytes < MinFrame || l.FrameBytes > MaxFrame {
		return nil, fmt.Errorf("frame of %d bytes: want %d to %d", l.FrameBytes, MinFrame, MaxFrame)
	}
	if l.Pattern != NetSend && l.Peer == nil && (l.Pattern != NetEcho || !l.Returns) {
		return nil, fmt.Errorf("pattern %s: nothing comes back from this back-end", l.Pattern)
	}
	n := &netRun{m: m, l: l}
	var err error
	if n.ends, err = findNetEnds(m, l); err != nil {
		return nil, err
	}
	count := netPairs(m)
	if count < 1 {
		return nil, fmt.Errorf("the device has %d queues: want at least two", len(m.Queues()))
	}
	size := int(m.Queues()[1].Size())
	if n.l.Depth = min(cmp.Or(l.Depth, size), size); n.l.Pattern == NetEcho {
		n.l.Depth = min(cmp.Or(l.Depth, 1), size)
	}
	if err := setNetPairs(ctx, m, count); err != nil {
		return nil, err
	}
	if n.drops0, err = netDrops(ctx, m); err != nil {
		return nil, err
	}
	for i := range count {
		p, err := newNetPair(n, i)
		if err != nil {
			return nil, fmt.Errorf("queue pair %d: %w", i, err)
		}
		n.pairs = append(n.pairs, p)
	}
	if l.Peer != nil && n.ends.resolve {
		if err := n.pairs[0].resolve(ctx); err != nil {
			return nil, err
		}
		for _, p := range n.pairs {
			p.rewrite()
		}
	}
	return n, nil
}

// start lets peer and workers loose; the peer is there before the first frame.
func (n *netRun) start() error {
	if n.l.Peer != nil {
		if err := n.l.Peer.start(n.l.Pattern, n.ends, n.received); err != nil {
			return err
		}
	}
	if n.l.Pattern == NetEcho {
		n.others.Go(n.wakeEchoes)
	}
	for _, p := range n.pairs {
		if n.l.Pattern == NetEcho {
			n.senders.Go(func() { n.note(p.echo()) })
			continue
		}
		n.others.Go(func() { n.note(p.receive()) })
		n.senders.Go(func() { n.note(p.send(n.l.Pattern == NetSend)) })
	}
	return nil
}

// wakeEchoes wakes threads now and then to look whether what they wait for is lost.
func (n *netRun) wakeEchoes() {
	for !n.stopRx.Load() {
		for _, p := range n.pairs {
			n.note(p.rx.Wake())
		}
		time.Sleep(250 * time.Millisecond)
	}
}

func (n *netRun) note(err error) {
	if err != nil {
		n.mu.Lock()
		n.errs = append(n.errs, err)
		n.mu.Unlock()
	}
}

func (n *netRun) sample() netSample {
	var s netSample
	for _, p := range n.pairs {
		s.kicks += p.kicks.Load()
		s.calls += p.calls.Load()
	}
	s.sent, s.received = n.sent(), n.received()
	s.plugin, s.pluginErr = cpuTime(n.l.PID)
	return s
}

// sent is how many frames were given to their way; those that the peer could not give away are not counted.
func (n *netRun) sent() (sum uint64) {
	if n.l.Pattern == NetReceive {
		return n.l.Peer.counts().sent
	}
	for _, p := range n.pairs {
		sum += p.sent.Load()
	}
	return sum
}

// received is how many arrived at their end.
func (n *netRun) received() (sum uint64) {
	switch {
	case n.l.Pattern == NetSend && n.l.Peer != nil:
		return n.l.Peer.counts().received
	case n.l.Pattern == NetSend && !n.l.Returns:
		return n.sent()
	}
	for _, p := range n.pairs {
		sum += p.received.Load()
	}
	return sum
}

// stopSenders ends what makes new frames, and waits until the device has taken those that it was given. They still arrive.
func (n *netRun) stopSenders() error {
	n.stopTx.Store(true)
	n.await(&n.senders)
	if n.l.Peer != nil && n.l.Pattern == NetReceive {
		return n.l.Peer.stop()
	}
	return nil
}

// sendersPatience is how long a device may take for the frames that it was given; arbitrary.
const sendersPatience = 10 * time.Second

// await wakes the workers until those of wg have ended. After a while they give up what the device has.
func (n *netRun) await(wg *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	patience := time.After(sendersPatience)
	for {
		for _, p := range n.pairs { // again and again: a worker may have begun to sleep just before
			n.note(p.rx.Wake())
			n.note(p.tx.Wake())
		}
		select {
		case <-done:
			return
		case <-patience:
			for _, p := range n.pairs {
				p.giveUp.Store(true)
			}
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// settle waits until all that was sent is accounted for, or nothing has arrived for a while.
func (n *netRun) settle(ctx context.Context) error {
	last, since := n.received(), time.Now()
	for {
		dropped, err := n.dropped(ctx)
		if err != nil {
			return err
		}
		sent, received := n.sent(), n.received()
		if received != last {
			last, since = received, time.Now()
		}
		if quiet := time.Since(since); received+dropped >= sent && quiet > 20*time.Millisecond || quiet > n.l.Settle {
			return nil
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
}

// dropped is what the device and the peer have counted as dropped since the beginning.
func (n *netRun) dropped(ctx context.Context) (uint64, error) {
	d, err := netDrops(ctx, n.m)
	if err != nil {
		return 0, err
	}
	if d < n.drops0 { // another instance of the plugin, which counts anew
		n.drops0 = 0
	}
	d -= n.drops0
	if n.l.Peer != nil {
		d += n.l.Peer.counts().dropped
	}
	return d, nil
}

// end stops everything; nothing of it touches the device's memory afterwards.
func (n *netRun) end() error {
	if n.ended {
		return nil
	}
	n.ended = true
	n.stopTx.Store(true)
	n.await(&n.senders)
	n.stopRx.Store(true)
	n.await(&n.others)
	if n.l.Peer != nil {
		n.note(n.l.Peer.stop())
	}
	return errors.Join(n.errs...)
}
