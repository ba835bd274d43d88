package main

import (
	"encoding/binary"
	"testing"
)

func TestTheFilterLetsThroughWhatTheDriverAskedFor(t *testing.T) {
	t.Parallel()
	own, other, listed := macAddress{2, 0, 0, 0, 0, 1}, macAddress{2, 0, 0, 0, 0, 2}, macAddress{2, 0, 0, 0, 0, 3}
	group, listedGroup := macAddress{1, 0, 0x5e, 0, 0, 1}, macAddress{0x33, 0x33, 0, 0, 0, 1}
	broadcast := macAddress{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	table := func(m ...macAddress) (a addressTable) {
		a.count = copy(a.addrs[:], m)
		return a
	}
	base := filter{mac: own, uni: table(listed), multi: table(other, listedGroup), vlanFilter: true}
	base.vlans.add(7)
	base.vlans.add(4095)
	for name, c := range map[string]struct {
		modes byte
		vlan  int // -1: no tag
		pass  []macAddress
		drop  []macAddress
		alter func(f *filter)
	}{
		"addresses":          {vlan: -1, pass: []macAddress{own, listed, listedGroup, broadcast}, drop: []macAddress{other, group}},
		"promiscuous":        {modes: modePromisc | modeNoUni | modeNoMulti | modeNoBcast, vlan: 9, pass: []macAddress{own, other, group, broadcast}},
		"all unicast":        {modes: modeAllUni, vlan: -1, pass: []macAddress{own, other, listed}, drop: []macAddress{group}},
		"all multicast":      {modes: modeAllMulti, vlan: -1, pass: []macAddress{own, group}, drop: []macAddress{other}},
		"no unicast":         {modes: modeNoUni | modeAllUni, vlan: -1, pass: []macAddress{listedGroup, broadcast}, drop: []macAddress{own, listed}},
		"no multicast":       {modes: modeNoMulti | modeAllMulti, vlan: -1, pass: []macAddress{own, broadcast}, drop: []macAddress{group, listedGroup}},
		"no broadcast":       {modes: modeNoBcast | modeAllMulti, vlan: -1, pass: []macAddress{own, group}, drop: []macAddress{broadcast}},
		"a VLAN":             {vlan: 7, pass: []macAddress{own, broadcast}, drop: []macAddress{other}},
		"the last VLAN":      {vlan: 4095, pass: []macAddress{own}},
		"another VLAN":       {vlan: 8, drop: []macAddress{own, broadcast, listed}},
		"a priority":         {vlan: 0xe000, pass: []macAddress{own}},
		"VLAN, priority":     {vlan: 0xe007, pass: []macAddress{own}},
		"no VLAN filter":     {vlan: 8, pass: []macAddress{own}, alter: func(f *filter) { f.vlanFilter = false }},
		"too many addresses": {vlan: -1, pass: []macAddress{own, other}, drop: []macAddress{group}, alter: func(f *filter) { f.uni = addressTable{all: true} }},
		"too many groups":    {vlan: -1, pass: []macAddress{own, group}, drop: []macAddress{other}, alter: func(f *filter) { f.multi = addressTable{all: true} }},
	} {
		f := base
		f.modes = c.modes
		if c.alter != nil {
			c.alter(&f)
		}
		try := func(m macAddress) bool {
			var b [filterBytes]byte
			copy(b[:], m[:])
			binary.BigEndian.PutUint16(b[12:], 0x0800)
			if c.vlan >= 0 {
				binary.BigEndian.PutUint16(b[12:], etherTypeTag)
				binary.BigEndian.PutUint16(b[14:], uint16(c.vlan)) //nolint:gosec // G115: 16 bits
			}
			return f.wants(&b, 60)
		}
		for _, m := range c.pass {
			if !try(m) {
				t.Errorf("%s: %v was dropped", name, m)
			}
		}
		for _, m := range c.drop {
			if try(m) {
				t.Errorf("%s: %v passed", name, m)
			}
		}
	}
}

func TestVLANSetsForgetWhatIsRemoved(t *testing.T) {
	t.Parallel()
	var s vlanSet
	for id := range uint16(vlanIDs) {
		s.add(id)
		if !s.has(id) || s.has(id+1) {
			t.Fatal(id)
		}
		s.remove(id)
	}
	if s != (vlanSet{}) {
		t.Error("something is left")
	}
}
