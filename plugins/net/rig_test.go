package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// devicePatience is how long a test of the device waits for what must come.
const devicePatience = 30 * time.Second

// everything is what a modern driver accepts of anything offered.
const everything = ^(virtio.RingFeatures | virtio.FAccessPlatform) | virtio.FVersion1

// recordingHost records what the device tells its surroundings.
type recordingHost struct {
	mu      sync.Mutex
	changes int
	fails   []error
	notices []string
	saved   [][]byte
	saveErr error
}

func (h *recordingHost) ConfigChanged() { h.mu.Lock(); h.changes++; h.mu.Unlock() }

func (h *recordingHost) Fail(err error, _ bool) {
	h.mu.Lock()
	h.fails = append(h.fails, err)
	h.mu.Unlock()
}

func (h *recordingHost) Notice(message string, _ map[string]string) {
	h.mu.Lock()
	h.notices = append(h.notices, message)
	h.mu.Unlock()
}

func (h *recordingHost) SaveState(b []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.saved = append(h.saved, slices.Clone(b))
	return h.saveErr
}

// lastSaved is the state that a new instance would get.
func (h *recordingHost) lastSaved() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.saved) == 0 {
		return nil
	}
	return h.saved[len(h.saved)-1]
}

func (h *recordingHost) saves() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.saved)
}

func (h *recordingHost) changed() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changes
}

// usedChain is a chain that came back.
type usedChain struct {
	written  int
	writable []byte // all of it
}

// heapRing is one virtqueue in heap memory: the driver's half, and for the device the interface ring. The lock is for the race
// detector: it takes 32-bit loads of 16-bit ring entries for races with stores to their neighbours.
type heapRing struct {
	arena  *driver.Arena
	kick   chan struct{}
	called chan struct{}
	cfg    virtq.Config

	mu     sync.Mutex
	drv    *driver.Queue
	dev    *virtq.Queue
	woken  bool
	waits  bool // the device waits for a kick
	posted map[uint16][]driver.Buffer
	calls  int
}

func newHeapRing(tb testing.TB, index int, size uint16, f virtio.Features) *heapRing {
	tb.Helper()
	mem, err := guestmem.New(guestmem.Region{Start: 1 << 20, Data: make([]byte, 8<<20)})
	if err != nil {
		tb.Fatal(err)
	}
	r := &heapRing{arena: driver.NewArena(mem), kick: make(chan struct{}, 1), called: make(chan struct{}, 1), posted: map[uint16][]driver.Buffer{}}
	if r.drv, err = driver.New(r.arena, driver.Config{Size: size, Features: f}); err != nil {
		tb.Fatal(err)
	}
	r.cfg = virtq.Config{Index: index, Size: size, Features: f, Inflight: make([]byte, virtq.InflightBytes(size))}
	r.cfg.DescArea, r.cfg.DriverArea, r.cfg.DeviceArea = r.drv.Areas()
	r.activate(tb)
	return r
}

// activate gives the ring to another device; after the first one it recovers.
func (r *heapRing) activate(tb testing.TB) {
	tb.Helper()
	dev, err := virtq.Activate(r.arena.Memory(), r.cfg)
	if err != nil {
		tb.Fatal(err)
	}
	r.dev, r.cfg.Recover = dev, true
}

func (r *heapRing) Pop() (*virtq.Chain, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dev.Pop()
}

func (r *heapRing) Unpop(c *virtq.Chain) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dev.Unpop(c)
}

func (r *heapRing) Resubmitted() int { return r.dev.Resubmitted() }

func (r *heapRing) Complete(c *virtq.Chain) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dev.Complete(c)
}

func (r *heapRing) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.dev.State().UsedIndex
	r.dev.Flush()
	if r.dev.State().UsedIndex != before {
		r.calls++
		signal(r.called)
	}
	return nil
}

func (r *heapRing) Wait(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.mu.Lock()
		ready := r.dev.EnableKicks() || r.woken
		r.woken = false
		r.waits = !ready
		r.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-r.kick:
		case <-ctx.Done():
		}
	}
}

func (r *heapRing) Wake() error {
	r.mu.Lock()
	r.woken = true
	r.mu.Unlock()
	signal(r.kick)
	return nil
}

// buffers takes guest memory for one chain.
func (r *heapRing) buffers(tb testing.TB, lengths ...int) []driver.Buffer {
	tb.Helper()
	bs := make([]driver.Buffer, len(lengths))
	for i, n := range lengths {
		var err error
		if bs[i], err = r.arena.Buffer(n); err != nil {
			tb.Fatal(err)
		}
	}
	return bs
}

// post makes a chain available: readable bytes cut into buffers of these lengths (the last one repeats), then writable ones.
func (r *heapRing) post(tb testing.TB, readable []byte, cuts []int, writable ...int) {
	tb.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(tb, readable, cuts, writable...)
	r.drv.Publish()
	signal(r.kick)
}

func (r *heapRing) add(tb testing.TB, readable []byte, cuts []int, writable ...int) {
	tb.Helper()
	var in []driver.Buffer
	for i := 0; len(readable) > 0; i++ {
		n := len(readable)
		if len(cuts) > 0 {
			n = min(n, cuts[min(i, len(cuts)-1)])
		}
		b := r.buffers(tb, n)[0]
		copy(r.arena.Bytes(b), readable)
		readable = readable[n:]
		in = append(in, b)
	}
	out := r.buffers(tb, writable...)
	head, ok := r.drv.Add(in, out)
	if !ok {
		tb.Fatal("the ring is full")
	}
	r.posted[head] = out
}

