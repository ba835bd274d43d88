package main

import (
	"context"
	"sync/atomic"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// null is connected to nothing: what is sent is gone, and nothing comes.
type null struct{ ports []nullPort }

func newNull(pairs int) backend {
	n := &null{ports: make([]nullPort, pairs)}
	for i := range n.ports {
		n.ports[i].wake = make(chan struct{}, 1)
	}
	return n
}

func (n *null) Offer() offer {
	return offer{Host: hostOffloads, Guest: guestOffloads, Pairs: len(n.ports)}
}

func (n *null) SetOffloads(virtio.Features) error { return nil }
func (n *null) SetPairs(int) error                { return nil }
func (n *null) Port(i int) port                   { return &n.ports[i] }
func (n *null) Link() bool                        { return true }
func (n *null) Close() error                      { return nil }

func (n *null) Statistics() map[string]uint64 {
	var frames uint64
	for i := range n.ports {
		frames += n.ports[i].frames.Load()
	}
	return map[string]uint64{"null_frames": frames}
}

type nullPort struct {
	wake   chan struct{}
	frames atomic.Uint64
}

func (p *nullPort) Send(_ context.Context, frames []frame) (dropped int, err error) {
	p.frames.Add(uint64(len(frames)))
	return 0, nil
}

func (p *nullPort) Receive([]frame) (int, error) { return 0, nil }

func (p *nullPort) Wait(ctx context.Context) error { return waitToken(ctx, p.wake) }

func (p *nullPort) Wake() { signal(p.wake) }

// waitToken waits for a token in ch.
func waitToken(ctx context.Context, ch <-chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// signal leaves a token for whoever waits on ch.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
