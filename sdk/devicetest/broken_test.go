package devicetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/internal/shm"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// handler is a device made of its ChainHandler.
type handler func(q *sdk.Queue, c *virtq.Chain) error

func (handler) Spec() sdk.Spec { return sdk.Spec{QueueSizes: []uint16{64, 16}, Features: 1 << 3} }
func (h handler) HandleChain(_ context.Context, q *sdk.Queue, c *virtq.Chain) error {
	return h(q, c)
}
func (handler) ReadConfig() []byte { return []byte{1, 2, 3, 4} }

// fills is a good one.
func fills(_ *sdk.Queue, c *virtq.Chain) error { c.Writer().Advance(c.WritableLen()); return nil }

// loop is a device made of its QueueRunner.
type loop func(ctx context.Context, q *sdk.Queue) error

func (loop) Spec() sdk.Spec                                     { return handler.Spec(nil) }
func (l loop) RunQueue(ctx context.Context, q *sdk.Queue) error { return l(ctx, q) }

// ringAccess is a device's own way to the used ring, past the SDK, which would not let it do wrong.
type ringAccess struct {
	Target
	mu    sync.Mutex
	mem   *guestmem.Memory
	rings [2][]byte
	idx   [2]uint16
}

func (r *ringAccess) AttachMemory(ctx context.Context, regions []guestmem.MapRegion) (err error) {
	if r.mem, err = guestmem.Map(regions); err != nil {
		return err
	}
	return r.Target.AttachMemory(ctx, regions)
}

func (r *ringAccess) StartQueue(ctx context.Context, q pluginrpc.QueueStart) (n int, err error) {
	r.mu.Lock()
	r.rings[q.Index], err = r.mem.Slice(q.DeviceArea, virtio.UsedRingBytes(q.Size))
	r.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return r.Target.StartQueue(ctx, q)
}

// use publishes used elements.
func (r *ringAccess) use(queue int, size uint16, head uint16, lengths ...uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.rings[queue]
	for _, n := range lengths {
		at := 4 + 8*int(r.idx[queue]%size)
		put32(b[at:], uint32(head))
		put32(b[at+4:], n)
		r.idx[queue]++
	}
	w, err := shm.WordAt(b, 0)
	if err != nil {
		panic(err)
	}
	w.Store(uint32(r.idx[queue]) << 16)
}

// wrong is a Target with some methods replaced.
type wrong struct {
	Target
	describe   func(*pluginv1.DescribeResponse)
	configure  func(error) error
	features   func(error) error
	write      func(error) error
	memory     func([]guestmem.MapRegion)
	memoryErr  func(error) error
	start      func(*pluginrpc.QueueStart)
	startErr   func(error) error
	stop       func(*pluginrpc.QueueState)
	neverStops bool
	pause      func() error
	resets     func() error
	health     error
	statistics func(*pluginrpc.Statistics)
	command    func(error) error
	closeAgain error
	closed     bool
}

func swallow(error) error { return nil }

func apply(f func(error) error, err error) error {
	if f != nil && err != nil {
		return f(err)
	}
	return err
}

func (w *wrong) Describe(ctx context.Context) (*pluginv1.DescribeResponse, error) {
	d, err := w.Target.Describe(ctx)
	if w.describe != nil {
		w.describe(d)
	}
	return d, err
}

func (w *wrong) Configure(ctx context.Context, s pluginrpc.Settings) (pluginrpc.Offer, error) {
	o, err := w.Target.Configure(ctx, s)
	return o, apply(w.configure, err)
}

func (w *wrong) SetFeatures(ctx context.Context, f virtio.Features) ([]byte, error) {
	b, err := w.Target.SetFeatures(ctx, f)
	return b, apply(w.features, err)
}

func (w *wrong) WriteConfig(ctx context.Context, at int, data []byte) ([]byte, error) {
	b, err := w.Target.WriteConfig(ctx, at, data)
	return b, apply(w.write, err)
}

