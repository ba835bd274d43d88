package device_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// stateRig is a rig whose instances use a state region as the SDK does: a fake takes up what it finds when it gets its features, and
// from then on may save.
type stateRig struct {
	*rig
	region *device.StateRegion
}

func newStateRig(t *testing.T, change func(*device.Options, *host)) *stateRig {
	t.Helper()
	region, err := device.NewStateRegion()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(region.Close(), region.Close()); err != nil {
			t.Error(err)
		}
	})
	return &stateRig{region: region, rig: newRig(t, func(o *device.Options, h *host) {
		o.State = region
		h.prepare = func(_ int, f *fake) {
			f.onFeatures = func() string { return fmt.Sprintf("finds %d", stateIn(t, region)) }
		}
		if change != nil {
			change(o, h)
		}
	})}
}

// stateIn is the sequence of the first slot: here it stands for the state.
func stateIn(t *testing.T, r *device.StateRegion) uint64 {
	t.Helper()
	var b [8]byte
	if _, err := unix.Pread(r.FD(), b[:], 0); err != nil {
		t.Error(err)
	}
	return binary.NativeEndian.Uint64(b[:])
}

func (r *stateRig) save(t *testing.T, state uint64) {
	t.Helper()
	b := binary.NativeEndian.AppendUint64(nil, state)
	for _, at := range []int64{0, 32 << 10} {
		if _, err := unix.Pwrite(r.region.FD(), b, at); err != nil {
			t.Error(err)
		}
	}
}

func TestAStateRegionIsSealedAndEmpty(t *testing.T) {
	t.Parallel()
	r, err := device.NewStateRegion()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(r.FD(), &st); err != nil || st.Size != 64<<10 {
		t.Errorf("%d bytes, %v", st.Size, err)
	}
	if err := unix.Ftruncate(r.FD(), 100); !errors.Is(err, unix.EPERM) {
		t.Errorf("shrink: %v", err)
	}
	if err := unix.Ftruncate(r.FD(), 1<<20); !errors.Is(err, unix.EPERM) {
		t.Errorf("grow: %v", err)
	}
	b := make([]byte, 64<<10)
	if _, err := unix.Pread(r.FD(), b, 0); err != nil || strings.Trim(string(b), "\x00") != "" {
		t.Errorf("not empty, or %v", err)
	}
}

func TestTheStateOutlivesAnInstance(t *testing.T) {
	t.Parallel()
	r := newStateRig(t, nil)
	r.save(t, 99) // of a former device of this region
	r.startQueue(t)
	r.save(t, 7)
	r.instance(0).crash()
	g := r.instance(1)
	r.await(t, device.StateReady)
	wantCalls(t, r.instance(0), "features {29,32}", "finds 0", "memory 1", "start 0 next=0 recover=false")
	wantCalls(t, g, "features {29,32}", "finds 7", "memory 1", "start 0 next=0 recover=true")
	// Other features without a reset: a front-end may do so before it starts queues again.
	if _, err := r.StopQueue(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := r.SetFeatures(t.Context(), virtio.FVersion1); err != nil {
		t.Fatal(err)
	}
	if stateIn(t, r.region) != 7 {
		t.Error("features without a reset forgot the state")
	}
}

func TestAResetForgetsTheState(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		// between is what happens from the moment when state 7 stands there until the new driver sets its features.
		between func(t *testing.T, r *stateRig)
		// restarted: another instance gets the features.
		restarted bool
	}{
		"by an instance that leaves that to the launcher": {func(t *testing.T, r *stateRig) {
			t.Helper()
			reset(t, r)
		}, false},
		"of a device without an instance": {func(t *testing.T, r *stateRig) {
			t.Helper()
			gate := r.crash(t)
			reset(t, r)
			close(gate)
		}, true},
		"and the new driver is faster than the next instance": {func(t *testing.T, r *stateRig) {
			t.Helper()
			gate := r.crash(t)
			reset(t, r)
			r.setUp(t)
			close(gate)
		}, true},
		"while a process that is given up saves once more": {func(t *testing.T, r *stateRig) {
			t.Helper()
			gate := r.crash(t)
			reset(t, r)
			r.save(t, 8)
			r.setUp(t)
			r.save(t, 9)
			close(gate)
		}, true},
		"by an instance that hangs in it": {func(t *testing.T, r *stateRig) {
			t.Helper()
			gate := make(chan struct{})
			r.set(func() { r.gate = gate })
			r.instance(0).failOn("reset", device.ErrLost)
			reset(t, r)
			r.save(t, 8)
			close(gate)
		}, true},
		"by an instance that refuses": {func(t *testing.T, r *stateRig) {
			t.Helper()
			r.instance(0).failOn("reset", errors.New("cannot"))
			reset(t, r)
		}, true},
		"twice": {func(t *testing.T, r *stateRig) {
			t.Helper()
			reset(t, r)
			gate := r.crash(t)
			reset(t, r)
			close(gate)
		}, true},
		"at the machine's end": {func(t *testing.T, r *stateRig) {
			t.Helper()
			if err := r.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newStateRig(t, nil)
			r.startQueue(t)
			r.save(t, 7)
			tc.between(t, r)
			n := 0
			if tc.restarted {
				n = 1
				r.instance(1)
				r.await(t, device.StateReady)
			}
			if _, ok := r.Negotiated(); !ok {
				r.setUp(t)
			}
			eventually(t, "features at the instance", func() bool {
				return strings.Contains(strings.Join(r.instance(n).log(), " "), "finds")
			})
			log := strings.Join(r.instance(n).log(), ", ")
			if at := strings.LastIndex(log, "finds "); log[at:at+7] != "finds 0" {
				t.Errorf("after the reset: %s", log)
			}
			// And what the new driver tells is kept.
			r.save(t, 11)
			r.instance(n).crash()
			next := r.instance(n + 1)
			r.await(t, device.StateReady)
			if log := strings.Join(next.log(), ", "); !strings.Contains(log, "finds 11") {
				t.Errorf("the new driver's state: %s", log)
			}
		})
	}
}

