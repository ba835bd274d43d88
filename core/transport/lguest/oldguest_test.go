package lguest

import (
	"strings"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// A guest before Linux 3.1 notifies each change of the status, and its features are final with DRIVER_OK.
func TestAnOldGuestStartsOnDriverOK(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, f9, nil, 8)
	r := newRig(t, 4, nil, d)
	for life := range 2 {
		r.status(0, 0)
		d.took()
		r.status(0, ack)
		sameCalls(t, "ACKNOWLEDGE", d.took())
		r.status(0, driver) // looks as if the features were final: none
		sameCalls(t, "DRIVER", d.took(), "features {}", "start 0 base=0")
		d.queues[0].next = 3 // it has taken something already
		r.accept(f9)
		r.status(0, driverOK)
		sameCalls(t, "DRIVER_OK", d.took(), "stop 0", "reset", "features {9}", "start 0 base=3")
		if life > 0 {
			sameCalls(t, "host of a later life", r.host.took())
		}
		r.host.took()
	}
	r.status(0, 0)
	r.status(0, driver)
	d.took()
	r.status(0, driverOK) // the same features
	sameCalls(t, "DRIVER_OK without features", d.took())
	r.status(0, driverOK)
	r.logged("says twice")
}

// Others wrote DRIVER_OK silently; the first kick started the device, also after a reset, when the host signals the eventfd.
func TestAnOldGuestStartsOnItsFirstKick(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, f9, nil, 8, 8)
	r := newRig(t, 4, nil, d)
	for life := range 4 {
		r.status(0, 0)
		d.took()
		r.accept(f9)
		r.page[offStatus] = byte(driverOK)
		r.notify(r.ringAt(1))
		until(t, "started", func() bool { return d.running(1) })
		r.status(0, 0) // waits until starting has ended
		if calls := d.took(); len(calls) < 3 || calls[0] != "features {9}" || calls[2] != "start 1 base=0" {
			t.Errorf("life %d: %q", life, calls)
		}
	}
	// A kick that means nothing does not keep the listener busy, and does not start anything.
	r.notify(r.ringAt(0))
	until(t, "the kick is heard", func() bool { return strings.Contains(r.log.String(), "notification before setup") })
	if d.running(0) {
		t.Error("started by a kick before DRIVER_OK")
	}
}