func (w *wrong) AttachMemory(ctx context.Context, r []guestmem.MapRegion) error {
	if w.memory != nil {
		w.memory(r)
	}
	return apply(w.memoryErr, w.Target.AttachMemory(ctx, r))
}

func (w *wrong) StartQueue(ctx context.Context, q pluginrpc.QueueStart) (int, error) {
	if w.start != nil {
		w.start(&q)
	}
	n, err := w.Target.StartQueue(ctx, q)
	return n, apply(w.startErr, err)
}

func (w *wrong) StopQueue(ctx context.Context, i int) (pluginrpc.QueueState, error) {
	if w.neverStops {
		return pluginrpc.QueueState{}, nil
	}
	s, err := w.Target.StopQueue(ctx, i)
	if w.stop != nil {
		w.stop(&s)
	}
	return s, err
}

func (w *wrong) Pause(ctx context.Context) error {
	if w.pause != nil {
		return w.pause()
	}
	return w.Target.Pause(ctx)
}

func (w *wrong) Reset(ctx context.Context) error {
	if w.resets != nil {
		return w.resets()
	}
	return w.Target.Reset(ctx)
}

func (w *wrong) Health(ctx context.Context) error { return errors.Join(w.health, w.Target.Health(ctx)) }

func (w *wrong) Statistics(ctx context.Context) (pluginrpc.Statistics, error) {
	s, err := w.Target.Statistics(ctx)
	if w.statistics != nil {
		w.statistics(&s)
	}
	return s, err
}

func (w *wrong) Command(ctx context.Context, name string, args []byte) ([]byte, error) {
	b, err := w.Target.Command(ctx, name, args)
	return b, apply(w.command, err)
}

func (w *wrong) Close() error {
	err := w.Target.Close()
	if w.closed {
		err = w.closeAgain
	}
	w.closed = true
	return err
}

func sample(d sdk.Device) sdk.Plugin[sdk.NoConfig] {
	return sdk.Plugin[sdk.NoConfig]{
		Name: "sample", Version: "1.0.0", Device: virtio.IDEntropy,
		New: func(*sdk.Env, sdk.NoConfig) (sdk.Device, error) { return d, nil },
	}
}

// with makes instances of a good device behind what spoil makes.
func with(spoil func(w *wrong)) Opener {
	open := InProcess(sample(handler(fills)))
	return func(ctx context.Context, log hclog.Logger) (Target, error) {
		target, err := open(ctx, log)
		w := &wrong{Target: target}
		spoil(w)
		return w, err
	}
}

// onRing makes instances whose device answers chains past the SDK. To be caught with event indices: without them the SDK
// keeps writing its flag, and the used index with it.
func onRing(h func(r *ringAccess, q *sdk.Queue, c *virtq.Chain)) Opener {
	return func(ctx context.Context, log hclog.Logger) (Target, error) {
		r := &ringAccess{}
		var err error
		r.Target, err = InProcess(sample(handler(func(q *sdk.Queue, c *virtq.Chain) error {
			h(r, q, c)
			return sdk.ErrLater
		})))(ctx, log)
		return r, err
	}
}

func legacySample(d sdk.Device) Opener {
	p := sample(d)
	p.Legacy = true
	return InProcess(p)
}

// stateless is a device with a state, that does wrong with it.
type stateless struct {
	handler
	env *sdk.Env
	// forgets: it begins anew whatever it is given. refuses: it takes up nothing. haunts: it does not hear of resets.
	forgets, refuses, haunts bool
	// late: it saves nothing before the first chain; nothing is wrong with that.
	late bool

	mu sync.Mutex
	n  byte
}

func (d *stateless) RunQueue(ctx context.Context, q *sdk.Queue) error {
	save := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		_ = d.env.SaveState([]byte{d.n})
	}
	if !d.late {
		save()
	}
	return sdk.Serve(ctx, q, func(_ context.Context, q *sdk.Queue, c *virtq.Chain) error {
		d.mu.Lock()
		d.n++
		d.mu.Unlock()
		save()
		return fills(q, c)
	})
}

