package mmio_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/transport/mmio"
)

// The machine ends while a plugin answers to DRIVER_OK. Whoever has closed the registers may give the device to the next
// guest: nothing of the former one may reach it any more.
func TestNothingOfAnEndedGuestReachesTheDevice(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"features", "start"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			d := newFake()
			ctx, cancel := context.WithCancel(t.Context())
			g := newGuest(t, d, false, func(o *mmio.Options) { o.Context = ctx })
			entered, release := d.hold(what)
			var cpu sync.WaitGroup
			cpu.Go(func() { _ = g.linux() })
			within(t, "the device's call", func() { <-entered })
			cancel()
			within(t, "the virtual CPU", cpu.Wait)
			closed := make(chan struct{})
			go func() { defer close(closed); g.r.Close() }()
			again := func() { // the device is another guest's now, or nobody's
				d.set(func() { d.status, d.calls, d.queues = 0, nil, make([]area, len(d.sizes)) })
			}
			select {
			case <-closed: // it did not wait for the call
				again()
				release()
			case <-time.After(50 * time.Millisecond):
				release()
				within(t, "Close", func() { <-closed })
				again()
			}
			for range 100 {
				d.mu.Lock()
				status, calls := d.status, slices.Clone(d.calls)
				d.mu.Unlock()
				if status != 0 || len(calls) != 0 {
					t.Fatalf("after Close: status %#x, calls %q", status, calls)
				}
				time.Sleep(time.Millisecond) // the time in which something might come
			}
		})
	}
}
