package main

import (
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk"
)

func TestSettingsThatMakeNoDevice(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(s *settings)
		want   string // in the message
	}{
		"queue size":     {func(s *settings) { s.QueueSize = 100 }, "100 is not a power of two"},
		"mtu":            {func(s *settings) { s.MTU = 67 }, "67 is less than the 68"},
		"mac":            {func(s *settings) { s.MAC = "52:54" }, "six bytes"},
		"long mac":       {func(s *settings) { s.MAC = "52:54:00:00:00:00:00:01" }, "six bytes"},
		"group's mac":    {func(s *settings) { s.MAC = "53:54:00:00:00:01" }, "first byte must be even"},
		"no mac":         {func(s *settings) { s.MAC = "00:00:00:00:00:00" }, "address of nobody"},
		"subnet":         {func(s *settings) { s.Subnet = "10.0.0.0/24" }, "setting of back-end user"},
		"forward":        {func(s *settings) { s.Forward = []string{"tcp:1:2"} }, "setting of back-end user"},
		"restrict":       {func(s *settings) { s.Restrict = true }, "setting of back-end user"},
		"tap":            {func(s *settings) { s.Tap.Name = "tap0" }, `set backend = "tap"`},
		"bridge":         {func(s *settings) { s.Bridge = "br0" }, "setting of back-end tap"},
		"address":        {func(s *settings) { s.Address = []string{"10.0.0.1/24"} }, "setting of back-end tap"},
		"connect":        {func(s *settings) { s.Connect = "tcp:x:1" }, "setting of back-end socket"},
		"bind":           {func(s *settings) { s.Bind = "tcp:x:1" }, "setting of back-end socket"},
		"connect of tap": {func(s *settings) { s.Backend, s.Connect = "tap", "tcp:x:1" }, "the back-end is tap"},
	} {
		s := deviceSettings()
		c.change(&s)
		h := &recordingHost{}
		d, err := newDevice(&sdk.Env{Name: "eth0", Log: hclog.NewNullLogger()}, h, &s)
		if err == nil {
			_ = d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// narrow is a back-end that can do little.
type narrow struct{ backend }

func (narrow) Offer() offer { return offer{Pairs: 2, MTU: 1400} }

func TestSettingsThatTheBackEndCannotHold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(s *settings)
		want   string
		mtu    int
	}{
		"pairs":       {change: func(s *settings) { s.QueuePairs = 3 }, want: "3 queue pairs"},
		"mtu":         {change: func(s *settings) { s.MTU = 1500 }, want: "more than the 1400"},
		"its mtu":     {change: func(*settings) {}, mtu: 1400},
		"smaller mtu": {change: func(s *settings) { s.MTU = 1300 }, mtu: 1300},
	} {
		s := deviceSettings()
		c.change(&s)
		d := &device{cfg: &s, be: narrow{newLoopback(3)}, host: &recordingHost{}}
		err := d.prepare()
		if c.want == "" && (err != nil || d.mtu != c.mtu) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: mtu %d, %v", name, d.mtu, err)
		}
	}
}

func TestTheAddressOfADevice(t *testing.T) {
	t.Parallel()
	h := &recordingHost{}
	one, err := address("eth0", [16]byte{1, 2, 3, 4, 5, 6}, "", h)
	if err != nil || one != (macAddress{0x56, 1, 2, 3, 4, 5}) || len(h.notices) != 0 {
		t.Errorf("of an identity: %v, %v, %v", one, err, h.notices)
	}
	named, err := address("eth0", [16]byte{}, "", h)
	other, _ := address("eth1", [16]byte{}, "", h)
	again, _ := address("eth0", [16]byte{}, "", h)
	if err != nil || named == other || named != again || named.multicast() || len(h.notices) != 3 || !strings.Contains(h.notices[0], named.String()) {
		t.Errorf("of a name: %v, %v, %v, %v", named, other, err, h.notices)
	}
	set, err := address("eth0", [16]byte{1}, "52:54:00:12:34:56", h)
	if err != nil || set != (macAddress{0x52, 0x54, 0, 0x12, 0x34, 0x56}) {
		t.Errorf("of the settings: %v, %v", set, err)
	}
}