func (d *stateless) RestoreState(b []byte) error {
	switch {
	case d.refuses || len(b) != 1:
		return errors.New("what is this")
	case !d.forgets:
		d.n = b[0]
	}
	return nil
}

func (d *stateless) Reset() error {
	if !d.haunts {
		d.n = 0
	}
	return nil
}

// regionAccess is a device's own way to the state region, past the SDK, which would not let it do wrong.
type regionAccess struct {
	Target
	fd int

	configured, stopped func()
	features            func() error
	noReset             bool
}

func (r *regionAccess) put(b []byte) { _, _ = unix.Pwrite(r.fd, b, 0) }

func (r *regionAccess) get() []byte {
	b := make([]byte, regionBytes)
	_, _ = unix.Pread(r.fd, b, 0)
	return b
}

func (r *regionAccess) Configure(ctx context.Context, s pluginrpc.Settings) (pluginrpc.Offer, error) {
	if r.fd = s.State; r.configured != nil && r.fd != 0 {
		r.configured()
	}
	return r.Target.Configure(ctx, s)
}

func (r *regionAccess) SetFeatures(ctx context.Context, f virtio.Features) ([]byte, error) {
	if r.features != nil {
		if err := r.features(); err != nil {
			return nil, err
		}
	}
	return r.Target.SetFeatures(ctx, f)
}

func (r *regionAccess) StopQueue(ctx context.Context, i int) (pluginrpc.QueueState, error) {
	s, err := r.Target.StopQueue(ctx, i)
	if r.stopped != nil {
		r.stopped()
	}
	return s, err
}

func (r *regionAccess) Reset(ctx context.Context) error {
	if r.noReset {
		return nil
	}
	return r.Target.Reset(ctx)
}

// stateful makes instances of a device with a state, spoilt, behind what reaches the region.
func stateful(spoil func(*stateless), access func(*regionAccess)) Opener {
	p := sample(nil)
	p.State, p.New = true, func(env *sdk.Env, _ sdk.NoConfig) (sdk.Device, error) {
		d := &stateless{handler: fills, env: env}
		if spoil != nil {
			spoil(d)
		}
		return d, nil
	}
	return func(ctx context.Context, log hclog.Logger) (Target, error) {
		target, err := InProcess(p)(ctx, log)
		r := &regionAccess{Target: target}
		if access != nil {
			access(r)
		}
		return r, err
	}
}

