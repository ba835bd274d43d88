package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// control is the index of the control queue.
func (r *deviceRig) control() int {
	for i := range r.rings {
		if kind, _ := r.d.role(i); kind == roleCtrl {
			return i
		}
	}
	r.tb.Fatal("there is no control queue")
	return 0
}

// command sends a command and wants an answer.
func (r *deviceRig) command(want byte, class, cmd byte, data ...byte) {
	r.tb.Helper()
	r.commandIn(want, nil, class, cmd, data...)
}

func (r *deviceRig) commandIn(want byte, cuts []int, class, cmd byte, data ...byte) {
	r.tb.Helper()
	q := r.rings[r.control()]
	q.post(r.tb, append([]byte{class, cmd}, data...), cuts, 1)
	u := q.next(r.tb)
	if u.written != 1 || u.writable[0] != want {
		r.tb.Fatalf("command %d.%d % x: %d bytes, answer %d: want %d", class, cmd, data[:min(len(data), 20)], u.written, u.writable[0], want)
	}
}

func (r *deviceRig) currentState() driverState {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	return r.d.state
}

// tables is the data of VIRTIO_NET_CTRL_MAC_TABLE_SET.
func tables(uni, multi []macAddress) (b []byte) {
	for _, t := range [][]macAddress{uni, multi} {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(t))) //nolint:gosec // G115: small
		for _, m := range t {
			b = append(b, m[:]...)
		}
	}
	return b
}

func addresses(n int) (all []macAddress) {
	for i := range n {
		all = append(all, macAddress{2, 0, 0, 0, byte(i >> 8), byte(i)})
	}
	return all
}

func TestCommandsDoWhatTheySayInAnyLayout(t *testing.T) {
	t.Parallel()
	const ok = virtio.NetCtrlOK
	for _, cuts := range [][]int{nil, {1}, {2}, {1, 1, 3}, {3, 1}} {
		t.Run(fmt.Sprint(cuts), func(t *testing.T) {
			t.Parallel()
			cfg := deviceSettings()
			cfg.QueuePairs = 4
			r := newDeviceRig(t, cfg, everything|virtio.FIndirectDesc).start(8)
			do := func(class, cmd byte, data ...byte) { t.Helper(); r.commandIn(ok, cuts, class, cmd, data...) }
			for mode := range byte(6) {
				do(virtio.NetCtrlRx, mode, 1)
			}
			do(virtio.NetCtrlRx, virtio.NetCtrlRxPromisc, 0)
			if s := r.currentState(); s.modes != modesAll&^modePromisc {
				t.Errorf("modes %#x", s.modes)
			}
			do(virtio.NetCtrlMAC, virtio.NetCtrlMACTableSet, tables(addresses(2), addresses(3))...)
			if s := r.currentState(); s.uni.count != 2 || s.multi.count != 3 || s.uni.all || s.multi.addrs[2] != (macAddress{2, 0, 0, 0, 0, 2}) {
				t.Errorf("tables %+v", s.uni)
			}
			told := r.h.changed()
			do(virtio.NetCtrlMAC, virtio.NetCtrlMACAddrSet, 2, 1, 2, 3, 4, 5)
			if r.h.changed() != told+1 {
				t.Error("the configuration space's copy keeps the old address")
			}
			if c := r.d.ReadConfig(); macAddress(c) != (macAddress{2, 1, 2, 3, 4, 5}) || r.d.rules.Load().filter.mac != (macAddress{2, 1, 2, 3, 4, 5}) {
				t.Errorf("address % x", c[:6])
			}
			do(virtio.NetCtrlVLAN, virtio.NetCtrlVLANAdd, 5, 0)
			do(virtio.NetCtrlVLAN, virtio.NetCtrlVLANAdd, 0xff, 0x0f)
			do(virtio.NetCtrlVLAN, virtio.NetCtrlVLANDel, 5, 0)
			if s := r.currentState(); s.vlans.has(5) || !s.vlans.has(0xfff) {
				t.Error("VLANs")
			}
			do(virtio.NetCtrlMQ, virtio.NetCtrlMQPairsSet, 3, 0)
			if s := r.currentState(); s.pairs != 3 {
				t.Errorf("%d pairs", s.pairs)
			}
			do(virtio.NetCtrlOffloads, virtio.NetCtrlOffloadsSet, byte(virtio.FNetGuestCSum), 0, 0, 0, 0, 0, 0, 0)
			if g := r.d.rules.Load().guest; g != virtio.FNetGuestCSum {
				t.Errorf("offloads %v", g)
			}
			if l := r.d.rules.Load().longest; l != mtuDefault+18 {
				t.Errorf("frames up to %d without segmentation offload", l)
			}
			do(virtio.NetCtrlAnnounce, virtio.NetCtrlAnnounceAck)
			if n := r.statistic("control_ok"); n != 15 {
				t.Errorf("%d commands counted", n)
			}
			s, err := parseState(r.h.lastSaved(), guestOffloads, 4)
			if err != nil || s != r.currentState() {
				t.Errorf("the state was not saved: %v", err)
			}
		})
	}
}

