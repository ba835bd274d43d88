package lguest

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

const (
	f0 = virtio.Features(1)
	f9 = virtio.Features(1) << 9
)

// ringAt is where the guest finds a ring of the first device.
func (r *rig) ringAt(ring int) guestmem.GPA { return r.record(0).Rings[ring].Address() }

// count reads an eventfd, waiting for at most a while; 0: nothing came.
func count(tb testing.TB, f *os.File, wait time.Duration) byte {
	tb.Helper()
	var fd int
	rc, err := f.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	if err := rc.Control(func(u uintptr) { fd = int(u) }); err != nil {
		tb.Fatal(err)
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // G115: a descriptor
	n, err := unix.Poll(p, int(wait.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return count(tb, f, wait)
	}
	if err != nil || n == 0 {
		return 0
	}
	var b [8]byte // somebody else may take it in between: the descriptor blocks
	if _, err := unix.Preadv2(fd, [][]byte{b[:]}, -1, unix.RWF_NOWAIT); err != nil && !errors.Is(err, unix.EAGAIN) {
		tb.Fatal(err)
	}
	return b[0]
}

// readable tells whether an eventfd has counted something, which stays there.
func readable(tb testing.TB, f *os.File) bool {
	tb.Helper()
	rc, err := f.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	n := 0
	if err := rc.Control(func(u uintptr) {
		p := []unix.PollFd{{Fd: int32(u), Events: unix.POLLIN}} //nolint:gosec // G115: a descriptor
		n, _ = unix.Poll(p, 0)
	}); err != nil {
		tb.Fatal(err)
	}
	return n == 1
}

func until(tb testing.TB, what string, f func() bool) {
	tb.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatal("never: " + what)
		}
	}
}

// The order of lguest_device.c: reset, features final, DRIVER_OK, reset; twice, on the same descriptors.
func TestADeviceLivesTwice(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, f0|f9|virtio.FVersion1, []byte{1, 2, 3}, 8, 16)
	r := newRig(t, 4, nil, d)
	ring0, ring1 := r.ringAt(0), r.ringAt(1)
	for life := range 3 {
		r.status(0, 0)
		if life == 0 {
			sameCalls(t, "first reset", d.took(), "reset")
		} else {
			sameCalls(t, "reset", d.took(), "stop 0", "stop 1", "reset")
		}
		r.page[offStatus] = byte(driver) // silently
		r.accept(f9)
		sameCalls(t, "before features are final", d.took())
		r.status(0, driver)
		sameCalls(t, "features final", d.took(), "features {9}", "start 0 base=0", "start 1 base=0")
		q := &d.queues[1]
		if l := RingLayout(ring1, 16); q.size != 16 || q.desc != l.Desc || q.avail != l.Avail || q.used != l.Used {
			t.Errorf("queue 1 is %+v, want %+v", q, l)
		}
		if life == 0 {
			sameCalls(t, "host", r.host.took(), "eventfd "+ring0.String(), "eventfd "+ring1.String())
		} else {
			sameCalls(t, "host of a later life", r.host.took()) // a second entry would never be signalled
		}
		r.page[offStatus] = byte(driverOK) // silently
		count(t, q.kick, time.Minute)      // of the start
		r.notify(ring1)
		if n := count(t, q.kick, time.Minute); n != 1 {
			t.Errorf("life %d: the plugin saw %d kicks, want 1", life, n)
		}
		// What a guest and a device leave behind is gone after the reset, and only then.
		b, err := r.mem.Slice(ring0, int(RingLayout(ring0, 8).Bytes())) //nolint:gosec // G115: small
		if err != nil {
			t.Fatal(err)
		}
		copy(b, bytes.Repeat([]byte{0xee}, len(b)))
		d.queues[0].next = 77
	}
	r.status(0, 0)
	for _, c := range d.queues[0].memoryWhenReleased {
		if c != 0xee {
			t.Fatal("the ring was cleared before the queue had stopped")
		}
	}
	b, err := r.mem.Slice(ring0, int(RingLayout(ring0, 8).Bytes())) //nolint:gosec // G115: small
	if err != nil || len(bytes.Trim(b, "\x00")) != 0 {
		t.Errorf("ring not cleared, %v", err)
	}
	if rec := r.record(0); rec.Accepted() != 0 || rec.Offered() != f0|f9 {
		t.Errorf("after the reset: offered %v, accepted %v", rec.Offered(), rec.Accepted())
	}
	if d.queues[1].started != 3 {
		t.Errorf("started %d times", d.queues[1].started)
	}
}

