package device_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const features = virtio.FVersion1 | virtio.FEventIdx

// fake is an instance whose faults a test chooses.
type fake struct {
	offer  pluginrpc.Offer
	events chan pluginrpc.Event
	done   chan struct{}
	once   sync.Once
	// closing is how long its process takes to end.
	closing time.Duration
	// onFeatures is called at SetFeatures, and says what to note; refuseFeatures before it.
	onFeatures     func() string
	refuseFeatures func() error

	mu     sync.Mutex
	calls  []string
	starts []pluginrpc.QueueStart
	flight [][]byte // the in-flight region at each StartQueue
	config []byte
	fail   map[string]error
	closed bool
	broken string // what StopQueue answers about the driver
}

func newFake(o pluginrpc.Offer) *fake {
	return &fake{
		offer: o, events: make(chan pluginrpc.Event, 8), done: make(chan struct{}),
		config: slices.Clone(o.Config), fail: map[string]error{},
	}
}

func (f *fake) call(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.done:
		return fmt.Errorf("fake: %w", device.ErrLost)
	default:
	}
	f.calls = append(f.calls, name)
	return f.fail[name]
}

func (f *fake) failOn(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[name] = err
}

func (f *fake) log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fake) crash() { f.once.Do(func() { close(f.done); close(f.events) }) }

func (f *fake) Offer() pluginrpc.Offer { return f.offer }

func (f *fake) space(err error) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.config), err
}

func (f *fake) SetFeatures(_ context.Context, v virtio.Features) ([]byte, error) {
	err := f.call("features " + v.String())
	if err == nil && f.refuseFeatures != nil {
		err = f.refuseFeatures()
	}
	if err == nil && f.onFeatures != nil {
		err = f.call(f.onFeatures())
	}
	return f.space(err)
}

func (f *fake) WriteConfig(_ context.Context, off int, data []byte) ([]byte, error) {
	err := f.call(fmt.Sprintf("write %d %x", off, data))
	f.mu.Lock()
	if off != 0 { // byte 0 is a trigger: it does not read back
		copy(f.config[off:], data)
	}
	f.mu.Unlock()
	return f.space(err)
}

func (f *fake) AttachMemory(_ context.Context, r []guestmem.MapRegion) error {
	return f.call(fmt.Sprintf("memory %d", len(r)))
}

func (f *fake) StartQueue(_ context.Context, q pluginrpc.QueueStart) (int, error) {
	err := f.call(fmt.Sprintf("start %d next=%d recover=%t", q.Index, q.NextAvail, q.Recover))
	region := make([]byte, 16+16*int(q.Size))
	_, _ = unix.Pread(q.Inflight, region, 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts, f.flight = append(f.starts, q), append(f.flight, region)
	if err == nil {
		err = f.fail["start"]
	}
	return 0, err
}

func (f *fake) StopQueue(_ context.Context, i int) (pluginrpc.QueueState, error) {
	return pluginrpc.QueueState{NextAvail: 42, UsedIndex: 42, Broken: f.broken}, f.call(fmt.Sprintf("stop %d", i))
}

func (f *fake) Reset(context.Context) error  { return f.call("reset") }
func (f *fake) Pause(context.Context) error  { return f.call("pause") }
func (f *fake) Resume(context.Context) error { return f.call("resume") }
func (f *fake) Health(context.Context) error { return f.call("health") }

func (f *fake) Statistics(context.Context) (pluginrpc.Statistics, error) {
	return pluginrpc.Statistics{Counters: map[string]uint64{"n": 1}}, f.call("statistics")
}

func (f *fake) Command(_ context.Context, name string, _ []byte) ([]byte, error) {
	return []byte("{}"), f.call("command " + name)
}

func (f *fake) Events() <-chan pluginrpc.Event { return f.events }
func (f *fake) Done() <-chan struct{}          { return f.done }

func (f *fake) Err() error {
	select {
	case <-f.done:
		return fmt.Errorf("crashed: %w", device.ErrLost)
	default:
		return nil
	}
}

func (f *fake) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	time.Sleep(f.closing)
	f.crash()
	return nil
}

// host makes fakes, one after another.
type host struct {
	t     *testing.T
	offer pluginrpc.Offer

	mu        sync.Mutex
	instances []*fake
	gate      chan struct{}        // non-nil: Start waits until it is closed
	prepare   func(n int, f *fake) // before instance n (from 0) is handed out
	startErr  error
}

