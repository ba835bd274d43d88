package mmio_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// sharedPage is a page as the machine has it: mapped memory, of which the race detector knows nothing, as of a guest's reads.
func sharedPage(tb testing.TB) []byte {
	tb.Helper()
	p, err := unix.Mmap(-1, 0, mmio.WindowSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Munmap(p) })
	return p
}

// both runs f with reads from the page and with reads from Read.
func both(t *testing.T, f func(t *testing.T, d *fake, g *guest)) {
	t.Helper()
	for _, paged := range []bool{true, false} {
		t.Run(fmt.Sprintf("paged=%t", paged), func(t *testing.T) {
			t.Parallel()
			d := newFake()
			f(t, d, newGuest(t, d, paged, nil))
		})
	}
}

func wantCalls(t *testing.T, d *fake, want ...string) {
	t.Helper()
	if got := d.log(); !slices.Equal(got, want) {
		t.Errorf("calls\n got %q\nwant %q", got, want)
	}
}

const wanted = virtio.FVersion1 | virtio.FEventIdx | 1<<5

func TestALinuxDriverStartsTheDeviceAgainAndAgain(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, d *fake, g *guest) {
		t.Helper()
		g.want("DeviceID", g.read(mmio.RegDeviceID), 2)
		g.want("VendorID", g.read(mmio.RegVendorID), mmio.VendorID)
		for range 100 {
			if err := g.linux(); err != nil {
				t.Fatal(err)
			}
			if got := d.running(); !slices.Equal(got, []int{0, 1, 2}) {
				t.Fatalf("queues %v run", got)
			}
			if d.features != wanted || d.status != allOK {
				t.Fatalf("features %v, status %#x", d.features, d.status)
			}
		}
		if q := d.queues[2]; q.size != 8 || q.desc != 0x3_0000 || q.driver != 0x3_4000 || q.device != 0x3_8000 {
			t.Errorf("queue 2 is %+v", q)
		}
		g.write(mmio.RegQueueNotify, 2)
		if !slices.Equal(g.kicks, []uint32{2}) {
			t.Errorf("kicks %v", g.kicks)
		}
		g.setStatus(0)
		g.want("status after reset", uint32(g.status()), 0)
		// As Linux removes the device: reset, then each queue.
		n := len(d.log())
		for i := range uint32(3) {
			g.write(mmio.RegQueueSel, i)
			g.write(mmio.RegQueueReady, 0)
			g.want("QueueReady", g.read(mmio.RegQueueReady), 0)
		}
		if len(d.running()) > 0 || len(d.log()) != n {
			t.Errorf("after the reset: %v run, calls %q", d.running(), d.log()[n:])
		}
	})
}

// FreeBSD reads the configuration space in bytes, and writes a status with what it reads; hobby systems write only the new
// bit, skip FEATURES_OK or QueueNum, or set all bits at once.
func TestOtherDriversHabits(t *testing.T) {
	t.Parallel()
	queue := func(g *guest) {
		g.setQueue(0, 16, 0x1000, 0x2000, 0x3000)
		g.write(mmio.RegQueueReady, 1)
	}
	for name, drive := range map[string]func(g *guest){
		"FreeBSD": func(g *guest) {
			g.setStatus(0)
			for _, s := range []virtio.Status{ack, drv} {
				g.setStatus(g.status() | s)
			}
			g.accept(wanted)
			g.setStatus(g.status() | okF)
			for i := range 10 {
				g.want("configuration byte", uint32(g.bytes(mmio.RegConfig+i, 1)[0]), uint32(i+1))
			}
			queue(g)
			g.setStatus(g.status() | okD)
		},
		"only the new bit": func(g *guest) {
			g.setStatus(ack)
			g.setStatus(drv)
			g.accept(wanted)
			g.setStatus(okF)
			queue(g)
			g.setStatus(okD)
		},
		"queues before features": func(g *guest) {
			queue(g)
			g.setStatus(ack | drv)
			g.accept(wanted)
			g.setStatus(ack | drv | okF)
			g.setStatus(allOK)
		},
		"queue after DRIVER_OK": func(g *guest) {
			g.accept(wanted)
			g.setStatus(allOK)
			queue(g)
		},
		"all at once": func(g *guest) {
			g.accept(wanted)
			queue(g)
			g.setStatus(allOK)
		},
		"no FEATURES_OK": func(g *guest) {
			g.setStatus(ack | drv)
			g.accept(wanted)
			queue(g)
			g.setStatus(ack | drv | okD)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newFake()
			g := newGuest(t, d, true, nil)
			drive(g)
			if !g.status().Has(okD) || g.status().Has(virtio.StatusNeedsReset) || !slices.Equal(d.running(), []int{0}) {
				t.Errorf("status %#x, queues %v run", g.status(), d.running())
			}
			if d.features != wanted || d.queues[0].size != 16 {
				t.Errorf("features %v, queue %+v", d.features, d.queues[0])
			}
		})
	}
}

