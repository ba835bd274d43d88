package device_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestACrashedInstanceIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.startQueue(t)
	events, cancel := r.Subscribe()
	defer cancel()
	<-events
	count(r.kick)
	f := r.instance(0)
	left := inflight(0, 0, map[uint16]uint16{3: 0})
	if _, err := unix.Pwrite(f.starts[0].Inflight, left, 0); err != nil {
		t.Fatal(err)
	}
	f.crash()
	g := r.instance(1)
	r.await(t, device.StateReady)
	wantCalls(t, g, "features {29,32}", "memory 1", "start 0 next=0 recover=true")
	equal(t, "in-flight region", g.flight[0], left)
	if count(r.kick) != 1 || count(r.call) != 1 {
		t.Error("kick and call were not signalled after the restart")
	}
	if e := <-events; e.State != device.StateRestarting || !errors.Is(e.Cause, device.ErrLost) {
		t.Errorf("event %+v", e)
	}
	if e := <-events; e.State != device.StateReady {
		t.Errorf("event %+v", e)
	}
}

func TestAnyCallThatLosesTheInstanceIsReplayed(t *testing.T) {
	t.Parallel()
	for call, do := range map[string]func(context.Context, *rig) error{
		"features {32}": func(ctx context.Context, r *rig) error { return r.SetFeatures(ctx, virtio.FVersion1) },
		"memory 1": func(ctx context.Context, r *rig) error {
			return errors.Join(r.SetFeatures(ctx, virtio.FVersion1), r.SetMemory(ctx, r.regions()))
		},
		"write 1 09": func(ctx context.Context, r *rig) error { return r.WriteConfig(ctx, 1, []byte{9}) },
	} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(_ *device.Options, h *host) {
				h.prepare = func(n int, f *fake) {
					if n == 0 {
						f.fail[call] = device.ErrLost
					}
				}
			})
			if err := do(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			g := r.instance(1)
			eventually(t, call+" at the new instance", func() bool { return slices.Contains(g.log(), call) })
		})
	}
}

func TestTheMachineNeedNotWaitForAnInstance(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	gate := make(chan struct{})
	r.set(func() { r.gate = gate })
	r.instance(0).crash()
	r.await(t, device.StateRestarting)
	r.startQueue(t)
	if err := r.WriteConfig(t.Context(), 2, []byte{7}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Command(t.Context(), "x", nil); !errors.Is(err, device.ErrNoInstance) {
		t.Error("command:", err)
	}
	if _, err := r.Statistics(t.Context()); !errors.Is(err, device.ErrNoInstance) {
		t.Error("statistics:", err)
	}
	close(gate)
	r.await(t, device.StateReady)
	wantCalls(t, r.instance(1), "features {29,32}", "write 2 07", "memory 1", "start 0 next=0 recover=false")
	equal(t, "config", r.ConfigSpace(), []byte{1, 2, 7, 4})
}

func TestDriversSettingsAreReplayedAndTriggersAreNot(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, err := range []error{
		r.WriteConfig(t.Context(), 0, []byte{0x55}), // does not read back
		r.WriteConfig(t.Context(), 1, []byte{5}), r.WriteConfig(t.Context(), 1, []byte{6}),
		r.WriteConfig(t.Context(), 2, []byte{3}), // as it was
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.instance(0).crash()
	g := r.instance(1)
	r.await(t, device.StateReady)
	wantCalls(t, g, "write 1 06")
}

func TestStopWithoutAnInstanceAnswersFromTheRings(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		used   uint16
		region []byte
		next   uint16
	}{
		{"nothing in flight", 5, inflight(5, 0, nil), 5},
		{"two in flight", 5, inflight(5, 0, map[uint16]uint16{1: 0, 6: 0}), 7},
		{"a published batch not cleared", 5, inflight(3, 1, map[uint16]uint16{1: 2, 2: 0, 6: 0}), 6},
		{"wrap", 0, inflight(0xffff, 4, map[uint16]uint16{4: 0, 7: 0}), 1},
		{"nonsense: batch of 60000", 5, inflight(10541, 1, map[uint16]uint16{1: 1}), 6},
		{"nonsense: batch head outside", 5, inflight(4, 999, map[uint16]uint16{1: 1}), 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			r.startQueue(t)
			f := r.instance(0)
			if _, err := unix.Pwrite(f.starts[0].Inflight, tc.region, 0); err != nil {
				t.Fatal(err)
			}
			r.setUsed(t, tc.used)
			gate := make(chan struct{})
			r.set(func() { r.gate = gate })
			f.crash()
			next, err := r.StopQueue(t.Context(), 0)
			if err != nil || next != tc.next || r.QueueBase(0) != tc.next || r.QueueRunning(0) {
				t.Errorf("stop: %d, %v: want %d", next, err, tc.next)
			}
			if err := errors.Join(r.SetQueue(0, qsize, descAt, availAt, usedAt), r.StartQueue(t.Context(), 0)); err != nil {
				t.Fatal(err)
			}
			close(gate)
			g := r.instance(1)
			r.await(t, device.StateReady)
			if q := g.starts[0]; q.Recover != (tc.next != tc.used) {
				t.Errorf("start after it: %+v", q)
			}
		})
	}
}

