package main

import (
	"context"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// backend is what the device is connected to. Its methods may be called from any goroutine.
type backend interface {
	// Offer tells what it can do. Constant for its life.
	Offer() offer
	// SetOffloads is told which offloads frames to the driver may use from now on: those of offer.Guest that the driver
	// accepted (VIRTIO 1.2, 5.1.6.3.1 and 5.1.6.5.6).
	SetOffloads(guest virtio.Features) error
	// SetPairs is told how many queue pairs the driver uses (5.1.6.5.5): ports from n on get no frames.
	SetPairs(n int) error
	// Port is the way of queue pair i; always the same one.
	Port(i int) port
	// Link tells whether there is somebody to talk to; up by itself. A change is told by the function that the back-end was
	// made with.
	Link() bool
	// Statistics are its counters, which only grow.
	Statistics() map[string]uint64
	Close() error
}

// offer is what a back-end can do.
type offer struct {
	// Host are the offloads it takes from the driver: FNetCSum, FNetHostTSO4, … Guest are those it can give to the driver:
	// FNetGuestCSum, FNetGuestTSO4, …
	Host, Guest virtio.Features
	// Pairs is how many queue pairs it can serve.
	Pairs int
	// MTU is the largest IP packet that comes and goes without segmentation offload, in bytes; 0: it does not matter.
	MTU int
}

// port is a queue pair's way to the network. Send is called by one goroutine, Receive and Wait by another one; they never wait for
// each other.
type port interface {
	// Send takes frames in order. It returns how many of them it dropped, which it has marked, and counted by reason.
	// It never waits for the other direction; it may wait for a peer, but not beyond sendPatience nor the end of ctx: then it drops.
	// An error is the back-end's, not a frame's: the frames count as dropped.
	Send(ctx context.Context, frames []frame) (dropped int, err error)
	// Receive fills frames' room and sets their n and hdr. It returns at once: 0 means that nothing is there. A frame longer than its
	// room is dropped and counted by the back-end.
	Receive(frames []frame) (int, error)
	// Wait returns when Receive may have something, when Wake was called since the last Wait, or when ctx has ended (its
	// error). It may return for nothing.
	Wait(ctx context.Context) error
	// Wake makes a Wait under way, or else the next one, return. Any goroutine.
	Wake()
}