// The devices above do only one thing wrong each.
func TestADeviceWithAStatePasses(t *testing.T) {
	t.Parallel()
	s, err := newSuite(t.Context(), stateful(nil, nil), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range Cases() {
		if !strings.HasPrefix(c.Name, "state/") {
			continue
		}
		if r := s.run(t.Context(), c); r.Status != Pass {
			t.Errorf("%s: %v: %s", c.Name, r.Status, r.Reason)
		}
	}
}

func device(d sdk.Device) Opener { return InProcess(sample(d)) }

// broken lists devices that break one rule, the case that must find each, and what it says.
func broken(t *testing.T) []struct {
	name   string
	open   Opener
	caught string
	says   string
} {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var describes uint32
	return []struct {
		name   string
		open   Opener
		caught string
		says   string
	}{
		{"completes twice", onRing(func(r *ringAccess, q *sdk.Queue, c *virtq.Chain) { r.use(q.Index(), q.Size(), c.Head(), 0, 0) }),
			"chains/event-idx", "completed twice"},
		{"writes a wrong length", onRing(func(r *ringAccess, q *sdk.Queue, c *virtq.Chain) {
			r.use(q.Index(), q.Size(), c.Head(), uint32(c.WritableLen()+1)) //nolint:gosec // G115: small
		}), "chains/event-idx", "used.len"},
		{"uses a head from nowhere", onRing(func(r *ringAccess, q *sdk.Queue, c *virtq.Chain) { r.use(q.Index(), q.Size(), c.Head()^1, 0) }),
			"chains/indirect+event-idx", "not in flight"},
		{"used index jumps", onRing(func(r *ringAccess, q *sdk.Queue, c *virtq.Chain) {
			r.use(q.Index(), q.Size(), c.Head(), make([]uint32, int(q.Size())+2)...)
		}), "chains/event-idx", "jumped"},
		{"forgets a chain", device(handler(func(*sdk.Queue, *virtq.Chain) error { return sdk.ErrLater })), "chains/plain", "were not completed"},
		{"forgets a chain at stop", device(handler(func(q *sdk.Queue, c *virtq.Chain) error {
			if q.Index() == 1 {
				return sdk.ErrLater
			}
			return fills(q, c)
		})), "queue/restart", "were not completed"},
		{"never looks again", device(loop(func(ctx context.Context, q *sdk.Queue) error {
			c, ok, err := q.Pop()
			if ok {
				err = q.Finish(c)
			}
			<-ctx.Done()
			return err
		})), "chains/plain", "were not completed"},
		{"ignores stop", device(loop(func(_ context.Context, q *sdk.Queue) error {
			return sdk.Serve(context.WithoutCancel(context.Background()), q, func(_ context.Context, q *sdk.Queue, c *virtq.Chain) error { return fills(q, c) })
		})), "queue/start-stop", "does not stop"},
		{"writes to a readable buffer", device(handler(func(q *sdk.Queue, c *virtq.Chain) error {
			for _, b := range c.Readable() {
				b[0] ^= 0x55
			}
			return fills(q, c)
		})), "chains/indirect+event-idx", "device-readable buffer"},
		{"hides a hostile driver", device(loop(func(ctx context.Context, q *sdk.Queue) error {
			_ = sdk.Serve(ctx, q, func(_ context.Context, q *sdk.Queue, c *virtq.Chain) error { return fills(q, c) })
			<-ctx.Done()
			return nil
		})), "hostile/loop", "no error event"},
		{"dies of a driver", Program(self, "DEVICETEST_PLUGIN=panics"), "chains/plain", "were not completed"},
		{"leaks a goroutine", device(loop(func(ctx context.Context, q *sdk.Queue) error {
			go func() { <-t.Context().Done() }()
			return sdk.Serve(ctx, q, func(_ context.Context, q *sdk.Queue, c *virtq.Chain) error { return fills(q, c) })
		})), "leaks/start-stop", "goroutines grew"},
		{"leaks a descriptor", with(func(w *wrong) {
			w.start = func(q *pluginrpc.QueueStart) {
				fd, err := dup(q.Kick)
				if err == nil {
					w.describe = func(*pluginv1.DescribeResponse) { _ = unix.Close(fd) } // never called
				}
			}
		}), "leaks/start-stop", "descriptors grew"},
		{"leaks memory", with(func(w *wrong) {
			w.memory = func(r []guestmem.MapRegion) { _, _ = guestmem.Map(r) }
		}), "leaks/start-stop", "memory mappings grew"},
		{"answers a wrong next_avail", with(func(w *wrong) { w.stop = func(s *pluginrpc.QueueState) { s.NextAvail++ } }), "queue/start-stop", "taken and not completed"},
		{"answers a wrong used_index", with(func(w *wrong) { w.stop = func(s *pluginrpc.QueueState) { s.UsedIndex-- } }), "queue/stop-under-load", "the used ring says"},
		{"goes on after stop", with(func(w *wrong) { w.neverStops = true }), "queue/restart", "it was stopped"},
		{"describes itself differently", with(func(w *wrong) {
			w.describe = func(d *pluginv1.DescribeResponse) {
				if describes++; describes%2 == 0 {
					d.ApiVersions = append(d.ApiVersions[:1:1], 1)
				} else {
					d.ApiVersions = d.ApiVersions[:1]
				}
			}
		}), "describe/constant", "it answers"},
		{"takes any setting", with(func(w *wrong) { w.configure = swallow }), "configure/strict", "accepted"},
		{"is configured twice", with(func(w *wrong) { w.configure = swallow }), "configure/once", "accepted"},
		{"takes any feature", with(func(w *wrong) { w.features = swallow }), "features/subset", "which was not offered: accepted"},
		{"takes a legacy driver undeclared", with(func(w *wrong) { w.features = swallow }), "features/legacy", "without CAPABILITY_LEGACY: accepted"},
		{"declares legacy and refuses it", with(func(w *wrong) {
			w.describe = func(d *pluginv1.DescribeResponse) {
				d.Capabilities = []pluginv1.Capability{pluginv1.Capability_CAPABILITY_LEGACY}
			}
		}), "features/legacy", "VIRTIO_F_VERSION_1 (bit 32) is missing"},
		{"does not serve its legacy driver", legacySample(loop(func(ctx context.Context, _ *sdk.Queue) error { <-ctx.Done(); return nil })),
			"features/legacy+event-idx", "were not completed"},
		{"takes calls before Configure", with(func(w *wrong) { w.features, w.memoryErr, w.startErr = swallow, swallow, swallow }), "order/unconfigured", "accepted"},
		{"starts when it is not ready", with(func(w *wrong) { w.startErr = swallow }), "order/not-ready", "accepted"},
		{"changes memory while it runs", with(func(w *wrong) { w.memoryErr = swallow }), "order/running", "AttachMemory"},
		{"takes any memory", with(func(w *wrong) { w.memoryErr = swallow }), "memory/refused", "past the end of its file: accepted"},
		{"takes any ring address", with(func(w *wrong) { w.startErr = swallow }), "queue/arguments", "not aligned: accepted"},
		{"keeps old memory mapped", with(func(w *wrong) {
			w.memory = func(r []guestmem.MapRegion) { _, _ = guestmem.Map(r) }
		}), "memory/replaced", "still mapped"},
		{"writes anywhere in the configuration space", with(func(w *wrong) { w.write = swallow }), "config/space", "accepted"},
		{"does not call", with(func(w *wrong) {
			nobody, err := eventfd.New()
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = nobody.Close() })
			w.start = func(q *pluginrpc.QueueStart) { q.Call = int(nobody.Fd()) }
		}), "notifications/event-idx", "no call"},
		{"changes the kick's flags", with(func(w *wrong) {
			w.start = func(q *pluginrpc.QueueStart) { _ = unix.SetNonblock(q.Kick, true) }
		}), "notifications/descriptors", "changed its flags"},
		{"does not pause", with(func(w *wrong) { w.pause = func() error { return nil } }), "pause/resume", "is paused"},
		{"does not reset", with(func(w *wrong) { w.resets = func() error { return nil } }), "reset/forgets", "SetFeatures"},
		{"is unwell", with(func(w *wrong) { w.health = pluginrpc.ErrFailed }), "health/well", "does not live on"},
		{"does not count", with(func(w *wrong) {
			w.statistics = func(s *pluginrpc.Statistics) {
				for i := range s.Queues {
					s.Queues[i].Completed, s.Queues[i].Chains = 0, 0
				}
			}
		}), "statistics/count", "the driver counted"},
		{"takes any command", with(func(w *wrong) { w.command = swallow }), "commands/answered", "accepted"},
		{"forgets what was in flight", with(func(w *wrong) {
			w.start = func(q *pluginrpc.QueueStart) {
				if q.Recover {
					q.Recover, q.NextAvail = false, 6
				}
			}
		}), "recover/in-flight", "resubmitted 0"},
		{"leaves what was in flight at a stop", device(loop(func(ctx context.Context, _ *sdk.Queue) error { <-ctx.Done(); return nil })),
			"recover/stopped", "next_avail"},
		{"serves what was published again", with(func(w *wrong) {
			w.start = func(q *pluginrpc.QueueStart) {
				if q.Recover {
					var idx [2]byte // as if it had read the used index before the flush
					_, _ = unix.Pread(q.Inflight, idx[:], 12)
					q.Recover, q.NextAvail = false, 1
				}
			}
		}), "recover/publishing", "resubmitted 0"},
		{"forgets its state when it dies", stateful(func(d *stateless) { d.forgets = true }, nil), "state/killed", "as one that was told nothing"},
		{"clears the region that it gets", stateful(func(d *stateless) { d.late = true }, func(r *regionAccess) { r.configured = func() { r.put(make([]byte, regionBytes)) } }),
			"state/killed", "thrown the state of its predecessor away"},
		{"saves without a check sum", stateful(nil, func(r *regionAccess) {
			r.stopped = func() {
				b := make([]byte, 32)
				putSlot(b, 1000, []byte("x"))
				b[12]++
				r.put(b)
			}
		}), "state/killed", "check sum is wrong"},
		{"refuses its own state", stateful(func(d *stateless) { d.refuses = true }, nil), "state/killed", "to continue with the state"},
		{"keeps its state over a reset", stateful(nil, func(r *regionAccess) { r.noReset = true }), "state/reset", "after Reset the state region holds"},
		{"saves the old state again after a reset", stateful(func(d *stateless) { d.haunts = true }, nil), "state/reset", "finds the state that its predecessor made"},
		{"takes garbage for a state", stateful(nil, func(r *regionAccess) {
			r.features = func() error {
				if b := r.get(); !bytes.Equal(b, make([]byte, len(b))) {
					return fmt.Errorf("cannot read my state: %w", pluginrpc.ErrFailed)
				}
				return nil
			}
		}), "state/garbage", "want it ignored"},
		{"dies of a state that it does not know", Program(self, "DEVICETEST_PLUGIN=trusts"), "state/unknown", "with state"},
		{"cannot be closed twice", with(func(w *wrong) { w.closeAgain = pluginrpc.ErrFailed }), "end/close", "the device failed"},
	}
}

