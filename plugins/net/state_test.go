package main

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// fullState is a state in which everything is set.
func fullState() driverState {
	s := driverState{mac: macAddress{2, 9, 8, 7, 6, 5}, modes: modeAllMulti | modeNoUni, announce: true, linkDown: true, pairs: 2, offloads: virtio.FNetGuestCSum | virtio.FNetGuestTSO6}
	s.uni.count = copy(s.uni.addrs[:], addresses(addressMax))
	s.multi.all = true
	s.vlans.add(1)
	s.vlans.add(4095)
	return s
}

func TestAnotherInstanceContinuesWithWhatTheDriverSet(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.QueuePairs = 3
	f := everything
	former := newDeviceRig(t, cfg, f).start(6)
	former.command(virtio.NetCtrlOK, virtio.NetCtrlRx, virtio.NetCtrlRxPromisc, 0)
	former.command(virtio.NetCtrlOK, virtio.NetCtrlMQ, virtio.NetCtrlMQPairsSet, 2, 0)
	former.command(virtio.NetCtrlOK, virtio.NetCtrlMAC, virtio.NetCtrlMACAddrSet, 2, 0, 0, 0, 0, 9)
	former.command(virtio.NetCtrlOK, virtio.NetCtrlVLAN, virtio.NetCtrlVLANAdd, 9, 0)
	former.command(virtio.NetCtrlOK, virtio.NetCtrlOffloads, virtio.NetCtrlOffloadsSet, 2, 0, 0, 0, 0, 0, 0, 0)
	former.link(`{"up":false}`)
	former.link(`{"up":true}`)
	former.command(virtio.NetCtrlOK, virtio.NetCtrlAnnounce, virtio.NetCtrlAnnounceAck)
	former.link(`{"up":false}`)

	next := newDeviceRig(t, cfg, f)
	if err := next.d.RestoreState(former.h.lastSaved()); err != nil {
		t.Fatal(err)
	}
	want := former.currentState()
	want.announce = true // whoever is on the network hears where the address is now
	if got := next.currentState(); got != want {
		t.Errorf("continues with %+v", got)
	}
	r := next.d.rules.Load()
	if r.filter.modes != 0 || r.filter.mac != (macAddress{2, 0, 0, 0, 0, 9}) || !r.filter.vlans.has(9) || r.guest != virtio.FNetGuestCSum || r.up {
		t.Error("the loops do not know")
	}
	if next.h.changed() != 1 {
		t.Error("the driver is not told to announce itself")
	}
}

func TestASavedStateSurvivesItsBytes(t *testing.T) {
	t.Parallel()
	for _, s := range []driverState{{pairs: 1}, fullState()} {
		b := s.bytes()
		got, err := parseState(b, guestOffloads, 2)
		if err != nil || got != s {
			t.Errorf("%v: %+v", err, got)
		}
		for i := range b {
			if _, err := parseState(b[:i], guestOffloads, 2); !errors.Is(err, errState) {
				t.Fatalf("cut off at %d: %v", i, err)
			}
		}
		if _, err := parseState(append(slices.Clone(b), 0), guestOffloads, 2); err == nil {
			t.Error("bytes too many were taken")
		}
	}
}

func TestAStateOfAnotherDeviceIsRefused(t *testing.T) {
	t.Parallel()
	s := fullState()
	b := s.bytes()
	version := bytes.Clone(b)
	version[0]++
	for name, c := range map[string]struct {
		b        []byte
		features virtio.Features
		pairs    int
	}{
		"fewer pairs":      {b, guestOffloads, 1},
		"fewer features":   {b, guestOffloads &^ virtio.FNetGuestTSO6, 2},
		"another version":  {version, guestOffloads, 2},
		"nothing":          {nil, guestOffloads, 2},
		"something":        {bytes.Repeat([]byte{1}, 700), guestOffloads, 2},
		"too many entries": {append(bytes.Clone(b[:19]), addressMax+1), guestOffloads, 2},
	} {
		if _, err := parseState(c.b, c.features, c.pairs); !errors.Is(err, errState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d, _ := newTestDevice(t, deviceSettings())
	if err := d.SetFeatures(everything & d.Spec().Features); err != nil {
		t.Fatal(err)
	}
	before := d.state
	if err := d.RestoreState(version); err == nil || d.state != before {
		t.Errorf("%v", err)
	}
}

// The first queue saves, so that an instance that takes over knows that it does.
func TestAStateIsSavedBeforeTheFirstChain(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	if r.h.lastSaved() != nil {
		t.Error("saved before a queue runs: a former instance's state may not be restored yet")
	}
	r.start(1)
	r.until("the state is saved", func() bool { return r.h.lastSaved() != nil })
	r.stop()
	r.link(`{"up":false}`)
	s, err := parseState(r.h.lastSaved(), guestOffloads, 1)
	if err != nil || !s.linkDown {
		t.Errorf("the user's link is not saved: %v", err)
	}
}

func TestAStateThatCannotBeSavedIsTold(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	r.h.saveErr = errors.New("no room")
	r.start(2)
	r.command(virtio.NetCtrlOK, virtio.NetCtrlRx, virtio.NetCtrlRxAllMulti, 1)
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	if len(r.h.fails) == 0 || !errors.Is(r.h.fails[0], r.h.saveErr) {
		t.Errorf("told: %v", r.h.fails)
	}
}

func TestAResetForgetsWhatTheDriverSet(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.QueuePairs = 2
	d, _ := newTestDevice(t, cfg)
	want := d.state
	if err := d.SetFeatures(everything & (d.Spec().Features | virtio.FVersion1)); err != nil {
		t.Fatal(err)
	}
	s := fullState()
	if err := d.RestoreState(s.bytes()); err != nil {
		t.Fatal(err)
	}
	if err := d.Reset(); err != nil {
		t.Fatal(err)
	}
	want.linkDown = true // the user's
	if d.state != want || d.rules.Load().guest != 0 || d.rules.Load().headerSize != virtio.NetHeaderLegacySize {
		t.Errorf("%+v", d.state)
	}
}
