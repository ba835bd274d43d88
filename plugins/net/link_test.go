package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

func (r *deviceRig) status() uint16 {
	return binary.LittleEndian.Uint16(r.d.ReadConfig()[virtio.NetConfigStatus:])
}

// link runs the command.
func (r *deviceRig) link(args string) linkResult {
	r.tb.Helper()
	v, err := r.d.Command(context.Background(), "link", []byte(args))
	if err != nil {
		r.tb.Fatal(err)
	}
	res, ok := v.(linkResult)
	if !ok {
		r.tb.Fatalf("%T", v)
	}
	return res
}

// cable is a back-end whose link the test sets.
type cable struct {
	backend
	up atomic.Bool
}

func (c *cable) Link() bool { return c.up.Load() }

func TestTheLinkIsTheUsersAndTheBackEnds(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	c := &cable{backend: r.d.be}
	c.up.Store(true)
	r.d.be = c
	changes := 0
	step := func(what string, want uint16, do func()) {
		t.Helper()
		do()
		changes++
		r.until(what, func() bool { return r.h.changed() == changes })
		if s := r.status(); s != want {
			t.Errorf("%s: status %#x, want %#x", what, s, want)
		}
		if up := r.d.rules.Load().up; up != (want&virtio.NetStatusLinkUp != 0) {
			t.Errorf("%s: up %v", what, up)
		}
	}
	if s := r.status(); s != virtio.NetStatusLinkUp {
		t.Errorf("status %#x at first", s)
	}
	step("the user's down", 0, func() {
		if res := r.link(`{"up":false}`); res != (linkResult{Up: false, Backend: true, Link: false}) {
			t.Errorf("%+v", res)
		}
	})
	c.up.Store(false)
	r.d.watch.changed()
	r.until("the back-end's link is known", func() bool {
		r.d.mu.Lock()
		defer r.d.mu.Unlock()
		return !r.d.linkUp
	})
	if res := r.link(`{"up":true}`); res != (linkResult{Up: true, Backend: false, Link: false}) {
		t.Errorf("%+v", res)
	}
	step("both are up again", virtio.NetStatusLinkUp|virtio.NetStatusAnnounce, func() { c.up.Store(true); r.d.watch.changed() })
	r.d.watch.changed() // nothing changed
	step("the back-end's down", virtio.NetStatusAnnounce, func() { c.up.Store(false); r.d.watch.changed() })
	step("the back-end's up", virtio.NetStatusLinkUp|virtio.NetStatusAnnounce, func() { c.up.Store(true); r.d.watch.changed() })
	r.start(2)
	step("the driver has announced itself", virtio.NetStatusLinkUp, func() {
		r.command(virtio.NetCtrlOK, virtio.NetCtrlAnnounce, virtio.NetCtrlAnnounceAck)
	})
}

func TestALinkThatIsDownCarriesNothing(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	r.start(0, 1)
	r.link(`{"up":false}`)
	// There are no buffers: frames are dropped all the same, not kept for later.
	for i := range 10 {
		r.inject(header{}, frameOf(i, 60))
	}
	r.until("the frames are dropped", func() bool { return r.statistic("rx0_dropped_link") == 10 })
	r.rings[1].post(t, withHeader(header{}, virtio.NetHeaderSize, frameOf(1, 60)), nil)
	r.rings[1].next(t)
	if n := r.statistic("tx0_dropped_link"); n != 1 || r.waiting() {
		t.Errorf("%d dropped", n)
	}
	r.link(`{"up":true}`)
	r.inject(header{}, frameOf(42, 60))
	for range 2 {
		r.rings[0].post(t, nil, nil, 1536)
	}
	if _, got := r.arrived(0, everything); !bytes.Equal(got, frameOf(42, 60)) {
		t.Error("another frame arrived")
	}
}