func TestBrokenDevicesAreCaught(t *testing.T) {
	t.Parallel()
	cases := map[string]Case{}
	for _, c := range Cases() {
		cases[c.Name] = c
	}
	for _, b := range broken(t) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			c, ok := cases[b.caught]
			if !ok {
				t.Fatalf("there is no case %s", b.caught)
			}
			s, err := newSuite(t.Context(), b.open, Options{Patience: 2 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			r := s.run(t.Context(), c)
			t.Logf("%v: %s", r.Status, r.Reason)
			if r.Status != Fail || !strings.Contains(r.Reason, b.says) {
				t.Errorf("%s: %v, %q: want it to fail and say %q", c.Name, r.Status, r.Reason, b.says)
			}
			if b.name == "dies of a driver" && !strings.Contains(r.Log, "index out of range") {
				t.Errorf("the last words do not tell why: %q", r.Log)
			}
		})
	}
}

// A suite whose names are used twice, or whose rules stand nowhere, cannot be referred to.
func TestCasesHaveNamesAndSources(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range Cases() {
		if seen[c.Name] || c.Source == "" || !strings.Contains(c.Name, "/") || c.run == nil {
			t.Errorf("case %q, %q", c.Name, c.Source)
		}
		seen[c.Name] = true
	}
}

func TestSkippedCasesSayWhy(t *testing.T) {
	t.Parallel()
	results := map[string]Result{}
	err := Check(t.Context(), device(handler(fills)), Options{Skip: map[string]string{"queue/index-wraps": "too slow"}}, func(r Result) {
		results[r.Case.Name] = r
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := results["queue/index-wraps"]; r.Status != Skip || r.Reason != "too slow" {
		t.Errorf("%+v", r)
	}
	if r := results["recover/killed"]; r.Status != Skip || r.Reason == "" {
		t.Errorf("%+v", r)
	}
	if r := results["chains/plain"]; r.Status != Pass || len(results) != len(Cases()) {
		t.Errorf("%d results, %+v", len(results), r)
	}
}
