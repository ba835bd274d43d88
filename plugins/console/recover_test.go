package main

import (
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
