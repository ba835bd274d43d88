package main

import (
	"context"
	"testing"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// bareRing is a heapRing without what the tests note about it: it allocates nothing.
type bareRing struct{ *heapRing }

func (r bareRing) Flush() error { r.dev.Flush(); return nil }

// sink is a port that takes and gives frames without touching them.
type sink struct {
	nullPort
	give int // frames to give at each Receive, of 60 bytes
	sent int
}

func (s *sink) Send(_ context.Context, frames []frame) (int, error) {
	s.sent += len(frames)
	return 0, nil
}

func (s *sink) Receive(frames []frame) (int, error) {
	n := min(len(frames), s.give)
	for i := range n {
		frames[i].n, frames[i].hdr = 60, header{}
	}
	return n, nil
}

func TestNoPacketCostsAnAllocation(t *testing.T) { //nolint:paralleltest // it counts the process's allocations
	for name, f := range map[string]virtio.Features{"merged": everything, "one each": everything &^ guestSegmentation &^ virtio.FNetGuestECN, "legacy": 0} {
		r := newDeviceRig(t, deviceSettings(), f)
		port := &sink{give: 8}
		r.d.pairs[0].port = port
		const batch = 16
		chains := make([][]driver.Buffer, batch)
		rx, tx := bareRing{r.rings[0]}, bareRing{r.rings[1]}
		for i := range chains {
			chains[i] = rx.buffers(t, 1536)
		}
		receiver, sender := newReceiver(r.d, &r.d.pairs[0], rx), newSender(r.d, &r.d.pairs[0], tx)
		ctx := context.Background()
		receive := func() {
			for range batch {
				rx.drv.Add(nil, chains[0])
			}
			rx.drv.Publish()
			for len(receiver.held) > 0 || rx.dev.HasMore() {
				if _, err := receiver.serveSome(ctx); err != nil {
					t.Fatal(err)
				}
			}
			_ = receiver.flush()
			for _, _, ok := rx.drv.Used(); ok; _, _, ok = rx.drv.Used() {
				continue
			}
		}
		if n := testing.AllocsPerRun(50, receive); n != 0 {
			t.Errorf("%s: %d packets received: %v allocations", name, batch, n)
		}
		out := tx.buffers(t, 12, 60)
		send := func() {
			for range batch {
				tx.drv.Add(out, nil)
			}
			tx.drv.Publish()
			n, err := sender.pop()
			if err != nil || n != batch {
				t.Fatal(n, err)
			}
			if err := sender.transmit(ctx, sender.chains[:n]); err != nil {
				t.Fatal(err)
			}
			for _, _, ok := tx.drv.Used(); ok; _, _, ok = tx.drv.Used() {
				continue
			}
		}
		if n := testing.AllocsPerRun(50, send); n != 0 {
			t.Errorf("%s: %d packets sent: %v allocations", name, batch, n)
		}
		if port.sent < batch*50 || r.statistic("rx0_packets") < batch*25 {
			t.Errorf("%s: %d sent, %d received", name, port.sent, r.statistic("rx0_packets"))
		}
		_ = giveBack(rx, receiver.held)
	}
}
