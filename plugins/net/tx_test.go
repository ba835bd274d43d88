package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// withHeader is a packet as the driver puts it into memory.
func withHeader(h header, size int, data []byte) []byte { return append(h[:size:size], data...) }

// driverKinds are the drivers that have different headers.
var driverKinds = map[string]virtio.Features{
	"modern":                 everything,
	"modern, nothing merged": everything &^ virtio.FNetMrgRxBuf,
	"modern, nothing at all": virtio.FVersion1,
	"legacy":                 everything &^ (virtio.FVersion1 | virtio.FNetMrgRxBuf),
	"legacy, merged":         everything &^ virtio.FVersion1,
	"indirect, event index":  everything | virtio.FIndirectDesc | virtio.FEventIdx,
}

func TestFramesLeaveWhateverTheirBuffersAre(t *testing.T) {
	t.Parallel()
	for name, f := range driverKinds {
		for _, cuts := range [][]int{nil, {12}, {10}, {1}, {7, 9, 100}, {13, 1}, {2000, 30000}} {
			t.Run(fmt.Sprint(name, cuts), func(t *testing.T) {
				t.Parallel()
				r := newDeviceRig(t, deviceSettings(), f).start(1)
				size := headerSize(f)
				for i, n := range []int{etherHeader, 60, 150, 1514} {
					if len(cuts) > 0 && cuts[len(cuts)-1] == 1 && n > 100 {
						continue // more buffers than the queue has
					}
					want := frameOf(i, n)
					r.rings[1].post(t, withHeader(header{}, size, want), cuts)
					if u := r.rings[1].next(t); u.written != 0 {
						t.Errorf("%d bytes: used length %d", n, u.written)
					}
					h, got, ok := r.left()
					if !ok || !bytes.Equal(got, want) || h != (header{}) {
						t.Fatalf("%d bytes: left %v, header % x, %d bytes", n, ok, h, len(got))
					}
				}
				if n := r.statistic("tx0_packets"); n < 2 {
					t.Errorf("%d packets counted", n)
				}
			})
		}
	}
}

func TestALongFrameLeavesWithItsHeader(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything).start(1)
	h := headerOf(virtio.NetHeaderNeedsCSum, virtio.NetGSOTCPv4, 54, 1448, 34, 16)
	want := frameOf(1, frameMax)
	r.rings[1].post(t, withHeader(h, virtio.NetHeaderSize, want), []int{100, 4096})
	r.rings[1].next(t)
	got, data, ok := r.left()
	if !ok || got != h || !bytes.Equal(data, want) {
		t.Errorf("left %v, % x, %d bytes", ok, got, len(data))
	}
}

func TestFramesThatMakeNoSenseAreDroppedAndTheNextOneLeaves(t *testing.T) {
	t.Parallel()
	good := frameOf(9, 60)
	for name, bad := range map[string][]byte{
		"half a header":       make([]byte, 6),
		"a header alone":      make([]byte, virtio.NetHeaderSize),
		"half an address":     make([]byte, virtio.NetHeaderSize+13),
		"longer than any":     make([]byte, virtio.NetHeaderSize+frameMax+1),
		"longer than the MTU": make([]byte, virtio.NetHeaderSize+1500+etherHeader+9),
		"a hostile header":    withHeader(headerOf(1, 1, 0, 0, 0, 0), virtio.NetHeaderSize, good),
		"a checksum outside":  withHeader(headerOf(1, 0, 0, 0, 0xffff, 0xffff), virtio.NetHeaderSize, good),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := deviceSettings()
			cfg.MTU = 1500
			r := newDeviceRig(t, cfg, everything)
			q := r.rings[1]
			q.post(t, bad, nil)
			q.post(t, nil, nil, 100) // nothing to send, room to write
			q.post(t, withHeader(header{}, virtio.NetHeaderSize, good), nil, 100)
			r.start(1)
			for i := range 3 {
				if u := q.next(t); u.written != 0 {
					t.Errorf("chain %d: used length %d", i, u.written)
				}
			}
			if _, got, ok := r.left(); !ok || !bytes.Equal(got, good) {
				t.Errorf("the good frame: %v, %d bytes", ok, len(got))
			}
			if _, _, ok := r.left(); ok {
				t.Error("the bad one left too")
			}
			if n := r.statistic("tx0_dropped_header"); n != 2 {
				t.Errorf("%d dropped, want 2", n)
			}
			if n := r.statistic("tx0_packets"); n != 1 {
				t.Errorf("%d packets", n)
			}
		})
	}
}

func TestAFullBackEndHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything).start(1)
	const frames = loopbackFrames + 100
	for i := range frames {
		r.rings[1].post(t, withHeader(header{}, virtio.NetHeaderSize, frameOf(i, 60)), nil)
		r.rings[1].next(t)
	}
	if p, d := r.statistic("tx0_packets"), r.statistic("tx0_dropped_backend"); p != loopbackFrames || d != 100 {
		t.Errorf("%d packets, %d dropped, want %d and 100", p, d, loopbackFrames)
	}
	if d := r.statistic("loopback_dropped_full"); d != 100 {
		t.Errorf("the back-end counted %d", d)
	}
}

func TestALimitHoldsFramesUpInTheRing(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.TxPackets = 1
	r := newDeviceRig(t, cfg, everything)
	for i := range 5 {
		r.rings[1].post(t, withHeader(header{}, virtio.NetHeaderSize, frameOf(i, 60)), nil)
	}
	r.start(1)
	r.rings[1].next(t)
	r.until("the limit", func() bool { return r.statistic("tx0_limit_waits") > 0 })
	begin := time.Now()
	r.stop() // checks that the others are back in the ring
	if d := time.Since(begin); d > devicePatience/2 {
		t.Errorf("the stop took %v: it waited for the limit", d)
	}
	s := r.rings[1].state()
	if s.UsedIndex == 5 {
		t.Error("nothing was held up")
	}
	// The next run sends the next one.
	r.d.txLimit = nil
	r.start(1)
	for range 5 - s.UsedIndex {
		r.rings[1].next(t)
	}
	for i := range 5 {
		if _, got, ok := r.left(); !ok || !bytes.Equal(got, frameOf(i, 60)) {
			t.Errorf("frame %d: %v", i, ok)
		}
	}
}

// failing is a back-end whose ports fail as long as err is set.
type failing struct {
	backend
	err error
}

func (f *failing) Port(i int) port { return &failingPort{f.backend.Port(i), f} }

type failingPort struct {
	port
	f *failing
}

func (p *failingPort) Send(context.Context, []frame) (int, error) { return 0, p.f.err }

func TestABackEndThatFailsIsTold(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	want := errors.New("the interface is gone")
	f := &failing{backend: r.d.be, err: want}
	r.d.pairs[0].port = f.Port(0)
	r.start(1)
	for i := range 3 {
		r.rings[1].post(t, withHeader(header{}, virtio.NetHeaderSize, frameOf(i, 60)), nil)
		r.rings[1].next(t)
	}
	if err := r.d.Health(); !errors.Is(err, want) {
		t.Errorf("health: %v", err)
	}
	if n := r.statistic("tx0_dropped_backend"); n != 3 {
		t.Errorf("%d dropped, want 3", n)
	}
	r.h.mu.Lock()
	if len(r.h.fails) != 1 || !errors.Is(r.h.fails[0], want) {
		t.Errorf("told: %v, want it once", r.h.fails)
	}
	r.h.mu.Unlock()
	r.stop()
	f.err = nil
	r.start(1)
	r.rings[1].post(t, withHeader(header{}, virtio.NetHeaderSize, frameOf(9, 60)), nil)
	r.rings[1].next(t)
	if err := r.d.Health(); err != nil {
		t.Errorf("health after it worked again: %v", err)
	}
}