func TestKicksReachThePluginAlsoThroughTheLauncher(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, 0, nil, 8)
	r := newRig(t, 4, nil, d)
	r.host.fail = errors.New("no more eventfds")
	r.status(0, driver)
	r.logged("kicks pass through the launcher")
	if !d.running(0) {
		t.Fatal("not started")
	}
	count(t, d.queues[0].kick, time.Minute)
	r.notify(r.ringAt(0))
	if n := count(t, d.queues[0].kick, time.Minute); n != 1 {
		t.Errorf("%d kicks, want 1", n)
	}
}

func TestInterruptsAreRelayed(t *testing.T) {
	t.Parallel()
	a, b := newFake(t, "a", virtio.IDBlock, 0, nil, 8), newFake(t, "b", virtio.IDConsole, 0, nil, 8, 8)
	r := newRig(t, 4, nil, a, b)
	for _, c := range []struct {
		f    *os.File
		want uint32
	}{{b.queues[1].call, 3}, {a.queues[0].call, 1}, {b.queues[0].call, 2}, {b.queues[1].call, 3}} {
		if _, err := c.f.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		select {
		case irq := <-r.host.irqs:
			if irq != c.want {
				t.Errorf("interrupt %d, want %d", irq, c.want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("interrupt %d never came", c.want)
		}
	}
}

// irqfdHost raises interrupts by itself.
type irqfdHost struct {
	*fakeHost
	fds map[uint32]int
}

func (h irqfdHost) IRQFD(irq uint32, fd int) error {
	h.fds[irq] = fd
	return nil
}

func TestAHostThatRaisesInterruptsIsNotAsked(t *testing.T) {
	t.Parallel()
	d := newFake(t, "a", virtio.IDConsole, 0, nil, 8, 8)
	fds := map[uint32]int{}
	r := newRig(t, 4, func(h *fakeHost) Requests { return irqfdHost{h, fds} }, d)
	for irq := range uint32(2) {
		if _, err := d.queues[irq].call.Write([]byte{5, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		var b [8]byte
		if _, err := unix.Read(fds[irq+1], b[:]); err != nil || b[0] != 5 {
			t.Errorf("irq %d: the host read %v, %v", irq+1, b, err)
		}
	}
	select {
	case irq := <-r.host.irqs:
		t.Errorf("asked for interrupt %d", irq)
	default:
	}
}

func TestFeaturesThatWereNotOfferedAreRefused(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, f9, nil, 8)
	r := newRig(t, 4, nil, d)
	r.accept(f9 | f0)
	r.status(0, driver)
	r.logged("device=vda error=\"driver accepts features {0}, which the device does not offer\"")
	sameCalls(t, "calls", d.took())
	r.page[offStatus] = byte(driverOK)
	r.notify(r.ringAt(0))
	sameCalls(t, "kicked", d.took())
	r.accept(f9) // the driver thinks better of it
	r.status(0, driver)
	if !d.running(0) {
		t.Error("not started after the features were mended")
	}
}

func TestFailedIsAReset(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, 0, nil, 8)
	r := newRig(t, 4, nil, d)
	r.status(0, driver|virtio.StatusFailed)
	sameCalls(t, "not running", d.took())
	r.status(0, driver)
	d.took()
	r.status(0, driverOK|virtio.StatusFailed)
	sameCalls(t, "running", d.took(), "stop 0", "reset")
	r.logged("gave up")
	if d.status != driverOK|virtio.StatusFailed {
		t.Errorf("status %v", d.status)
	}
	r.notify(r.ringAt(0)) // must not start it
	until(t, "the kick is heard", func() bool { return strings.Contains(r.log.String(), "notification before setup") })
	if d.running(0) {
		t.Error("a kick started a device that had failed")
	}
}

func TestFeaturesFinalTwiceStopsTheDeviceUntilItIsReset(t *testing.T) {
	t.Parallel()
	d, other := newFake(t, "vda", virtio.IDBlock, 0, nil, 8), newFake(t, "vdb", virtio.IDBlock, 0, nil, 8)
	r := newRig(t, 4, nil, d, other)
	r.status(0, driver)
	r.status(1, driver)
	d.took()
	r.status(0, driver)
	r.logged("driver says twice that its features are final: device stopped until it is reset: device=vda")
	sameCalls(t, "second time", d.took(), "stop 0")
	r.status(0, driverOK)
	r.bus.Notify(t.Context(), r.ringAt(0))
	sameCalls(t, "before the reset", d.took())
	r.logged("waits for a reset")
	if !other.running(0) {
		t.Error("the other device stopped too")
	}
	r.status(0, 0)
	r.status(0, driver)
	if !d.running(0) || d.queues[0].started != 2 {
		t.Error("not running after a reset")
	}
}

func TestANotificationBeforeSetupIsIgnored(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, 0, nil, 8)
	r := newRig(t, 4, nil, d)
	r.page[offStatus] = byte(driver)
	r.notify(r.ringAt(0))
	r.logged("notification before setup: ignored: device=vda ring=0")
	sameCalls(t, "calls", d.took())
}

// While the plugin serves a queue, nobody else takes its kicks, whatever the device went through before.
func TestKicksOfARunningQueueAreThePluginsAlone(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, 0, nil, 8)
	r := newRig(t, 4, nil, d)
	ring := r.ringAt(0)
	for range 50 {
		r.status(0, 0)
		r.status(0, driver)
		count(t, d.queues[0].kick, time.Minute)
		r.notify(ring)
		for range 300 { // nobody takes it, not even for a moment
			if p := readable(t, d.queues[0].kick); !p {
				t.Fatal("the kick was gone")
			}
		}
		if n := count(t, d.queues[0].kick, time.Minute); n != 1 {
			t.Fatalf("the plugin saw %d kicks, want 1", n)
		}
	}
}