// used takes the next chain that came back, if there is one.
func (r *heapRing) used() (u usedChain, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	head, n, ok := r.drv.Used()
	if !ok {
		return u, false
	}
	u.written = int(n)
	for _, b := range r.posted[head] {
		u.writable = append(u.writable, r.arena.Bytes(b)...)
	}
	delete(r.posted, head)
	return u, true
}

// next waits for a chain to come back.
func (r *heapRing) next(tb testing.TB) usedChain {
	tb.Helper()
	limit := time.After(devicePatience)
	for {
		if u, ok := r.used(); ok {
			return u
		}
		select {
		case <-r.called:
		case <-limit:
			tb.Fatalf("queue %d: no chain came back", r.cfg.Index)
		}
	}
}

// idle tells whether the device waits for a kick.
func (r *heapRing) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waits
}

func (r *heapRing) state() virtq.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dev.State()
}

// deviceRig is a device with a driver at the other end of its rings, and the test where the network would be: what the test sends
// into a loopback's port arrives at the driver, and what the driver sends is there to be received.
type deviceRig struct {
	tb    testing.TB
	d     *device
	h     *recordingHost
	rings []*heapRing
	stop  func()
}

// deviceSettings are the defaults of the settings' tags, but for the back-end.
func deviceSettings() settings {
	return settings{Backend: "loopback", QueuePairs: 1, QueueSize: 256, Offload: true, Link: true, MAC: "52:54:00:00:00:01"}
}

var deviceMAC = macAddress{0x52, 0x54, 0, 0, 0, 1}

// newTestDevice makes a device.
func newTestDevice(tb testing.TB, cfg settings) (*device, *recordingHost) {
	tb.Helper()
	h := &recordingHost{}
	d, err := newDevice(&sdk.Env{Name: "eth0", Log: hclog.NewNullLogger()}, h, &cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d, h
}

// newDeviceRig makes a device with rings for a driver that accepts f of what is offered. Nothing runs yet.
func newDeviceRig(tb testing.TB, cfg settings, f virtio.Features) *deviceRig {
	tb.Helper()
	d, h := newTestDevice(tb, cfg)
	r := &deviceRig{tb: tb, d: d, h: h, stop: func() {}}
	f &= d.Spec().Features | virtio.RingFeatures
	for i, size := range d.Spec().QueueSizes {
		r.rings = append(r.rings, newHeapRing(tb, i, size, f))
	}
	if err := d.SetFeatures(f); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.stop() })
	return r
}

// start serves queues until stop; none: all.
func (r *deviceRig) start(queues ...int) *deviceRig {
	if len(queues) == 0 {
		for i := range r.rings {
			queues = append(queues, i)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, i := range queues {
		wg.Go(func() {
			if err := r.d.runQueue(ctx, r.rings[i], i); err != nil && !errors.As(err, new(*virtq.DriverError)) {
				r.tb.Errorf("queue %d: %v", i, err)
			}
		})
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		for _, i := range queues {
			if s := r.rings[i].state(); s.InFlight != 0 || s.NextAvail != s.UsedIndex {
				r.tb.Errorf("queue %d: after the stop: %+v", i, s)
			}
		}
	})
	return r
}

// inject gives the device a frame to deliver on the first pair; its addresses arrive as they are in it.
func (r *deviceRig) inject(h header, data []byte) {
	r.tb.Helper()
	data = slices.Clone(data)
	for k := range 6 { // the loopback swaps them
		data[k], data[6+k] = data[6+k], data[k]
	}
	f := []frame{{hdr: h, bufs: [][]byte{data}, n: len(data)}}
	if dropped, err := r.d.be.Port(0).Send(context.Background(), f); dropped != 0 || err != nil {
		r.tb.Fatal("inject:", dropped, err)
	}
}

// left takes a frame that the device sent on the first pair, if there is one.
func (r *deviceRig) left() (h header, data []byte, ok bool) {
	r.tb.Helper()
	f := []frame{{bufs: [][]byte{make([]byte, frameMax)}}}
	n, err := r.d.be.Port(0).Receive(f)
	if err != nil {
		r.tb.Fatal(err)
	}
	if n == 0 {
		return h, nil, false
	}
	data = f[0].bufs[0][:f[0].n]
	for k := range 6 {
		data[k], data[6+k] = data[6+k], data[k]
	}
	return f[0].hdr, data, true
}

// statistic is one of the device's counters.
func (r *deviceRig) statistic(name string) uint64 {
	r.tb.Helper()
	v, ok := r.d.Statistics()[name]
	if !ok {
		r.tb.Fatalf("there is no counter %s", name)
	}
	return v
}

// until polls until ok.
func (r *deviceRig) until(what string, ok func() bool) {
	r.tb.Helper()
	for end := time.Now().Add(devicePatience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.tb.Fatalf("%s: not after %v; counters %v", what, devicePatience, r.d.Statistics())
		}
	}
}

// frameOf is a frame of n bytes to the device, whose bytes differ by seed and place.
func frameOf(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(seed*131 + i*7 + i>>8 + 1) //nolint:gosec // G115: wraps on purpose
	}
	copy(b, deviceMAC[:])
	copy(b[6:], []byte{0x52, 0x54, 0, 0, 0, 0xfe, 0x08, 0x00})
	return b
}