func TestWhatAFormerInstanceLeftIsSentFirst(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	q := r.rings[1]
	for i := range 4 {
		q.post(t, withHeader(header{}, virtio.NetHeaderSize, frameOf(i, 60)), nil)
	}
	for range 2 { // the former instance took two and died
		if _, ok, err := q.Pop(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	q.activate(t)
	r.start(1)
	for range 4 {
		q.next(t)
	}
	for i := range 4 {
		if _, got, ok := r.left(); !ok || !bytes.Equal(got, frameOf(i, 60)) {
			t.Errorf("frame %d: %v", i, ok)
		}
	}
}

func TestAQueueThatEndsAtOnceFinishesWhatAFormerInstanceLeft(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		index int
		link  bool
	}{{0, true}, {0, false}, {1, true}, {2, true}} {
		index := c.index
		cfg := deviceSettings()
		cfg.Link = c.link
		r := newDeviceRig(t, cfg, everything)
		q := r.rings[index]
		for i := range 4 {
			q.post(t, withHeader(header{}, virtio.NetHeaderSize, frameOf(i, 60)), nil, 2000)
		}
		for range 3 {
			if _, ok, err := q.Pop(); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		q.activate(t)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := r.d.runQueue(ctx, q, index); err != nil {
			t.Fatal(err)
		}
		if s := q.state(); q.Resubmitted() != 0 || s.InFlight != 0 || s.NextAvail != s.UsedIndex || s.UsedIndex < 3 {
			t.Errorf("queue %d: %d left, %+v", index, q.Resubmitted(), s)
		}
	}
}

func TestALimitedQueueEndsWithWhatAFormerInstanceLeft(t *testing.T) {
	t.Parallel()
	cfg := deviceSettings()
	cfg.TxPackets = 1
	r := newDeviceRig(t, cfg, everything)
	q := r.rings[1]
	const old = 3 * txBatch
	for i := range old + 10 {
		q.post(t, withHeader(header{}, virtio.NetHeaderSize, frameOf(i, 60)), nil)
	}
	for range old {
		if _, ok, err := q.Pop(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	q.activate(t)
	r.start(1)
	r.until("the limit", func() bool { return r.statistic("tx0_limit_waits") > 0 })
	r.stop()
	if s := q.state(); q.Resubmitted() != 0 || s.UsedIndex != old {
		t.Errorf("%d left, %+v", q.Resubmitted(), s)
	}
}

func TestADriverThatBreaksTheRingEndsItsQueue(t *testing.T) {
	t.Parallel()
	for _, index := range []int{0, 1, 2} {
		r := newDeviceRig(t, deviceSettings(), everything).start(index)
		q := r.rings[index]
		q.post(t, nil, nil, 2000) // a receive queue holds it
		r.until("a chain is taken", func() bool { return q.state().NextAvail == 1 })
		q.mu.Lock()
		binary.LittleEndian.PutUint64(q.drv.Raw().Desc(1), 1<<60) // outside memory
		binary.LittleEndian.PutUint64(q.drv.Raw().Desc(1)[8:], 64)
		q.drv.Raw().SetAvail(1, 1)
		q.drv.Raw().SetAvailIdx(2)
		q.mu.Unlock()
		signal(q.kick)
		// A receive queue that has room does not look until a frame came.
		if index == 0 {
			r.inject(header{}, frameOf(1, 60))
		}
		r.until("the queue is broken", func() bool { return q.state().Broken != nil })
		r.until("it holds nothing", func() bool { return q.state().InFlight == 0 })
		r.stop()
	}
}

func TestBytesCountedAreThoseOfThePacketsThatLeft(t *testing.T) {
	t.Parallel()
	r := newDeviceRig(t, deviceSettings(), everything)
	const length, frames = frameMax, loopbackBytes/frameMax + 20
	h := headerOf(virtio.NetHeaderNeedsCSum, virtio.NetGSOTCPv4, 54, 1448, 34, 16)
	for i := range frames {
		r.rings[1].post(t, withHeader(h, virtio.NetHeaderSize, frameOf(i, length)), nil)
	}
	r.start(1)
	for range frames {
		r.rings[1].next(t)
	}
	packets := r.statistic("tx0_packets")
	if packets == 0 || packets+r.statistic("tx0_dropped_backend") != frames || packets == frames {
		t.Errorf("%d of %d packets left, %d dropped", packets, frames, r.statistic("tx0_dropped_backend"))
	}
	if n := r.statistic("tx0_bytes"); n != packets*length {
		t.Errorf("%d bytes in %d packets, want %d", n, packets, packets*length)
	}
}
