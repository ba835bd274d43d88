package main

import (
	"context"
	"slices"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// popOld returns a chain of bytes as a crashed instance leaves it: it cannot be given back.
func popOld(t *testing.T, r *ring, contents []byte, size int, write bool) *virtq.Chain {
	t.Helper()
	r.post(contents, size, write)
	r.crash(t, 1)
	c, ok, err := r.Pop()
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	return c
}

// The driver may take back what there was to tell it (DEVICE_READY with value 0) after a control buffer was taken.
func TestAControlBufferIsNotLostWhenThereIsNothingToTell(t *testing.T) {
	t.Parallel()
	c := newTestConsole(t, settings{Backend: "null", Multiport: true})
	g := newGuest(t, c, virtio.FVersion1|virtio.FConsoleMultiport)
	r := g.rings[virtio.ConsoleQueueControlRx]
	if err := c.sendOne(r, popOld(t, r, nil, 64, true)); err != nil {
		t.Fatal(err)
	}
	if n := r.dev.State().InFlight; n != 0 {
		t.Errorf("%d chains are kept for good: the queue could not stop", n)
	}
}

func TestOutputThatTheTailHasNoRoomForIsCounted(t *testing.T) {
	t.Parallel()
	c := newTestConsole(t, settings{Backend: "null"})
	g := newGuest(t, c, virtio.FVersion1)
	p, r := c.ports[0], g.rings[1]
	p.tail = make([]byte, tailMax-10)
	if err := p.giveBack(r, popOld(t, r, randomBytes(1, 50), 50, false)); err != nil {
		t.Fatal(err)
	}
	if n := p.lost.Load(); n != 40 || len(p.tail) != tailMax {
		t.Errorf("%d bytes counted as lost, %d kept", n, len(p.tail))
	}
}

// A queue that is stopped before it came to what a former instance left answers that all the same, and loses none of it.
func TestAStopAtOnceLeavesNothingOfACrashedInstance(t *testing.T) {
	t.Parallel()
	c := newTestConsole(t, settings{Backend: "null", Multiport: true})
	g := newGuest(t, c, virtio.FVersion1|virtio.FConsoleMultiport)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	p := c.ports[0]
	for index, write := range map[int]bool{
		virtio.ConsoleQueueRx0: true, virtio.ConsoleQueueTx0: false, virtio.ConsoleQueueControlRx: true, virtio.ConsoleQueueControlTx: false,
	} {
		r := g.rings[index]
		for i := range byte(3) {
			r.post(randomBytes(i, 50), 50, write)
		}
		r.crash(t, 3)
		if err := c.runQueue(ended, r, index); err != nil {
			t.Fatal(err)
		}
		if s := r.dev.State(); s.InFlight != 0 || r.dev.Resubmitted() != 0 {
			t.Errorf("queue %d: %d chains are in flight, %d were never taken", index, s.InFlight, r.dev.Resubmitted())
		}
	}
	want := slices.Concat(randomBytes(0, 50), randomBytes(1, 50), randomBytes(2, 50))
	if p.out.Load() == 0 { // nothing went out: all waits, in order
		sameBytes(t, "output that waits", p.tail, want)
	} else if n := p.out.Load() + uint64(len(p.tail)); n != uint64(len(want)) {
		t.Errorf("%d bytes are out or wait, of %d", n, len(want))
	}
}
