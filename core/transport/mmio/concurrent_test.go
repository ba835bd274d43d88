package mmio_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// limit is how long something may take that must not wait for what never comes.
const limit = 20 * time.Second

// within fails if f takes longer than limit.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("%s hangs", what)
	}
}

// hold makes the device's calls of that name wait; entered tells when one does, release lets it go.
func (f *fake) hold(name string) (entered <-chan string, release func()) {
	gate := make(chan struct{})
	in := make(chan string, 16)
	f.set(func() { f.gates[name] = gate; f.entered = in })
	return in, func() { f.set(func() { delete(f.gates, name) }); close(gate) }
}

// While one virtual CPU waits for the plugin, the others read, and write what needs no plugin.
func TestOtherCPUsGoOnWhileAWriteWaits(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"features", "start", "reset", "config", "stop"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, d *fake, g *guest) {
				t.Helper()
				writes := map[string]func(){
					"features": func() { g.setStatus(allOK &^ okD) },
					"start":    func() { g.setStatus(allOK) },
					"reset":    func() { g.setStatus(0) },
					"config":   func() { g.r.Write(mmio.RegConfig, []byte{99}) },
					"stop":     func() { g.write(mmio.RegQueueReady, 0) },
				}
				if what == "reset" || what == "stop" {
					if err := g.linux(); err != nil {
						t.Fatal(err)
					}
					g.write(mmio.RegQueueSel, 0)
				} else {
					g.setStatus(ack | drv)
					g.accept(wanted)
					g.setQueue(0, 16, 0x1000, 0x2000, 0x3000)
					g.write(mmio.RegQueueReady, 1)
				}
				before := g.status()
				entered, release := d.hold(what)
				done := make(chan struct{})
				go func() { defer close(done); writes[what]() }()
				within(t, "the device's call", func() { <-entered })
				if what == "start" {
					// A queue may interrupt as soon as it starts, so the driver must find a reason already.
					g.want("InterruptStatus", g.read(mmio.RegInterruptStatus)&mmio.InterruptUsed, mmio.InterruptUsed)
				}
				within(t, "another CPU", func() {
					if s := g.status(); what != "start" && s != before {
						t.Errorf("status %#x shows before it is so, after %#x", s, before)
					}
					g.want("MagicValue", g.read(mmio.RegMagicValue), mmio.MagicValue)
					g.write(mmio.RegQueueSel, 2)
					g.want("QueueNumMax", g.read(mmio.RegQueueNumMax), 8)
					g.write(mmio.RegInterruptACK, 3)
					g.write(mmio.RegQueueNotify, 0)
					d.changeConfig(func(c []byte) { c[1]++ })
					d.askReset()
					g.want("NEEDS_RESET", uint32(g.status()&virtio.StatusNeedsReset), uint32(virtio.StatusNeedsReset))
				})
				select {
				case <-done:
					t.Error("the write did not wait")
				default:
				}
				release()
				within(t, "the write", func() { <-done })
			})
		})
	}
}

// A reset is the last word, whatever another CPU is in the middle of.
func TestAResetInTheMiddleOfEverything(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"features", "start", "config", "reset", "stop"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, d *fake, g *guest) {
				t.Helper()
				entered, release := d.hold(what)
				var cpus sync.WaitGroup
				cpus.Go(func() {
					_ = g.linux()
					g.r.Write(mmio.RegConfig, []byte{99})
					g.write(mmio.RegQueueSel, 0)
					g.write(mmio.RegQueueReady, 0)
					g.setStatus(0)
				})
				within(t, "the device's call", func() { <-entered })
				cpus.Go(func() { g.setStatus(0) })
				release()
				within(t, "the CPUs", cpus.Wait)
				g.want("status", uint32(g.status()), 0)
				g.want("InterruptStatus", g.read(mmio.RegInterruptStatus), 0)
				if len(d.running()) > 0 {
					t.Errorf("queues %v run", d.running())
				}
				if err := g.linux(); err != nil {
					t.Error("the next driver:", err)
				}
			})
		})
	}
}

