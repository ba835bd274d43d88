package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// arrived puts a packet together from the chains that came back, as a driver does.
func (r *deviceRig) arrived(index int, f virtio.Features) (h header, data []byte) {
	r.tb.Helper()
	size := headerSize(f)
	u := r.rings[index].next(r.tb)
	if u.written < size {
		r.tb.Fatalf("a chain came back with %d bytes", u.written)
	}
	copy(h[:], u.writable[:size])
	data = append(data, u.writable[size:u.written]...)
	merged := 1
	if f.Has(virtio.FNetMrgRxBuf) {
		merged = int(h.field(virtio.NetHeaderNumBuffers))
		if u.written < len(u.writable) && merged > 1 {
			r.tb.Fatalf("the first of %d chains has %d of %d bytes", merged, u.written, len(u.writable))
		}
	} else if size == virtio.NetHeaderSize && h.field(virtio.NetHeaderNumBuffers) != 1 {
		r.tb.Fatalf("num_buffers %d without merging", h.field(virtio.NetHeaderNumBuffers))
	}
	for i := 1; i < merged; i++ {
		u, ok := r.rings[index].used()
		if !ok {
			r.tb.Fatalf("only %d of %d chains were used at once", i, merged)
		}
		data = append(data, u.writable[:u.written]...)
		if u.written == 0 {
			r.tb.Fatalf("chain %d of %d is empty", i, merged)
		}
		if i < merged-1 && u.written != len(u.writable) {
			r.tb.Fatalf("chain %d of %d has %d of %d bytes", i, merged, u.written, len(u.writable))
		}
	}
	h.setField(virtio.NetHeaderNumBuffers, 0)
	return h, data
}

func TestFramesArriveWhateverTheBuffersAre(t *testing.T) {
	t.Parallel()
	layouts := map[string][]int{
		"one buffer": {1536}, "header apart": {12, 1600}, "header in pieces": {5, 1, 4, 1, 2, 1600}, "short header": {10, 1700},
		"many": {200, 200, 200, 200, 200, 200, 200, 400}, "long": {70000},
	}
	for name, f := range driverKinds {
		for what, layout := range layouts {
			t.Run(name+", "+what, func(t *testing.T) {
				t.Parallel()
				r := newDeviceRig(t, deviceSettings(), f).start(0)
				for i, n := range []int{etherHeader, 60, 187, 188, 189, 1514} {
					r.rings[0].post(t, nil, nil, layout...)
					want := frameOf(i, n)
					r.inject(header{}, want)
					h, got := r.arrived(0, f)
					if !bytes.Equal(got, want) || h != (header{}) {
						t.Fatalf("%d bytes: header % x, %d bytes", n, h, len(got))
					}
				}
				if n := r.statistic("rx0_packets"); n != 6 {
					t.Errorf("%d packets counted", n)
				}
			})
		}
	}
}

func TestFramesAreMergedFromShortChains(t *testing.T) {
	t.Parallel()
	h := headerOf(virtio.NetHeaderNeedsCSum, virtio.NetGSOTCPv4, 54, 1448, 34, 16)
	for name, f := range map[string]virtio.Features{"modern": everything, "legacy": everything &^ virtio.FVersion1} {
		for _, c := range []struct {
			chain  []int
			frames []int
		}{
			{[]int{1536}, []int{60, 1524, 1525, 9000, 60, 65553}},
			{[]int{13}, []int{14, 27, 40, 200}},
			{[]int{14, 1, 1}, []int{60, 400}},
			{[]int{4096}, []int{65553, 65553, 14}},
			{[]int{6, 6, 4}, []int{100}},
		} {
			t.Run(fmt.Sprint(name, c.chain), func(t *testing.T) {
				t.Parallel()
				r := newDeviceRig(t, deviceSettings(), f).start(0)
				for range 256 / len(c.chain) {
					r.rings[0].post(t, nil, nil, c.chain...)
				}
				for i, n := range c.frames {
					want := frameOf(i, n)
					wantHeader := h
					if n < 60 {
						wantHeader = header{}
					}
					r.inject(wantHeader, want)
					got, data := r.arrived(0, f)
					if !bytes.Equal(data, want) {
						t.Fatalf("frame %d of %d bytes: %d bytes came", i, n, len(data))
					}
					if wantHeader.setField(virtio.NetHeaderHdrLen, min(wantHeader.hdrLen(), uint16(min(n, 65535)))); got != wantHeader { //nolint:gosec // G115: bounded
						t.Fatalf("frame %d: header % x, want % x", i, got, wantHeader)
					}
				}
			})
		}
	}
}