func TestAKickFromBeforeAResetIsForgotten(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, 0, nil, 8)
	r := newRig(t, 4, nil, d)
	r.host.fail = errors.New("no eventfds, so no listener that would take it")
	r.status(0, driver)
	r.notify(r.ringAt(0))
	r.status(0, 0)
	if readable(t, d.queues[0].kick) {
		t.Error("still there")
	}
}

func TestADeviceThatCannotStartWaitsForAReset(t *testing.T) {
	t.Parallel()
	d := newFake(t, "con0", virtio.IDConsole, 0, nil, 8, 8)
	r := newRig(t, 4, nil, d)
	d.fail["start 1 base=0"] = errors.New("no such luck")
	r.status(0, driver)
	r.logged("device not started; it waits for a reset: device=con0 error=\"ring 1: no such luck\"")
	if d.running(0) || d.running(1) {
		t.Error("half of it runs")
	}
	delete(d.fail, "start 1 base=0")
	r.status(0, 0)
	r.status(0, driver)
	if !d.running(0) || !d.running(1) {
		t.Error("not started after a reset")
	}
}

func TestTheConfigurationSpaceInThePageFollowsTheDevice(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, f9, []byte{1, 2, 3, 4}, 8)
	r := newRig(t, 4, nil, d)
	d.changeConfig([]byte{9, 8, 7, 6})
	if c := r.record(0).Config; !bytes.Equal(c, []byte{9, 8, 7, 6}) {
		t.Errorf("config %v", c)
	}
	d.config = []byte{5, 5, 5, 5} // as an answer to SetFeatures, of which nobody is told
	r.status(0, driver)
	if c := r.record(0).Config; !bytes.Equal(c, []byte{5, 5, 5, 5}) {
		t.Errorf("config after the features %v", c)
	}
	d.onReset()
	r.logged("the lguest bus cannot tell its driver")
	changed := d.onConfig
	if err := r.bus.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(r.page)
	d.config = []byte{0, 0, 0, 1}
	changed(d.config) // one that was under way
	if !bytes.Equal(before, r.page) {
		t.Error("guest memory was written after Release")
	}
}

func TestAGuestCannotFloodTheLog(t *testing.T) {
	t.Parallel()
	r := newRig(t, 4, nil, newFake(t, "vda", virtio.IDBlock, 0, nil, 8))
	before := bytes.Count([]byte(r.log.String()), []byte("\n"))
	for range 2000 {
		r.notify(r.ringAt(0))
	}
	if n := bytes.Count([]byte(r.log.String()), []byte("\n")) - before; n == 0 || n > 20*limiterBurst {
		t.Errorf("%d lines", n)
	}
	l := &limiter{}
	now := time.Unix(1000, 0)
	for i := range limiterBurst + 5 {
		if _, ok := l.allow(now); ok != (i < limiterBurst) {
			t.Errorf("message %d: %v", i, ok)
		}
	}
	if dropped, ok := l.allow(now.Add(limiterTime)); !ok || dropped != 5 {
		t.Errorf("a second later: %d dropped, %v", dropped, ok)
	}
}