func TestFeaturesThatCannotBe(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, d *fake, g *guest) {
		t.Helper()
		for sel, want := range []uint32{uint32(d.offered & 0xffffffff), 1, 0, 0} {
			g.write(mmio.RegDeviceFeaturesSel, uint32(sel))
			g.want(fmt.Sprintf("DeviceFeatures %d", sel), g.read(mmio.RegDeviceFeatures), want)
		}
		g.setStatus(ack | drv)
		for _, f := range []virtio.Features{wanted | 1<<6, wanted | 1<<40, wanted | 1<<63} {
			g.accept(f)
			g.setStatus(ack | drv | okF)
			g.want("status after bad features", uint32(g.status()), uint32(ack|drv))
		}
		d.set(func() { d.refuse["features"] = errRefused })
		g.accept(wanted)
		g.setStatus(ack | drv | okF)
		g.want("status after a refusal", uint32(g.status()), uint32(ack|drv))
		g.setStatus(ack | drv | okF | okD)
		g.want("status after DRIVER_OK without features", uint32(g.status()), uint32(ack|drv|virtio.StatusNeedsReset))
		d.set(func() { delete(d.refuse, "features") })
		if err := g.linux(); err != nil {
			t.Fatal("a driver that begins anew:", err)
		}
		g.accept(wanted &^ virtio.FEventIdx)
		g.setStatus(allOK)
		if d.features != wanted {
			t.Errorf("features changed after FEATURES_OK: %v", d.features)
		}
		if len(d.running()) != 3 {
			t.Error("queues stopped")
		}
	})
}

// What the driver gets wrong about a queue shows when it is to be served: DEVICE_NEEDS_RESET, told by an interrupt (2.1.2).
func TestQueuesThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, tell := range map[string]func(g *guest){
		"size no power of two":    func(g *guest) { g.setQueue(0, 24, 0x1000, 0x2000, 0x3000) },
		"size 0":                  func(g *guest) { g.setQueue(0, 0, 0x1000, 0x2000, 0x3000) },
		"size beyond QueueNumMax": func(g *guest) { g.setQueue(0, 512, 0x1000, 0x2000, 0x3000) },
		"size beyond 16 bits":     func(g *guest) { g.setQueue(0, 1<<16|16, 0x1000, 0x2000, 0x3000) },
		"descriptor area":         func(g *guest) { g.setQueue(0, 16, 0x1008, 0x2000, 0x3000) },
		"driver area":             func(g *guest) { g.setQueue(0, 16, 0x1000, 0x2001, 0x3000) },
		"device area":             func(g *guest) { g.setQueue(0, 16, 0x1000, 0x2000, 0x3002) },
		"outside memory":          func(g *guest) { g.setQueue(0, 16, 1<<40, 0x2000, 0x3000) },
		"after a good one":        func(g *guest) { g.setQueue(0, 16, 0x1000, 0x2000, 0x3000); g.write(mmio.RegQueueNum, 3) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, late := range []bool{false, true} {
				d := newFake()
				g := newGuest(t, d, true, nil)
				g.accept(wanted)
				if late {
					g.setStatus(allOK)
				}
				tell(g)
				g.write(mmio.RegQueueReady, 1)
				if !late {
					g.setStatus(allOK)
				}
				g.want("status", uint32(g.status()), uint32(allOK|virtio.StatusNeedsReset))
				g.want("InterruptStatus", g.read(mmio.RegInterruptStatus), mmio.InterruptUsed|mmio.InterruptConfig)
				if len(d.running()) > 0 || g.count() != 1 {
					t.Errorf("late=%t: queues %v run, %d interrupts", late, d.running(), g.count())
				}
				g.setQueue(1, 16, 0x1000, 0x2000, 0x3000)
				g.write(mmio.RegQueueReady, 1)
				if len(d.running()) > 0 {
					t.Error("a queue was started although the device needs a reset")
				}
				if err := g.linux(); err != nil {
					t.Errorf("the reset does not help: %v", err)
				}
			}
		})
	}
}