// A driver may give little room at a time: short frames arrive all the same, long ones as soon as there is room.
func TestAFrameWaitsForTheRestOfItsRoom(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything).start(0)
	q := r.rings[0]
	post := func(n int) {
		for range n {
			q.post(t, nil, nil, 100)
		}
	}
	post(3)
	r.inject(header{}, frameOf(1, 60))
	if _, got := r.arrived(0, everything); !bytes.Equal(got, frameOf(1, 60)) {
		t.Fatal("a short frame did not arrive in little room")
	}
	r.inject(header{}, frameOf(2, 1000))
	r.until("the frame is taken", func() bool { return !r.waiting() })
	post(20)
	if _, got := r.arrived(0, everything); !bytes.Equal(got, frameOf(2, 1000)) {
		t.Fatal("the frame is another")
	}
}

// waiting tells whether a frame waits in the back-end of pair 0.
func (r *deviceRig) waiting() bool {
	p, _ := r.d.be.Port(0).(*loopbackPort)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count > 0
}

func TestAFrameThatGetsNoRoomIsDroppedAndTheNextArrives(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything).start(0)
	for range 3 {
		r.rings[0].post(t, nil, nil, 100)
	}
	const room = 3*100 - virtio.NetHeaderSize
	r.inject(header{}, frameOf(1, room+1))
	r.inject(header{}, frameOf(2, room))
	if _, got := r.arrived(0, everything); !bytes.Equal(got, frameOf(2, room)) {
		t.Fatal("another frame arrived")
	}
	if n := r.statistic("rx0_dropped_room"); n != 1 {
		t.Errorf("%d dropped, want 1", n)
	}
}

func TestBuffersThatHoldNoPacketGoBack(t *testing.T) {
	t.Parallel()
	for name, f := range driverKinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newDeviceRig(t, deviceSettings(), f).start(0)
			q, size := r.rings[0], headerSize(f)
			q.post(t, nil, nil, 1)
			q.post(t, nil, nil, size)
			q.post(t, make([]byte, 2000), nil) // nothing to write
			for range 3 {
				if u := q.next(t); u.written != 0 {
					t.Errorf("used length %d", u.written)
				}
			}
			q.post(t, make([]byte, 100), nil, 2000) // read what is before it? No.
			r.inject(header{}, frameOf(1, 60))
			if _, got := r.arrived(0, f); !bytes.Equal(got, frameOf(1, 60)) {
				t.Error("the frame did not arrive")
			}
			if n := r.statistic("rx0_bad_buffers"); n != 3 {
				t.Errorf("%d bad buffers, want 3", n)
			}
		})
	}
}

func TestTheDriverGetsOnlyWhatItTakes(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything&^(virtio.FNetGuestTSO6|virtio.FNetGuestECN)).start(0, 2)
	r.command(virtio.NetCtrlOK, virtio.NetCtrlRx, virtio.NetCtrlRxPromisc, 0)
	for range 100 {
		r.rings[0].post(t, nil, nil, 1536)
	}
	strange := frameOf(0, 60)
	strange[5]++
	r.inject(header{}, strange)
	r.inject(headerOf(1, virtio.NetGSOTCPv6, 54, 1000, 34, 16), frameOf(1, 9000))
	r.inject(header{}, frameOf(2, 60))
	r.inject(header{}, strange)
	r.inject(header{}, frameOf(3, 1514))
	for _, c := range [][2]int{{2, 60}, {3, 1514}} {
		if _, got := r.arrived(0, everything); !bytes.Equal(got, frameOf(c[0], c[1])) {
			t.Fatalf("frame %d: %d bytes", c[0], len(got))
		}
	}
	if f, h := r.statistic("rx0_dropped_filter"), r.statistic("rx0_dropped_header"); f != 2 || h != 1 {
		t.Errorf("%d dropped by the filter, %d by the header: want 2 and 1", f, h)
	}
}