// The machine ends while a virtual CPU waits for a plugin that hangs: the Write returns, and nothing comes afterwards.
func TestTheMachineEndsWhileAWriteWaits(t *testing.T) {
	t.Parallel()
	d := newFake()
	ctx, cancel := context.WithCancel(t.Context())
	var after atomic.Bool
	g := newGuest(t, d, false, func(o *mmio.Options) {
		o.Context = ctx
		o.Changed = func() {
			if after.Load() {
				t.Error("a callback after Close")
			}
		}
		o.Interrupt = o.Changed
	})
	entered, release := d.hold("reset")
	var cpus sync.WaitGroup
	cpus.Go(func() { g.setStatus(0) })
	within(t, "the device's call", func() { <-entered })
	cpus.Go(func() { g.setStatus(ack) }) // waits for the other
	cancel()
	within(t, "a Write", cpus.Wait)
	cpus.Go(g.r.Close) // waits for the call
	eventually(t, "the end of callbacks", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.onNeeds == nil
	})
	after.Store(true)
	g.setStatus(0)
	g.write(mmio.RegQueueSel, 1)
	g.r.Write(mmio.RegConfig, []byte{1})
	d.askReset()
	release()
	within(t, "Close", cpus.Wait)
	wantCalls(t, d, "reset")
}

// Close waits for a callback that runs.
func TestNoCallbackRunsOnceCloseHasReturned(t *testing.T) {
	t.Parallel()
	d := newFake()
	var running, closed atomic.Bool
	in, out := make(chan struct{}, 1), make(chan struct{})
	g := newGuest(t, d, false, func(o *mmio.Options) {
		o.Changed = func() {
			running.Store(true)
			in <- struct{}{}
			<-out
			if closed.Load() {
				t.Error("Close returned while a callback ran")
			}
			running.Store(false)
		}
	})
	var all sync.WaitGroup
	all.Go(func() { d.changeConfig(func(c []byte) { c[0]++ }) })
	<-in
	all.Go(func() {
		g.r.Close()
		closed.Store(true)
		if running.Load() {
			t.Error("Close returned while a callback ran")
		}
	})
	close(out)
	within(t, "Close", all.Wait)
}

// Several virtual CPUs hammer every register while the device changes, asks for resets and another CPU renders.
func TestCPUsAndDeviceAtOnce(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, d *fake, g *guest) {
		t.Helper()
		const rounds = 300
		var all sync.WaitGroup
		for cpu := range uint32(4) {
			all.Go(func() {
				for i := range uint32(rounds) {
					switch (i + cpu) % 8 {
					case 0:
						_ = g.linux()
					case 1:
						g.setStatus(0)
					case 2:
						g.write(mmio.RegQueueReady, i%2)
					default:
						g.write(int(i%64)*4, i)
						g.read(int(i%64) * 4)
					}
				}
			})
		}
		all.Go(func() {
			for i := range rounds {
				d.changeConfig(func(c []byte) { c[i%10]++ })
				if i%50 == 0 {
					d.askReset()
				}
			}
		})
		within(t, "the CPUs", all.Wait)
		if err := g.linux(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(d.running(), []int{0, 1, 2}) {
			t.Errorf("queues %v run", d.running())
		}
	})
}

// A change of the space is stored while the guest cannot read the page, and nothing else is worth that.
func TestThePageIsWithdrawnForAChangeOfTheSpace(t *testing.T) {
	t.Parallel()
	d := newFake()
	var g *guest
	withdrawn := 0
	g = newGuest(t, d, true, func(o *mmio.Options) {
		o.Withdraw = func(store func()) {
			withdrawn++
			before := bytes.Clone(g.page)
			d.set(func() {
				if bytes.Equal(before[mmio.RegConfig:][:len(d.config)], d.config) {
					t.Error("the space was stored before the page was withdrawn")
				}
			})
			store()
			if bytes.Equal(before, g.page) {
				t.Error("nothing was stored while the page was withdrawn")
			}
		}
	})
	if err := g.linux(); err != nil {
		t.Fatal(err)
	}
	if withdrawn != 0 {
		t.Errorf("the page was withdrawn %d times although the space did not change", withdrawn)
	}
	d.changeConfig(func(c []byte) { c[9]++ })
	g.r.Write(mmio.RegConfig, []byte{0x77})
	g.setStatus(0)
	if withdrawn != 2 {
		t.Errorf("the page was withdrawn %d times for 2 changes", withdrawn)
	}
}

