package main

import (
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestFeaturesThatNeedOthers(t *testing.T) {
	t.Parallel()
	for _, d := range dependencies() {
		rest := everything &^ d.oneOf
		if _, err := accepted(rest | virtio.FVersion1); err == nil {
			t.Errorf("%s: a modern driver may accept it without", d.name)
		}
		f, err := accepted(rest &^ virtio.FVersion1)
		if err != nil || f&d.feature != 0 {
			t.Errorf("%s: a legacy driver has %v, %v", d.name, f, err)
		}
		if _, err := accepted(everything); err != nil {
			t.Errorf("everything: %v", err)
		}
	}
}

func TestWhatIsOffered(t *testing.T) {
	t.Parallel()
	all := offer{Host: hostOffloads, Guest: guestOffloads, Pairs: 4}
	for name, c := range map[string]struct {
		change        func(s *settings)
		offer         offer
		mtu           int
		with, without virtio.Features
	}{
		"all": {offer: all, with: hostOffloads | guestOffloads | virtio.FNetCtrlOffloads | virtio.FNetMrgRxBuf | virtio.FNetAnnounce,
			without: virtio.FNetMQ | virtio.FNetMTU | virtio.FNetSpeedDuplex},
		"mtu":          {offer: all, mtu: 9000, with: virtio.FNetMTU},
		"pairs, speed": {change: func(s *settings) { s.QueuePairs, s.Speed = 2, 1000 }, offer: all, with: virtio.FNetMQ | virtio.FNetSpeedDuplex},
		"no offload":   {change: func(s *settings) { s.Offload = false }, offer: all, without: hostOffloads | guestOffloads | virtio.FNetCtrlOffloads},
		"short queues": {change: func(s *settings) { s.QueueSize = 32 }, offer: all, with: virtio.FNetGuestCSum | virtio.FNetHostTSO4,
			without: guestSegmentation | virtio.FNetGuestECN},
		"a back-end without checksums": {offer: offer{Host: virtio.FNetHostTSO4, Guest: virtio.FNetGuestTSO4, Pairs: 1},
			without: hostOffloads | guestOffloads | virtio.FNetCtrlOffloads},
		"a back-end with alien bits": {offer: offer{Host: ^virtio.Features(0), Guest: ^virtio.Features(0), Pairs: 1}, without: virtio.RingFeatures | 1<<40},
	} {
		s := deviceSettings()
		if c.change != nil {
			c.change(&s)
		}
		f := offered(&s, c.offer, c.mtu)
		if !f.Has(c.with) || f&c.without != 0 {
			t.Errorf("%s: %v: lacks %v, has %v", name, f, c.with&^f, f&c.without)
		}
	}
}