func TestAQueueStopsAndStartsAgain(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, d *fake, g *guest) {
		t.Helper()
		if err := g.linux(); err != nil {
			t.Fatal(err)
		}
		g.write(mmio.RegQueueSel, 1)
		g.write(mmio.RegQueueDescLow, 0x9000) // ready: its addresses are settled
		g.write(mmio.RegQueueNum, 4)
		g.write(mmio.RegQueueReady, 1) // again: nothing
		g.write(mmio.RegQueueReady, 7)
		g.write(mmio.RegQueueReady, 0)
		g.want("QueueReady", g.read(mmio.RegQueueReady), 0)
		if got := d.running(); !slices.Equal(got, []int{0, 2}) {
			t.Fatalf("queues %v run", got)
		}
		g.write(mmio.RegQueueNotify, 1)
		g.write(mmio.RegQueueDescLow, 0xa000)
		g.write(mmio.RegQueueReady, 1)
		g.want("QueueReady", g.read(mmio.RegQueueReady), 1)
		if q := d.queues[1]; !q.running || q.desc != 0xa000 || q.size != 64 {
			t.Errorf("queue 1 is %+v", q)
		}
		if len(g.kicks) > 0 {
			t.Errorf("a queue that does not run was kicked: %v", g.kicks)
		}
	})
}

// Whatever is written where nothing can be written changes nothing and asks the device nothing.
func TestAccessesThatMeanNothing(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, d *fake, g *guest) {
		t.Helper()
		if err := g.linux(); err != nil {
			t.Fatal(err)
		}
		g.write(mmio.RegQueueSel, 0)
		before, calls := g.bytes(0, mmio.WindowSize), len(d.log())
		writable := map[int]bool{
			mmio.RegDeviceFeaturesSel: true, mmio.RegDriverFeaturesSel: true, mmio.RegQueueSel: true, mmio.RegInterruptACK: true,
			mmio.RegSHMSel: true, mmio.RegStatus: true, mmio.RegQueueReady: true, mmio.RegQueueNotify: true,
		}
		for at := range mmio.RegConfig {
			for _, n := range []int{0, 1, 2, 3, 4, 5, 8, 16} {
				if n == 4 && writable[at] {
					continue
				}
				g.r.Write(uint64(at), make([]byte, n))
			}
		}
		for _, at := range []uint64{mmio.WindowSize, mmio.WindowSize - 1, 1 << 32, 1<<64 - 1, mmio.RegConfig + 9} {
			for _, n := range []int{0, 2, 3, 4, 8, 9} {
				g.r.Write(at, make([]byte, n))
			}
		}
		for _, v := range []uint32{3, 1 << 16, 1<<32 - 1} {
			g.write(mmio.RegQueueNotify, v)
			g.write(mmio.RegStatus, v<<8)
			g.write(mmio.RegInterruptACK, v&^mmio.InterruptConfig)
		}
		g.write(mmio.RegStatus, 0x30)     // bits that nobody defined
		g.write(mmio.RegStatus, 0x40|0xf) // NEEDS_RESET is the device's
		if after := g.bytes(0, mmio.WindowSize); !bytes.Equal(after, before) {
			t.Error("something changed")
		}
		for _, c := range d.log()[calls:] {
			if !strings.HasPrefix(c, "config ") { // only the broker knows how long the space is
				t.Errorf("the device was asked: %s", c)
			}
		}
		g.write(mmio.RegQueueSel, 3)
		g.want("QueueNumMax of no queue", g.read(mmio.RegQueueNumMax), 0)
		g.write(mmio.RegQueueReady, 1)
		g.write(mmio.RegQueueNum, 8)
		g.want("QueueReady of no queue", g.read(mmio.RegQueueReady), 0)
		for _, reg := range []int{mmio.RegSHMLenLow, mmio.RegSHMLenHigh, mmio.RegSHMBaseLow, mmio.RegSHMBaseHigh} {
			g.want("a shared memory region", g.read(reg), 0xffffffff)
		}
		p := []byte{1, 2, 3, 4}
		g.r.Read(mmio.WindowSize, p)
		g.r.Read(1<<64-1, p[2:])
		if !bytes.Equal(p, make([]byte, 4)) {
			t.Errorf("beyond the window there is %x", p)
		}
	})
}