func TestStopOfAHungInstanceIsRepeatedOnTheNext(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *device.Options, _ *host) { o.Restart.StopWait = 20 * time.Second })
	r.startQueue(t)
	r.instance(0).failOn("stop 0", device.ErrLost)
	next, err := r.StopQueue(t.Context(), 0)
	if err != nil || next != 42 {
		t.Errorf("stop: %d, %v", next, err)
	}
	wantCalls(t, r.instance(1), "features {29,32}", "memory 1", "start 0 next=0 recover=true", "stop 0")
}

// The rings are the machine's again when the stop is answered: no process may write to them any more.
func TestStopOfASecondHungInstanceWaitsForItsEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *device.Options, h *host) {
		o.Restart.StopWait = 20 * time.Second
		h.prepare = func(_ int, f *fake) {
			f.failOn("stop 0", errors.New("no answer in time"))
			f.closing = 100 * time.Millisecond
		}
	})
	r.startQueue(t)
	if _, err := r.StopQueue(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	second := r.instance(1)
	select {
	case <-second.done:
	default:
		t.Error("the second instance is still there")
	}
}

func TestPauseSurvivesARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.startQueue(t)
	if err := errors.Join(r.Pause(t.Context()), r.Pause(t.Context())); err != nil {
		t.Fatal(err)
	}
	r.instance(0).crash()
	g := r.instance(1)
	r.await(t, device.StateReady)
	wantCalls(t, g, "features {29,32}", "memory 1")
	if err := r.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, g, "features {29,32}", "memory 1", "resume", "start 0 next=0 recover=true")
	wantCalls(t, r.instance(0), "features {29,32}", "memory 1", "start 0 next=0 recover=false", "pause")
}

func TestAnInstanceThatCannotContinueMeansReset(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		options func(*device.Options)
		spoil   func(*fake)
		want    string
	}{
		"features":      {nil, func(f *fake) { f.offer.Features = virtio.FVersion1 }, "lacks negotiated features {29}"},
		"queue count":   {nil, func(f *fake) { f.offer.QueueSizes = []uint16{64} }, "it has 1 queues, not 2"},
		"config size":   {nil, func(f *fake) { f.offer.Config = nil }, "has 0 bytes, not 4"},
		"refused start": {nil, func(f *fake) { f.fail["start"] = errors.New("in-flight region is damaged") }, "is damaged"},
		"no tracking":   {func(o *device.Options) { o.Unrecoverable = true }, nil, "does not track chains in flight"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(o *device.Options, h *host) {
				if tc.options != nil {
					tc.options(o)
				}
				h.prepare = func(n int, f *fake) {
					if n == 1 && tc.spoil != nil {
						tc.spoil(f)
					}
				}
			})
			told := make(chan struct{}, 1)
			r.OnNeedsReset(func() { told <- struct{}{} })
			r.startQueue(t)
			r.instance(0).crash()
			<-told
			if r.State() != device.StateFailed || !r.NeedsReset() || !strings.Contains(r.Cause().Error(), tc.want) {
				t.Errorf("state %v, cause %v: want %q", r.State(), r.Cause(), tc.want)
			}
			if !r.instance(1).closed {
				t.Error("the instance was left running")
			}
			if err := r.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.await(t, device.StateReady)
			if r.NeedsReset() {
				t.Error("still needs a reset")
			}
			r.startQueue(t)
			wantCalls(t, r.instance(2), "features {29,32}", "memory 1", "start 0 next=0 recover=false")
		})
	}
}