func (h *host) start(ctx context.Context) (device.Instance, error) {
	h.mu.Lock()
	gate := h.gate
	h.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.instances); n > 0 {
		last := h.instances[n-1]
		last.mu.Lock()
		if !last.closed {
			h.t.Error("a second instance was started before the first was closed")
		}
		last.mu.Unlock()
	}
	if h.startErr != nil {
		return nil, h.startErr
	}
	f := newFake(h.offer)
	if h.prepare != nil {
		h.prepare(len(h.instances), f)
	}
	h.instances = append(h.instances, f)
	return f, nil
}

func (h *host) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

// instance waits for the n-th instance, from 0.
func (h *host) instance(n int) *fake {
	h.t.Helper()
	var f *fake
	eventually(h.t, fmt.Sprintf("instance %d", n), func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		if n < len(h.instances) {
			f = h.instances[n]
		}
		return f != nil
	})
	return f
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// rig is an open device with memory.
type rig struct {
	*device.Device
	*host
	mem        *os.File
	kick, call int // our ends
}

const (
	memBase = 0x10000
	memSize = 1 << 20
	descAt  = memBase + 0x1000
	availAt = memBase + 0x2000
	usedAt  = memBase + 0x3000
	qsize   = 8
)

func newRig(t *testing.T, change func(*device.Options, *host)) *rig {
	t.Helper()
	h := &host{t: t, offer: pluginrpc.Offer{Features: features, QueueSizes: []uint16{64, 16}, Config: []byte{1, 2, 3, 4}}}
	o := device.Options{Name: "vda", DeviceID: virtio.IDBlock, Start: h.start, Restart: device.Restart{
		MinDelay: time.Millisecond, MaxDelay: 10 * time.Millisecond, HealthInterval: -1, StopWait: 200 * time.Millisecond,
	}}
	if change != nil {
		change(&o, h)
	}
	r := &rig{Device: device.New(o), host: h, mem: memfd(t, memSize)}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func memfd(t *testing.T, size int64) *os.File {
	t.Helper()
	n, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(n), "guest")
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func eventfd(t *testing.T) (ours int, theirs *os.File) {
	t.Helper()
	n, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(n) })
	d, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return n, os.NewFile(uintptr(d), "eventfd")
}

// count reads an eventfd; 0: nothing there.
func count(fd int) uint64 {
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:])
}

func (r *rig) setUsed(t *testing.T, idx uint16) {
	t.Helper()
	var b [2]byte
	binary.LittleEndian.PutUint16(b[:], idx)
	if _, err := r.mem.WriteAt(b[:], usedAt-memBase+2); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) regions() []device.MemoryRegion {
	return []device.MemoryRegion{{GPA: memBase, Size: memSize, File: r.mem}}
}

// setUp does what a machine does before it starts queue 0.
func (r *rig) setUp(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	var kick, call *os.File
	r.kick, kick = eventfd(t)
	r.call, call = eventfd(t)
	for _, err := range []error{
		r.SetFeatures(ctx, features), r.SetMemory(ctx, r.regions()),
		r.SetQueue(0, qsize, descAt, availAt, usedAt), r.SetKick(ctx, 0, kick), r.SetCall(ctx, 0, call),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (r *rig) startQueue(t *testing.T) {
	t.Helper()
	r.setUp(t)
	if err := r.StartQueue(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) await(t *testing.T, s device.State) {
	t.Helper()
	eventually(t, "state "+s.String(), func() bool { return r.State() == s })
}

func wantCalls(t *testing.T, f *fake, want ...string) {
	t.Helper()
	if got := f.log(); !slices.Equal(got, want) {
		t.Errorf("calls\n got %q\nwant %q", got, want)
	}
}

func isBad(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, device.ErrBadRequest) {
		t.Errorf("%s: %v: want ErrBadRequest", what, err)
	}
}

// inflight is a region of qsize entries as a plugin leaves it.
func inflight(usedIdx, lastBatch uint16, entries map[uint16]uint16) []byte {
	b := make([]byte, 16+16*qsize)
	binary.NativeEndian.PutUint16(b[8:], 1)
	binary.NativeEndian.PutUint16(b[10:], qsize)
	binary.NativeEndian.PutUint16(b[12:], lastBatch)
	binary.NativeEndian.PutUint16(b[14:], usedIdx)
	for head, next := range entries {
		e := b[16+16*int(head):]
		e[0] = 1
		binary.NativeEndian.PutUint16(e[6:], next)
	}
	return b
}

var freshFlight = func(used uint16) []byte { return inflight(used, 0, nil) }

func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n got %x\nwant %x", what, got, want)
	}
}