func TestCommandsThatMakeNoSenseAreRefusedAndChangeNothing(t *testing.T) {
	t.Parallel()
	many := binary.LittleEndian.AppendUint32(nil, 1<<31)
	short := tables(addresses(3), addresses(1))
	for name, c := range map[string]struct {
		data []byte // with class and command
		f    virtio.Features
	}{
		"nothing":                   {data: nil},
		"half a command":            {data: []byte{0}},
		"unknown class":             {data: []byte{99, 0, 1}},
		"unknown mode":              {data: []byte{0, 6, 1}},
		"mode without a value":      {data: []byte{0, 0}},
		"mode of two values":        {data: []byte{0, 1, 1, 1}},
		"mode neither on nor off":   {data: []byte{0, 1, 2}},
		"mode not negotiated":       {data: []byte{0, 1, 1}, f: everything &^ virtio.FNetCtrlRx},
		"extra mode not negotiated": {data: []byte{0, 2, 1}, f: everything &^ virtio.FNetCtrlRxExtra},
		"tables cut off":            {data: append([]byte{1, 0}, short[:len(short)-1]...)},
		"tables and more":           {data: append([]byte{1, 0}, append(short, 0)...)},
		"a table of millions":       {data: append([]byte{1, 0}, many...)},
		"a second one of millions":  {data: append([]byte{1, 0, 0, 0, 0, 0}, many...)},
		"one table":                 {data: []byte{1, 0, 0, 0, 0, 0}},
		"half an address":           {data: []byte{1, 1, 2, 3, 4}},
		"a group's address":         {data: []byte{1, 1, 3, 0, 0, 0, 0, 1}},
		"address not negotiated":    {data: []byte{1, 1, 2, 0, 0, 0, 0, 1}, f: everything &^ virtio.FNetCtrlMACAddr},
		"MAC command 2":             {data: []byte{1, 2, 2, 0, 0, 0, 0, 1}},
		"VLAN 4096":                 {data: []byte{2, 0, 0, 0x10}},
		"half a VLAN":               {data: []byte{2, 0, 1}},
		"VLAN command 2":            {data: []byte{2, 2, 1, 0}},
		"VLAN not negotiated":       {data: []byte{2, 0, 1, 0}, f: everything &^ virtio.FNetCtrlVLAN},
		"announce command 1":        {data: []byte{3, 1}},
		"announce with data":        {data: []byte{3, 0, 0}},
		"announce not negotiated":   {data: []byte{3, 0}, f: everything &^ virtio.FNetAnnounce},
		"no pairs":                  {data: []byte{4, 0, 0, 0}},
		"too many pairs":            {data: []byte{4, 0, 3, 0}},
		"half a number of pairs":    {data: []byte{4, 0, 1}},
		"MQ command 1":              {data: []byte{4, 1, 1, 0}},
		"MQ not negotiated":         {data: []byte{4, 0, 1, 0}, f: everything &^ virtio.FNetMQ},
		"offloads cut off":          {data: []byte{5, 0, 2, 0, 0, 0}},
		"an offload of the device":  {data: []byte{5, 0, 1, 0, 0, 0, 0, 0, 0, 0}},
		"TSO without a checksum":    {data: []byte{5, 0, 0x80, 0, 0, 0, 0, 0, 0, 0}},
		"offload not negotiated":    {data: []byte{5, 0, 2, 1, 0, 0, 0, 0, 0, 0}, f: everything &^ virtio.FNetGuestTSO6},
		"offloads not negotiated":   {data: []byte{5, 0, 2, 0, 0, 0, 0, 0, 0, 0}, f: everything &^ virtio.FNetCtrlOffloads},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := deviceSettings()
			cfg.QueuePairs = 2
			f := everything
			if c.f != 0 {
				f = c.f
			}
			r := newDeviceRig(t, cfg, f)
			at := r.control()
			r.start(at)
			before := r.currentState()
			r.until("the first state is saved", func() bool { return r.h.saves() == 1 })
			r.rings[at].post(t, c.data, nil, 1, 7)
			if u := r.rings[at].next(t); u.written != 1 || u.writable[0] != virtio.NetCtrlErr {
				t.Errorf("%d bytes, answer %d", u.written, u.writable[0])
			}
			if s := r.currentState(); s != before {
				t.Error("the state changed")
			}
			if n := r.statistic("control_refused"); n != 1 {
				t.Errorf("%d refused", n)
			}
			if r.h.saves() != 1 {
				t.Error("it was saved")
			}
			// It lives on.
			r.command(virtio.NetCtrlErr, 77, 0)
		})
	}
}

func TestACommandWithoutRoomForItsAnswerIsNone(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything).start(2)
	r.rings[2].post(t, []byte{virtio.NetCtrlMAC, virtio.NetCtrlMACAddrSet, 2, 0, 0, 0, 0, 9}, nil)
	if u := r.rings[2].next(t); u.written != 0 {
		t.Errorf("%d bytes", u.written)
	}
	if r.currentState().mac != deviceMAC {
		t.Error("it was carried out")
	}
}