// A driver that has given up is not served (2.1.1: FAILED).
func TestADriverThatGivesUp(t *testing.T) {
	t.Parallel()
	d := newFake()
	g := newGuest(t, d, false, nil)
	g.setStatus(ack | drv)
	g.accept(wanted)
	g.setStatus(ack | drv | okF)
	g.setQueue(0, 16, 0x1000, 0x2000, 0x3000)
	g.write(mmio.RegQueueReady, 1)
	g.setStatus(ack | drv | okF | virtio.StatusFailed)
	g.setStatus(allOK | virtio.StatusFailed)
	g.want("status", uint32(g.status()), uint32(allOK|virtio.StatusFailed))
	if len(d.running()) > 0 {
		t.Error("queues were started for a driver that had given up")
	}
	if err := g.linux(); err != nil {
		t.Error("the next driver:", err)
	}
}

// The page has what Read answers, and only what differs is stored again.
func TestRenderStoresWhatReadAnswers(t *testing.T) {
	t.Parallel()
	d := newFake()
	g := newGuest(t, d, true, nil)
	check := func(when string) {
		t.Helper()
		all := make([]byte, mmio.WindowSize)
		g.r.Read(0, all)
		if !bytes.Equal(all, g.page) {
			t.Errorf("%s: the page is not what Read answers", when)
		}
	}
	check("at first")
	if err := g.linux(); err != nil {
		t.Fatal(err)
	}
	check("running")
	d.changeConfig(func(c []byte) { c[9]++ })
	check("changed")
	junk := bytes.Repeat([]byte{0xa5}, mmio.WindowSize) // whatever was there
	g.r.Render(junk)
	if !bytes.Equal(junk, g.page) {
		t.Error("another page is rendered differently")
	}
}

func TestDriversCannotFloodTheLog(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	d := newFake()
	g := newGuest(t, d, false, func(o *mmio.Options) { o.Log = hclog.New(&hclog.LoggerOptions{Output: &text}) })
	for range 1000 {
		g.r.Write(1, []byte{0})
		g.write(mmio.RegMagicValue, 0)
		g.setStatus(0)
	}
	if n := strings.Count(text.String(), "\n"); n == 0 || n > 20 {
		t.Errorf("%d lines:\n%s", n, text.String())
	}
}

func TestAddressesHaveTwoHalves(t *testing.T) {
	t.Parallel()
	d := newFake()
	d.sizes = []uint16{8}
	g := newGuest(t, d, false, nil)
	g.accept(wanted)
	const a guestmem.GPA = 0x9_8765_4320
	g.setQueue(0, 8, a, a+2, a+4)
	g.write(mmio.RegQueueReady, 1)
	g.setStatus(allOK) // outside the fake's memory, so it refuses, knowing the addresses
	if q := d.queues[0]; q.desc != a || q.driver != a+2 || q.device != a+4 {
		t.Errorf("%+v", q)
	}
}