// crash ends the first instance; the next starts when gate is closed.
func (r *stateRig) crash(t *testing.T) (gate chan struct{}) {
	t.Helper()
	gate = make(chan struct{})
	r.set(func() { r.gate = gate })
	r.instance(0).crash()
	r.await(t, device.StateRestarting)
	return gate
}

func reset(t *testing.T, r *stateRig) {
	t.Helper()
	if err := r.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// One that died after it had taken up the features of a new driver has that driver's state.
func TestAnInstanceThatDiesWhileItTakesOverKeepsTheState(t *testing.T) {
	t.Parallel()
	r := newStateRig(t, nil)
	r.set(func() {
		prepare := r.prepare
		r.prepare = func(n int, f *fake) {
			prepare(n, f)
			if n == 1 {
				f.fail["start"] = device.ErrLost // after its features
				f.onFeatures = func() string { r.save(t, 5); return "saves 5" }
			}
		}
	})
	r.startQueue(t)
	gate := r.crash(t)
	reset(t, r)
	r.setUp(t)
	if err := r.StartQueue(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	close(gate)
	third := r.instance(2)
	r.await(t, device.StateReady)
	if log := strings.Join(third.log(), ", "); !strings.Contains(log, "finds 5") {
		t.Errorf("the third instance: %s", log)
	}
}

// A state that the new instance does not know: the driver is asked for a reset, which forgets it.
func TestAStateThatCannotBeTakenUpMeansReset(t *testing.T) {
	t.Parallel()
	r := newStateRig(t, nil)
	r.set(func() {
		prepare := r.prepare
		r.prepare = func(n int, f *fake) {
			prepare(n, f)
			if n > 0 {
				f.refuseFeatures = func() error {
					if stateIn(t, r.region) != 0 {
						return errors.New("restore the state of a former instance: format 9 is unknown")
					}
					return nil
				}
			}
		}
	})
	r.startQueue(t)
	r.save(t, 7)
	r.instance(0).crash()
	r.await(t, device.StateFailed)
	if !r.NeedsReset() || !strings.Contains(r.Cause().Error(), "format 9") {
		t.Errorf("cause %v", r.Cause())
	}
	reset(t, r)
	r.await(t, device.StateReady)
	r.setUp(t)
	if r.NeedsReset() {
		t.Error("still needs a reset")
	}
}

// Resets and saves amid crashes: no instance ever finds the state of a driver before the present one.
func TestNoStateOfAFormerDriverIsEverFound(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	driver := uint64(1) // which driver is there: what it tells is its number
	r := newStateRig(t, func(_ *device.Options, h *host) {
		prepare := h.prepare
		h.prepare = func(n int, f *fake) {
			prepare(n, f)
			find := f.onFeatures
			f.onFeatures = func() string {
				found := find()
				mu.Lock()
				defer mu.Unlock()
				if found != "finds 0" && found != fmt.Sprintf("finds %d", driver) {
					t.Errorf("driver %d: an instance %s", driver, found)
				}
				return found
			}
		}
	})
	r.setUp(t)
	end := time.Now().Add(time.Second)
	var wg sync.WaitGroup
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
	resets := 0
	for ; time.Now().Before(end); resets++ {
		mu.Lock()
		r.save(t, driver) // what an instance does for its driver
		mu.Unlock()
		if err := r.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.save(t, driver) // by a process that is given up, or by one that does not keep to the protocol
		mu.Lock()
		driver++
		mu.Unlock()
		if err := r.SetFeatures(t.Context(), features); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if resets < 10 {
		t.Errorf("%d resets: nothing is tested", resets)
	}
}

func TestWithoutARegionNothingIsCleared(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.startQueue(t)
	if err := r.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.setUp(t)
	r.instance(0).crash()
	r.instance(1)
	r.await(t, device.StateReady)
}

// A region that cannot be emptied must not reach the next driver.
func TestARegionThatCannotBeClearedRefusesTheFeatures(t *testing.T) {
	t.Parallel()
	r := newStateRig(t, nil)
	r.setUp(t)
	r.save(t, 7)
	reset(t, r)
	if err := r.region.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.SetFeatures(context.Background(), features); !errors.Is(err, os.ErrClosed) {
		t.Errorf("features: %v", err)
	}
}
