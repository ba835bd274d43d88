package main

import (
	"encoding/binary"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// FuzzNetHeader gives the device any header of a packet of any length, from the driver and to it.
func FuzzNetHeader(f *testing.F) {
	for _, h := range []header{
		{}, headerOf(1, virtio.NetGSOTCPv4, 54, 1448, 34, 16), headerOf(1, virtio.NetGSOTCPv6|virtio.NetGSOECN, 0xffff, 1, 0xffff, 0xffff),
		headerOf(1, virtio.NetGSOTCPv4, 0xffff, 1448, 34, 16), headerOf(1, 0, 0, 0, 34, 65), headerOf(0xff, virtio.NetGSOUDPL4, 0, 0, 0, 0), headerOf(2, virtio.NetGSOUDP, 42, 1448, 0, 0),
	} {
		f.Add(h[:], 1514, uint64(everything))
		f.Add(h[:], etherHeader, uint64(0))
		f.Add(h[:], 100, uint64(everything))
	}
	f.Fuzz(func(t *testing.T, b []byte, n int, features uint64) {
		var in header
		copy(in[:], b)
		n = max(etherHeader, min(n, frameMax))
		check := func(h header, flags byte, offloads virtio.Features, need func(host, guest virtio.Features) virtio.Features, csum virtio.Features) {
			if h.flags()&^flags != 0 {
				t.Errorf("flags %#x", h.flags())
			}
			if h.needsCSum() && (!offloads.Has(csum) || int(h.csumStart())+int(h.csumOffset())+2 > n) {
				t.Errorf("checksum at %d+%d of %d, offloads %v", h.csumStart(), h.csumOffset(), n, offloads)
			}
			if h.gsoType() == virtio.NetGSONone {
				if h.gsoSize() != 0 || h.hdrLen() != 0 {
					t.Error("left-overs")
				}
				return
			}
			host, guest, ok := gsoFeatures(h.gsoType())
			if !ok || !offloads.Has(need(host, guest)) || h.gsoSize() == 0 || int(h.hdrLen()) > n {
				t.Errorf("type %d, size %d, hdr_len %d of %d, offloads %v", h.gsoType(), h.gsoSize(), h.hdrLen(), n, offloads)
			}
		}
		h := in
		host := virtio.Features(features) & hostOffloads
		if h.fromDriver(n, host) == nil {
			check(h, virtio.NetHeaderNeedsCSum, host, func(host, _ virtio.Features) virtio.Features { return host }, virtio.FNetCSum)
			again := h
			if err := again.fromDriver(n, host); err != nil || again != h {
				t.Errorf("not stable: % x, % x, %v", h, again, err)
			}
		}
		h = in
		guest := virtio.Features(features) & guestOffloads
		if h.toDriver(n, guest) {
			check(h, virtio.NetHeaderNeedsCSum|virtio.NetHeaderDataValid, guest, func(_, guest virtio.Features) virtio.Features { return guest }, virtio.FNetGuestCSum)
			if h.flags() != 0 && !guest.Has(virtio.FNetGuestCSum) {
				t.Errorf("flags %#x", h.flags())
			}
		}
	})
}

// FuzzControl sends commands, each a length and its bytes, in buffers that a driver may choose, to a device of its own.
func FuzzControl(f *testing.F) {
	command := func(b ...byte) []byte { return append([]byte{byte(len(b)), 3}, b...) } //nolint:gosec // G115: small
	all := [][]byte{
		command(0, 0, 0), command(0, 5, 1), command(append([]byte{1, 0}, tables(addresses(2), addresses(3))...)...), command(1, 1, 2, 1, 2, 3, 4, 5),
		command(2, 0, 5, 0), command(2, 1, 5, 0), command(3, 0), command(4, 0, 2, 0), command(5, 0, 2, 0, 0, 0, 0, 0, 0, 0), command(), command(9, 9, 9),
		command(1, 0, 0xff, 0xff, 0xff, 0xff),
	}
	var together []byte
	for _, c := range all {
		f.Add(c, uint64(everything))
		together = append(together, c...)
	}
	f.Add(together, uint64(everything))
	f.Add(together, uint64(everything&^virtio.FVersion1&^virtio.FNetCtrlVQ))
	f.Fuzz(func(t *testing.T, b []byte, features uint64) {
		cfg := deviceSettings()
		cfg.QueuePairs, cfg.QueueSize = 2, 16
		d, h := newTestDevice(t, cfg)
		ok, _ := consistent(virtio.Features(features) & d.Spec().Features)
		if err := d.SetFeatures(ok | virtio.FVersion1); err != nil {
			t.Fatal(err)
		}
		q := newHeapRing(t, 4, 16, virtio.FVersion1|virtio.FIndirectDesc)
		c := newControl(d)
		for len(b) >= 2 {
			n, cut := min(int(b[0]), len(b)-2), int(b[1])
			data := b[2 : 2+n]
			b = b[2+n:]
			before := d.state
			if n > 0 {
				q.post(t, data, []int{cut%64 + 1 + n/32})
				q.answerOne(t, c)
			}
			if d.state != before {
				t.Fatal("carried out without room for an answer")
			}
			q.post(t, data, []int{cut%64 + 1 + n/32}, 1)
			u := q.answerOne(t, c)
			if u.written != 1 || u.writable[0] > 1 {
				t.Fatalf("answer %+v", u)
			}
			if u.writable[0] == virtio.NetCtrlErr {
				if d.state != before {
					t.Fatal("refused, and it changed the state")
				}
				continue
			}
			saved, err := parseState(h.lastSaved(), d.features&guestOffloads, 2)
			if err != nil || saved != d.state {
				t.Fatalf("the state was not saved: %v", err)
			}
		}
	})
}

// answerOne lets c answer the next chain.
func (r *heapRing) answerOne(tb testing.TB, c *control) usedChain {
	tb.Helper()
	chain, ok, err := r.Pop()
	if err != nil {
		tb.Fatal(err)
	}
	if !ok {
		tb.Fatal("there is no chain")
	}
	c.answer(chain)
	r.Complete(chain)
	_ = r.Flush()
	u, ok := r.used()
	if !ok {
		tb.Fatal("the chain did not come back")
	}
	return u
}

// FuzzState restores any bytes.
func FuzzState(f *testing.F) {
	s := fullState()
	f.Add(s.bytes())
	s = driverState{pairs: 1}
	f.Add(s.bytes())
	f.Add([]byte{stateVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseState(b, guestOffloads, 2)
		if err != nil {
			return
		}
		if s.pairs < 1 || s.pairs > 2 || s.offloads&^guestOffloads != 0 || s.uni.count > addressMax || s.multi.count > addressMax {
			t.Fatalf("%+v", s)
		}
		again, err := parseState(s.bytes(), guestOffloads, 2)
		if err != nil || again != s {
			t.Fatal("what was taken is saved as something else")
		}
	})
}

// FuzzReceive makes a queue of chains of any layout and lets frames of any length arrive.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{3, 12, 200, 100, 1, 255, 2, 10, 50, 0, 4}, []byte{60, 0, 0xff, 5, 14, 0}, uint64(everything))
	f.Add([]byte{1, 13, 1, 13, 1, 13, 1, 255}, []byte{20, 0, 20, 0}, uint64(0))
	f.Fuzz(func(t *testing.T, layout, lengths []byte, features uint64) {
		cfg := deviceSettings()
		cfg.QueueSize = 64
		d, _ := newTestDevice(t, cfg)
		r := &deviceRig{tb: t, d: d, h: &recordingHost{}, stop: func() {}}
		negotiated, _ := consistent(virtio.Features(features) & d.Spec().Features)
		negotiated |= virtio.Features(features) & (virtio.FIndirectDesc | virtio.FEventIdx | virtio.FVersion1)
		if err := d.SetFeatures(negotiated); err != nil {
			t.Fatal(err)
		}
		q := newHeapRing(t, 0, 64, negotiated)
		r.rings = []*heapRing{q}
		for posted := 0; len(layout) > 0 && posted < 60; {
			n := min(int(layout[0])%8+1, len(layout)-1)
			var bufs []int
			for _, b := range layout[1 : 1+n] {
				bufs = append(bufs, int(b)*int(b)/8+1)
			}
			layout = layout[1+n:]
			if posted += n; n == 0 || posted > 60 {
				break
			}
			q.post(t, nil, nil, bufs...)
		}
		frames := 0
		for ; len(lengths) >= 2 && frames < 100; frames++ {
			r.inject(header{}, frameOf(frames, etherHeader+int(binary.LittleEndian.Uint16(lengths))%9000))
			lengths = lengths[2:]
		}
		r.start(0)
		r.until("the frames are taken, or there are no buffers", func() bool { return !r.waiting() || q.state().InFlight == 0 })
		r.stop()
		got := d.Statistics()
		if n := got["rx0_packets"] + got["rx0_dropped_room"] + got["loopback_dropped_too_long"]; !r.waiting() && n != uint64(frames) {
			t.Fatalf("%d frames: %v", frames, got)
		}
		bytes := uint64(0)
		for u, ok := q.used(); ok; u, ok = q.used() {
			if u.written > len(u.writable) {
				t.Fatal("more written than there is room")
			}
			bytes += uint64(u.written) //nolint:gosec // G115: not negative
		}
		if want := got["rx0_bytes"] + got["rx0_packets"]*uint64(headerSize(negotiated)); bytes != want { //nolint:gosec // G115: not negative
			t.Fatalf("the used ring adds up to %d bytes, want %d", bytes, want)
		}
	})
}