func TestMoreAddressesThanFitLetAllThrough(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything).start(2)
	r.command(virtio.NetCtrlOK, virtio.NetCtrlMAC, virtio.NetCtrlMACTableSet, tables(addresses(5), addresses(5))...)
	r.command(virtio.NetCtrlOK, virtio.NetCtrlMAC, virtio.NetCtrlMACTableSet, tables(addresses(addressMax), addresses(addressMax+1))...)
	s := r.currentState()
	if saved, err := parseState(r.h.lastSaved(), guestOffloads, 1); err != nil || saved != s {
		t.Errorf("another state was saved: %v", err)
	}
	if s.uni.all || s.uni.count != addressMax || !s.multi.all {
		t.Errorf("unicast %v %d, multicast %v", s.uni.all, s.uni.count, s.multi.all)
	}
	r.command(virtio.NetCtrlOK, virtio.NetCtrlMAC, virtio.NetCtrlMACTableSet, tables(nil, nil)...)
	if s := r.currentState(); s.uni.count != 0 || s.multi.all {
		t.Error("the tables are not empty again")
	}
}

// The control queue comes after all pairs, but only if the driver knows that there are several (5.1.2).
func TestThePlaceOfTheControlQueue(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pairs int
		f     virtio.Features
		want  []role
	}{
		"one pair":           {1, everything, []role{roleRx, roleTx, roleCtrl}},
		"one pair, no ctrl":  {1, everything &^ (virtio.FNetCtrlVQ | virtio.FVersion1), []role{roleRx, roleTx, roleNone}},
		"two pairs":          {2, everything, []role{roleRx, roleTx, roleRx, roleTx, roleCtrl}},
		"two pairs, no MQ":   {2, everything &^ virtio.FNetMQ, []role{roleRx, roleTx, roleCtrl, roleNone, roleNone}},
		"two pairs, no ctrl": {2, everything &^ (virtio.FNetCtrlVQ | virtio.FVersion1), []role{roleRx, roleTx, roleNone, roleNone, roleNone}},
		"nothing negotiated": {2, virtio.FVersion1, []role{roleRx, roleTx, roleNone, roleNone, roleNone}},
	} {
		cfg := deviceSettings()
		cfg.QueuePairs = c.pairs
		r := newDeviceRig(t, cfg, c.f)
		if n := len(r.d.Spec().QueueSizes); n != len(c.want) {
			t.Errorf("%s: %d queues", name, n)
		}
		for i, want := range c.want {
			if got, _ := r.d.role(i); got != want {
				t.Errorf("%s: queue %d is %d, want %d", name, i, got, want)
			}
		}
	}
}

// stubborn is a back-end that refuses what the driver sets.
type stubborn struct {
	backend
	offloads []virtio.Features
}

func (s *stubborn) SetOffloads(f virtio.Features) error {
	s.offloads = append(s.offloads, f)
	if f == virtio.FNetGuestCSum {
		return errors.New("it does not go")
	}
	return nil
}

func TestACommandThatTheBackEndRefusesChangesNothing(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	b := &stubborn{backend: r.d.be}
	r.d.be = b
	before := r.currentState()
	r.start(2)
	r.command(virtio.NetCtrlErr, virtio.NetCtrlOffloads, virtio.NetCtrlOffloadsSet, byte(virtio.FNetGuestCSum), 0, 0, 0, 0, 0, 0, 0)
	if r.currentState() != before {
		t.Error("the state changed")
	}
	if n := len(b.offloads); n != 2 || b.offloads[1] != before.offloads {
		t.Errorf("the back-end has %v", b.offloads)
	}
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	if len(r.h.fails) != 1 {
		t.Errorf("told: %v", r.h.fails)
	}
}

// VIRTIO 1.2, 5.1.6.5.5: neither before the driver asks for more pairs than one, nor after it asks for fewer.
func TestPairsThatTheDriverDoesNotUseGetNothing(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.QueuePairs = 2
	r := newDeviceRig(t, cfg, everything)
	r.rings[2].post(t, nil, nil, 2000)
	inject := func() {
		t.Helper()
		b := frameOf(1, 100)
		if n, err := r.d.be.Port(1).Send(t.Context(), []frame{{bufs: [][]byte{b}, n: len(b)}}); n != 0 || err != nil {
			t.Fatal(n, err)
		}
	}
	inject()
	r.start()
	r.until("the frame is dropped", func() bool { return r.statistic("rx1_dropped_link") == 1 })
	r.command(virtio.NetCtrlOK, virtio.NetCtrlMQ, virtio.NetCtrlMQPairsSet, 2, 0)
	inject()
	if u := r.rings[2].next(t); u.written != 100+virtio.NetHeaderSize {
		t.Errorf("%d bytes", u.written)
	}
	r.rings[2].post(t, nil, nil, 2000)
	r.command(virtio.NetCtrlOK, virtio.NetCtrlMQ, virtio.NetCtrlMQPairsSet, 1, 0)
	inject()
	r.until("the frame is dropped", func() bool { return r.statistic("rx1_dropped_link") == 2 })
	if _, ok := r.rings[2].used(); ok {
		t.Error("it arrived too")
	}
}