// Where each chain holds any frame, several are received at once; those that are dropped leave their chains to others.
func TestDroppedFramesOfABatchCostNoBuffers(t *testing.T) {
	t.Parallel()
	f := everything &^ guestSegmentation &^ virtio.FNetGuestECN
	r := newDeviceRig(t, deviceSettings(), f).start(2)
	r.command(virtio.NetCtrlOK, virtio.NetCtrlRx, virtio.NetCtrlRxPromisc, 0)
	const wanted = 100
	for range wanted {
		r.rings[0].post(t, nil, nil, 1600)
	}
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: a test
	dropped := uint64(0)
	for i := range wanted {
		for rnd.IntN(2) == 0 {
			b := frameOf(200, 60)
			b[3]++
			r.inject(header{}, b)
			dropped++
		}
		r.inject(header{}, frameOf(i, 60+i))
		if i == wanted/2 {
			r.stop()
			r.start(0)
		}
	}
	for i := range wanted {
		if _, got := r.arrived(0, f); !bytes.Equal(got, frameOf(i, 60+i)) {
			t.Fatalf("frame %d: %d bytes", i, len(got))
		}
	}
	if n := r.statistic("rx0_dropped_filter"); n != dropped {
		t.Errorf("%d dropped, want %d", n, dropped)
	}
}

func TestChainsOfDifferentLengths(t *testing.T) {
	t.Parallel()
	f := everything &^ guestSegmentation &^ virtio.FNetGuestECN
	r := newDeviceRig(t, deviceSettings(), f)
	for i := range 90 {
		r.rings[0].post(t, nil, nil, []int{1600, 100, 700}[i%3])
	}
	for i := range 20 {
		r.inject(header{}, frameOf(i, 1000))
	}
	r.start(0)
	for i := range 20 {
		if _, got := r.arrived(0, f); !bytes.Equal(got, frameOf(i, 1000)) {
			t.Fatalf("frame %d: %d bytes", i, len(got))
		}
	}
}

func TestHeldBuffersGoBackAtAStop(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	q := r.rings[0]
	for range 50 {
		q.post(t, nil, nil, 1536)
	}
	for round := range 5 {
		r.start(0)
		r.inject(header{}, frameOf(round, 3000))
		if _, got := r.arrived(0, everything); !bytes.Equal(got, frameOf(round, 3000)) {
			t.Fatalf("round %d", round)
		}
		r.until("buffers are held", func() bool { return q.state().InFlight > 10 })
		r.stop() // checks that none is in flight
		if n := q.state().UsedIndex; int(n) != 2*(round+1) {
			t.Fatalf("%d chains used, want %d: held ones were used up", n, 2*(round+1))
		}
		q.activate(t) // another instance goes on
	}
}