func TestBudgetAndDegradedState(t *testing.T) {
	t.Parallel()
	broken := errors.New("no such image")
	r := newRig(t, func(o *device.Options, _ *host) { o.Restart.Budget, o.Restart.DegradedAfter = 4, 2 })
	events, cancel := r.Subscribe()
	defer cancel()
	<-events
	r.set(func() { r.startErr = broken })
	r.instance(0).crash()
	for _, want := range []device.State{device.StateRestarting, device.StateDegraded, device.StateFailed} {
		if e := <-events; e.State != want {
			t.Errorf("state %v: want %v", e.State, want)
		}
	}
	if c := r.Cause(); !errors.Is(c, broken) || !strings.Contains(c.Error(), "after 4 attempts") {
		t.Error("cause:", c)
	}
	r.set(func() { r.startErr = nil })
	if err := r.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await(t, device.StateReady)
}

func TestNegativeBudgetNeverRestartsButAReset(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *device.Options, _ *host) { o.Restart.Budget = -1 })
	r.instance(0).crash()
	r.await(t, device.StateFailed)
	if err := r.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await(t, device.StateReady)
	r.instance(1)
}

func TestHealthChecksFindAHungInstance(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *device.Options, _ *host) { o.Restart.HealthInterval = 5 * time.Millisecond })
	r.instance(0).failOn("health", errors.New("disk is slow")) // unwell, but there
	eventually(t, "two health checks", func() bool { return len(r.instance(0).log()) > 1 })
	if r.State() != device.StateReady {
		t.Error("state", r.State())
	}
	r.instance(0).failOn("health", device.ErrLost)
	r.instance(1)
	r.await(t, device.StateReady)
}

func TestAnInstanceThatCannotResetIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.startQueue(t)
	r.instance(0).failOn("reset", errors.New("cannot"))
	if err := r.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await(t, device.StateReady)
	wantCalls(t, r.instance(1))
}

func TestEventsOfALateInstanceDoNotCount(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	gate := make(chan struct{})
	r.set(func() { r.gate = gate })
	f := r.instance(0)
	f.failOn("features {32}", device.ErrLost)
	if err := r.SetFeatures(t.Context(), virtio.FVersion1); err != nil {
		t.Fatal(err)
	}
	// f is given up but may still have something to tell, until it is closed.
	func() {
		defer func() { _ = recover() }() // closed already: as good
		f.events <- pluginrpc.ConfigChanged{Config: []byte{9, 9, 9, 9}}
	}()
	close(gate)
	r.await(t, device.StateReady)
	equal(t, "config", r.ConfigSpace(), []byte{1, 2, 3, 4})
}

// Machine calls from several goroutines while instances die: nothing hangs, races or leaks, and in the end the device
// works and the last instance has been told exactly what the machine set up.
func TestMachineCallsAmidCrashes(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *device.Options, _ *host) { o.Restart.StopWait = 5 * time.Millisecond })
	r.setUp(t)
	ctx := t.Context()
	end := time.Now().Add(time.Second)
	var wg sync.WaitGroup
	for n := range uint64(3) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(n, 1)) //nolint:gosec // a test
			for time.Now().Before(end) {
				var err error
				switch rnd.IntN(8) {
				case 0, 1:
					err = r.StartQueue(ctx, 0)
				case 2:
					_, err = r.StopQueue(ctx, 0)
				case 3:
					err = r.SetMemory(ctx, r.regions())
				case 4:
					err = r.WriteConfig(ctx, 1, []byte{byte(rnd.Uint32() % 256)})
				case 5:
					err = errors.Join(r.Pause(ctx), r.Resume(ctx))
				case 6:
					_ = r.ConfigSpace()
					_, _ = r.Statistics(ctx)
				case 7:
					_, call := eventfd(t)
					err = r.SetCall(ctx, 0, call)
				}
				if err != nil && !errors.Is(err, device.ErrBadRequest) {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(9, 9)) //nolint:gosec // a test
		for time.Now().Before(end) {
			r.mu.Lock()
			f := r.instances[len(r.instances)-1]
			r.mu.Unlock()
			f.crash()
			time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond)
		}
	})
	wg.Wait()
	if _, err := r.StopQueue(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Reset(ctx), r.Resume(ctx)); err != nil {
		t.Fatal(err)
	}
	r.await(t, device.StateReady)
	r.setUp(t)
	if err := r.StartQueue(ctx, 0); err != nil {
		t.Fatal(err)
	}
}