// Read shows a change when the page does: otherwise a driver that is served by both in turn could see a generation twice, with
// other bytes in between.
func TestAChangeShowsWhenItIsRendered(t *testing.T) {
	t.Parallel()
	d := newFake()
	g := newGuest(t, d, false, func(o *mmio.Options) { o.Changed = func() {} })
	generation, before := g.read(mmio.RegConfigGeneration), g.bytes(mmio.RegConfig, 10)
	d.changeConfig(func(c []byte) { c[0]++ })
	if g.read(mmio.RegConfigGeneration) != generation || !bytes.Equal(g.bytes(mmio.RegConfig, 10), before) {
		t.Error("the change shows before it was rendered")
	}
	g.r.Render(make([]byte, mmio.WindowSize))
	if g.read(mmio.RegConfigGeneration) == generation || bytes.Equal(g.bytes(mmio.RegConfig, 10), before) {
		t.Error("the change does not show once it was rendered")
	}
}

// slot is a memory slot that can be withdrawn, as KVM's: no read is under way in it once it is.
type slot struct {
	mu   sync.RWMutex
	away bool
}

func (s *slot) withdraw(store func()) {
	s.mu.Lock()
	s.away = true
	s.mu.Unlock()
	store()
	s.mu.Lock()
	s.away = false
	s.mu.Unlock()
}

// read32 is one access of a guest: to the page, or if that is away, an exit.
func (s *slot) read32(g *guest, at int) uint32 {
	s.mu.RLock()
	if !s.away {
		defer s.mu.RUnlock()
		return binary.LittleEndian.Uint32(g.page[at:])
	}
	s.mu.RUnlock()
	var p [4]byte
	g.r.Read(uint64(at), p[:]) //nolint:gosec // small
	return binary.LittleEndian.Uint32(p[:])
}

// A driver that reads generation, space, generation and finds the same number has read one state of the space (2.5.1),
// however the device changes meanwhile.
func TestOneGenerationIsOneSpace(t *testing.T) {
	t.Parallel()
	for _, paged := range []bool{true, false} {
		t.Run(fmt.Sprintf("paged=%t", paged), func(t *testing.T) {
			t.Parallel()
			const words, changes = 16, 2000
			d := newFake()
			d.config = make([]byte, 4*words)
			s := &slot{}
			g := newGuest(t, d, paged, func(o *mmio.Options) {
				if paged {
					o.Withdraw = s.withdraw
				}
			})
			if err := g.linux(); err != nil {
				t.Fatal(err)
			}
			read := g.read
			if paged {
				read = func(at int) uint32 { return s.read32(g, at) }
			}
			var changing, reading sync.WaitGroup
			var ended atomic.Bool
			for range 2 {
				reading.Go(func() {
					var last uint32
					for good := 0; good < 20 || !ended.Load(); {
						generation := read(mmio.RegConfigGeneration)
						var v [words]uint32
						for i := range v {
							v[i] = read(mmio.RegConfig + 4*i)
						}
						if read(mmio.RegConfigGeneration) != generation {
							continue
						}
						good++
						if slices.Min(v[:]) != slices.Max(v[:]) {
							t.Errorf("generation %d: %d", generation, v)
							return
						}
						if v[0] < last {
							t.Errorf("the space went back from %d to %d", last, v[0])
							return
						}
						last = v[0]
					}
				})
			}
			changing.Go(func() {
				for v := range uint32(changes) {
					d.changeConfig(func(c []byte) {
						for i := range words {
							binary.LittleEndian.PutUint32(c[4*i:], v+1)
						}
					})
				}
			})
			changing.Go(func() { // another CPU, which has everything rendered again and again
				for range changes {
					g.write(mmio.RegInterruptACK, 3)
				}
			})
			within(t, "the device", changing.Wait)
			ended.Store(true)
			within(t, "the driver", reading.Wait)
			g.want("the space in the end", read(mmio.RegConfig), changes)
		})
	}
}