// A receive queue that waits for buffers hears of the link too.
func TestTheLinkGoesDownWhileTheQueueHasNoBuffers(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	r.start(0)
	r.inject(header{}, frameOf(1, 60))
	r.until("the queue waits", r.rings[0].idle)
	r.link(`{"up":false}`)
	r.until("the frame is dropped", func() bool { return r.statistic("rx0_dropped_link") == 1 })
}

func TestALinkThatStartsDown(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.Link = false
	r := newDeviceRig(t, cfg, everything)
	if s := r.status(); s != 0 {
		t.Errorf("status %#x", s)
	}
	if err := r.d.Reset(); err != nil {
		t.Fatal(err)
	}
	if s := r.status(); s != 0 {
		t.Errorf("status %#x after a reset", s)
	}
	r.link(`{"up":true}`)
	if err := r.d.Reset(); err != nil {
		t.Fatal(err)
	}
	if s := r.status(); s != virtio.NetStatusLinkUp {
		t.Errorf("status %#x: the driver's reset undid what the user did", s)
	}
}

func TestNoAnnouncementForADriverThatKnowsNone(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything&^virtio.FNetAnnounce)
	r.link(`{"up":false}`)
	r.link(`{"up":true}`)
	if s := r.status(); s != virtio.NetStatusLinkUp {
		t.Errorf("status %#x", s)
	}
}

func TestCommandsOfTheUserThatMakeNoSense(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	for _, c := range [][2]string{{"link", "{}"}, {"link", `{"up":"yes"}`}, {"link", `{"up":true,"x":1}`}, {"unplug", "{}"}} {
		if _, err := r.d.Command(context.Background(), c[0], []byte(c[1])); err == nil || !strings.Contains(err.Error(), c[0]) {
			t.Errorf("%s %s: %v", c[0], c[1], err)
		}
	}
}

func TestTheConfigurationSpace(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.MTU, cfg.Speed, cfg.QueuePairs = 9000, 25000, 3
	r := newDeviceRig(t, cfg, everything)
	b := r.d.ReadConfig()
	if len(b) != virtio.NetConfigSize || macAddress(b) != deviceMAC {
		t.Fatalf("% x", b)
	}
	le := binary.LittleEndian
	if s, p, m, v, d := le.Uint16(b[6:]), le.Uint16(b[8:]), le.Uint16(b[10:]), le.Uint32(b[12:]), b[16]; s != 1 || p != 3 || m != 9000 || v != 25000 || d != 1 {
		t.Errorf("status %d, pairs %d, mtu %d, speed %d, duplex %d", s, p, m, v, d)
	}
	d, _ := newTestDevice(t, deviceSettings())
	b = d.ReadConfig()
	if v, dup := le.Uint32(b[12:]), b[16]; v != virtio.NetSpeedUnknown || dup != virtio.NetDuplexUnknown {
		t.Errorf("speed %d, duplex %d: want unknown", v, dup)
	}
}

func TestALegacyDriverWritesItsAddress(t *testing.T) {
	t.Parallel()
	want := macAddress{2, 4, 6, 8, 10, 12}
	for name, c := range map[string]struct {
		f    virtio.Features
		want macAddress
	}{"legacy": {everything &^ virtio.FVersion1, want}, "modern": {everything, deviceMAC}} {
		r := newDeviceRig(t, deviceSettings(), c.f)
		for i, b := range want {
			if err := r.d.WriteConfig(i, []byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		for _, offset := range []int{6, 16, 17} {
			if err := r.d.WriteConfig(offset, make([]byte, virtio.NetConfigSize-offset)); err != nil {
				t.Fatal(err)
			}
		}
		if got := macAddress(r.d.ReadConfig()); got != c.want || r.d.rules.Load().filter.mac != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if err := r.d.Reset(); err != nil {
			t.Fatal(err)
		}
		if got := macAddress(r.d.ReadConfig()); got != deviceMAC {
			t.Errorf("%s: %v after a reset", name, got)
		}
	}
}
