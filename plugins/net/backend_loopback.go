package main

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/virtplug/virtplug/sdk/virtio"
)

const (
	// loopbackFrames and loopbackBytes bound what is on its way back; arbitrary.
	loopbackFrames = 256
	loopbackBytes  = 4 << 20
)

// loopback gives each frame back on the pair that it came from, with source and destination swapped, so that the driver takes it.
type loopback struct{ ports []loopbackPort }

func newLoopback(pairs int) backend {
	l := &loopback{ports: make([]loopbackPort, pairs)}
	for i := range l.ports {
		l.ports[i].wake = make(chan struct{}, 1)
	}
	return l
}

func (l *loopback) Offer() offer {
	return offer{Host: hostOffloads, Guest: guestOffloads, Pairs: len(l.ports)}
}

// SetOffloads needs no effect: a frame that the driver sent and does not take itself is dropped by the device, which counts it.
func (l *loopback) SetOffloads(virtio.Features) error { return nil }

// SetPairs needs none: a pair gets what was sent on it.
func (l *loopback) SetPairs(int) error { return nil }
func (l *loopback) Port(i int) port    { return &l.ports[i] }
func (l *loopback) Link() bool         { return true }
func (l *loopback) Close() error       { return nil }

func (l *loopback) Statistics() map[string]uint64 {
	var full, long uint64
	for i := range l.ports {
		full += l.ports[i].full.Load()
		long += l.ports[i].long.Load()
	}
	return map[string]uint64{"loopback_dropped_full": full, "loopback_dropped_too_long": long}
}

// loopbackPort is a bounded queue of copies.
type loopbackPort struct {
	wake       chan struct{}
	full, long atomic.Uint64

	mu          sync.Mutex
	slots       [loopbackFrames]echo
	head, count int // the oldest one, and how many there are
	bytes       int
}

// echo is a frame on its way back. Its memory stays for the next one.
type echo struct {
	hdr  header
	data []byte
}

func (p *loopbackPort) Send(_ context.Context, frames []frame) (dropped int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range frames {
		f := &frames[i]
		if p.count == len(p.slots) || p.bytes+f.n > loopbackBytes {
			f.dropped = true
			dropped++
			continue
		}
		e := &p.slots[(p.head+p.count)%len(p.slots)]
		e.hdr = f.hdr
		if e.data = e.data[:0]; cap(e.data) < f.n {
			e.data = make([]byte, 0, f.n)
		}
		for _, b := range f.bufs {
			e.data = append(e.data, b...)
		}
		for k := range 6 { // the device sends nothing shorter than an Ethernet header
			e.data[k], e.data[6+k] = e.data[6+k], e.data[k]
		}
		p.count++
		p.bytes += len(e.data)
	}
	p.full.Add(uint64(dropped)) //nolint:gosec // G115: not negative
	if dropped < len(frames) {
		signal(p.wake)
	}
	return dropped, nil
}

func (p *loopbackPort) Receive(frames []frame) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n < len(frames) && p.count > 0 {
		e := &p.slots[p.head]
		p.head = (p.head + 1) % len(p.slots)
		p.count--
		p.bytes -= len(e.data)
		if f := &frames[n]; fill(f.bufs, e.data) {
			f.hdr, f.n = e.hdr, len(e.data)
			n++
		} else {
			p.long.Add(1)
		}
	}
	return n, nil
}

// fill copies data into bufs if it fits.
func fill(bufs [][]byte, data []byte) bool {
	room := 0
	for _, b := range bufs {
		room += len(b)
	}
	if room < len(data) {
		return false
	}
	for _, b := range bufs {
		data = data[copy(b, data):]
		if len(data) == 0 {
			break
		}
	}
	return true
}

func (p *loopbackPort) Wait(ctx context.Context) error {
	p.mu.Lock()
	waiting := p.count > 0
	p.mu.Unlock()
	if waiting {
		return ctx.Err()
	}
	return waitToken(ctx, p.wake)
}

func (p *loopbackPort) Wake() { signal(p.wake) }