func TestWhatAFormerInstanceHeldIsUsedFirst(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	q := r.rings[0]
	for range 60 {
		q.post(t, nil, nil, 1536)
	}
	for range 5 { // held by one that died
		if _, ok, err := q.Pop(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	q.activate(t)
	r.start(0)
	r.inject(header{}, frameOf(1, 3000))
	if _, got := r.arrived(0, everything); !bytes.Equal(got, frameOf(1, 3000)) {
		t.Fatal("the frame did not arrive")
	}
	r.until("more buffers are held", func() bool { return q.state().InFlight > 10 })
	r.stop()
	// Three that had no place in the ring any more came back empty, no others.
	for range 3 {
		if u := q.next(t); u.written != 0 {
			t.Errorf("%d bytes", u.written)
		}
	}
	if n := q.state().UsedIndex; n != 5 {
		t.Errorf("%d chains used, want 5", n)
	}
}

// No wake-up is lost between "no buffers" and the kick, nor between "no frame" and the wait: every frame arrives.
func TestFramesAndBuffersThatMeetAtAnyMoment(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]virtio.Features{"merged": everything, "one each": everything &^ (guestSegmentation | virtio.FNetGuestECN), "legacy": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newDeviceRig(t, deviceSettings(), f).start(0)
			const frames = 2000
			rnd := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // G404: a test
			sent, got, posted := 0, 0, 0
			mark := r.rings[0].arena.Mark()
			for got < frames {
				for range rnd.IntN(4) {
					if posted < 64 {
						r.rings[0].post(t, nil, nil, 1536)
						posted++
					}
				}
				for range rnd.IntN(4) {
					if sent < frames && sent-got < loopbackFrames/2 {
						b := frameOf(0, 60)
						binary.LittleEndian.PutUint32(b[20:], uint32(sent))
						r.inject(header{}, b)
						sent++
					}
				}
				for got < sent && posted > 0 && (rnd.IntN(2) == 0 || sent-got > 20) {
					_, b := r.arrived(0, f)
					if n := int(binary.LittleEndian.Uint32(b[20:])); n != got {
						t.Fatalf("frame %d arrived, want %d", n, got)
					}
					got++
					posted--
				}
				if posted == 0 && len(r.rings[0].posted) == 0 {
					r.rings[0].arena.Rewind(mark)
				}
			}
		})
	}
}

func TestReceivingWaitsForItsLimit(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.RxPackets = 1
	r := newDeviceRig(t, cfg, everything)
	for range 100 {
		r.rings[0].post(t, nil, nil, 1536)
	}
	for i := range 5 {
		r.inject(header{}, frameOf(i, 60))
	}
	r.start(0)
	r.arrived(0, everything)
	r.until("the limit", func() bool { return r.statistic("rx0_limit_waits") > 0 })
	r.stop()
	if !r.waiting() {
		t.Error("nothing was held up")
	}
}

func TestEachPairHasAWayOfItsOwn(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.QueuePairs = 3
	r := newDeviceRig(t, cfg, everything).start()
	r.command(virtio.NetCtrlOK, virtio.NetCtrlMQ, virtio.NetCtrlMQPairsSet, 3, 0)
	for pair := range 3 {
		for range 60 {
			r.rings[2*pair].post(t, nil, nil, 1536)
		}
		// What is sent on a pair comes back on it, with the addresses swapped.
		r.rings[2*pair+1].post(t, withHeader(header{}, virtio.NetHeaderSize, frameOf(pair, 1000)), nil)
	}
	for pair := range 3 {
		want := frameOf(pair, 1000)
		copy(want, frameOf(pair, 1000)[6:12])
		copy(want[6:], frameOf(pair, 1000)[:6])
		if _, got := r.arrived(2*pair, everything); !bytes.Equal(got, want) {
			t.Errorf("pair %d: another frame", pair)
		}
		for _, name := range []string{"rx%d_packets", "tx%d_packets"} {
			if n := r.statistic(fmt.Sprintf(name, pair)); n != 1 {
				t.Errorf("pair %d: %s is %d", pair, name, n)
			}
		}
	}
}

// VIRTIO 1.2, 5.1.4.1: what exceeds the MTU comes with segmentation offload or not at all.
func TestNoPacketBeyondTheMTUArrivesWhole(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.MTU = 1500
	r := newDeviceRig(t, cfg, everything).start(0)
	for range 4 {
		r.rings[0].post(t, nil, nil, frameMax+virtio.NetHeaderSize)
	}
	r.inject(header{}, frameOf(1, 1500+etherHeader+9))
	offload := headerOf(virtio.NetHeaderNeedsCSum, virtio.NetGSOTCPv4, 54, 1448, 34, 16)
	r.inject(offload, frameOf(2, 9000))
	r.inject(header{}, frameOf(3, 1500+etherHeader))
	for _, want := range []int{9000, 1500 + etherHeader} {
		if u := r.rings[0].next(t); u.written != want+virtio.NetHeaderSize {
			t.Errorf("%d bytes, want %d", u.written-virtio.NetHeaderSize, want)
		}
	}
	if n := r.statistic("rx0_dropped_header"); n != 1 {
		t.Errorf("%d dropped, want 1", n)
	}
}
