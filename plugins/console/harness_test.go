package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

const mebibyte = 1 << 20

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// steady waits until value stops changing for a while, and returns it: for things that must not happen.
func steady[T comparable](value func() T) T {
	for v := value(); ; {
		time.Sleep(50 * time.Millisecond)
		w := value()
		if v == w {
			return v
		}
		v = w
	}
}

func randomBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

func sameBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if sha256.Sum256(got) != sha256.Sum256(want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Fatalf("%s: %d bytes, want %d; the first difference is at %d", what, len(got), len(want), i)
	}
}

// ring is one virtqueue: the driver's half, and for the device the queue interface over the real ring.
type ring struct {
	arena *driver.Arena
	drv   *driver.Queue // under mu
	dev   *virtq.Queue
	kick  chan struct{}

	mu      sync.Mutex
	posted  map[uint16]driver.Buffer // by head
	spare   map[int][]driver.Buffer
	arrived []byte   // what receive buffers brought
	pieces  [][]byte // the same, a buffer each
	done    int      // chains used
}

func newRing(t *testing.T, index int, size uint16) *ring {
	t.Helper()
	mem, err := guestmem.New(guestmem.Region{Start: 1 << 20, Data: make([]byte, 8<<20)})
	if err != nil {
		t.Fatal(err)
	}
	r := &ring{arena: driver.NewArena(mem), kick: make(chan struct{}, 1), posted: map[uint16]driver.Buffer{}, spare: map[int][]driver.Buffer{}}
	if r.drv, err = driver.New(r.arena, driver.Config{Size: size, Features: virtio.FVersion1}); err != nil {
		t.Fatal(err)
	}
	d, a, u := r.drv.Areas()
	inflight := make([]byte, virtq.InflightBytes(size))
	r.dev, err = virtq.Activate(mem, virtq.Config{
		Index: index, Size: size, DescArea: d, DriverArea: a, DeviceArea: u, Features: virtio.FVersion1, Inflight: inflight,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The device's half. The lock is for the race detector only: it takes the 32-bit loads of 16-bit ring entries for races with
// stores to their neighbours.

func (r *ring) Pop() (*virtq.Chain, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dev.Pop()
}

func (r *ring) Unpop(c *virtq.Chain) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dev.Unpop(c)
}

func (r *ring) Resubmitted() int { return r.dev.Resubmitted() }

func (r *ring) Finish(c *virtq.Chain) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dev.Complete(c)
	r.dev.Flush()
	return nil
}

func (r *ring) hasMore() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dev.EnableKicks()
}

func (r *ring) Wait(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.hasMore() {
			return nil
		}
		select {
		case <-r.kick:
		case <-ctx.Done():
		}
	}
}

// The driver's half.

// post adds one chain of one buffer; false: the ring is full.
func (r *ring) post(contents []byte, size int, write bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.drv.Free() == 0 {
		return false
	}
	var b driver.Buffer
	if s := r.spare[size]; len(s) > 0 {
		b, r.spare[size] = s[len(s)-1], s[:len(s)-1]
	} else {
		var err error
		if b, err = r.arena.Buffer(size); err != nil {
			panic(err)
		}
	}
	copy(r.arena.Bytes(b), contents)
	readable, writable := []driver.Buffer{b}, []driver.Buffer(nil)
	if write {
		readable, writable = writable, readable
	}
	head, ok := r.drv.Add(readable, writable)
	if !ok {
		panic("BUG: free but full")
	}
	r.posted[head] = b
	r.drv.Publish()
	signal(r.kick)
	return true
}

// collect takes used buffers.
func (r *ring) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		head, n, ok := r.drv.Used()
		if !ok {
			return
		}
		b := r.posted[head]
		delete(r.posted, head)
		piece := slices.Clone(r.arena.Bytes(b)[:n])
		r.arrived = append(r.arrived, piece...)
		r.pieces = append(r.pieces, piece)
		r.spare[int(b.Len)] = append(r.spare[int(b.Len)], b)
		r.done++
	}
}

// used is how many chains came back.
func (r *ring) used() int {
	r.collect()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done
}

// input is what receive buffers brought so far.
func (r *ring) input() []byte {
	r.collect()
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.arrived)
}

// send puts p into the ring in chains of at most n bytes, waiting for room.
func (r *ring) send(t *testing.T, p []byte, n int) {
	t.Helper()
	for ; len(p) > 0; p = p[min(n, len(p)):] {
		eventually(t, "room in the ring", func() bool {
			r.collect()
			return r.post(p, min(n, len(p)), false)
		})
	}
}

// receive reads n bytes of input, keeping the ring full of buffers of size bytes.
func (r *ring) receive(t *testing.T, n, size int) []byte {
	t.Helper()
	eventually(t, "input", func() bool {
		r.collect()
		for r.post(nil, size, true) {
			continue
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.arrived) >= n
	})
	return r.input()
}

// guest is a driver for a console.
type guest struct {
	t     *testing.T
	c     *console
	rings []*ring
	stop  func() // stops all queues, waits
	errs  []string
	errMu sync.Mutex
}

// newGuest makes rings for every queue of c. Nothing runs yet.
func newGuest(t *testing.T, c *console, f virtio.Features) *guest {
	t.Helper()
	g := &guest{t: t, c: c, stop: func() {}}
	for i, size := range c.Spec().QueueSizes {
		g.rings = append(g.rings, newRing(t, i, size))
	}
	for _, p := range c.ports {
		p.fail = func(err error) {
			g.errMu.Lock()
			defer g.errMu.Unlock()
			g.errs = append(g.errs, err.Error())
		}
	}
	if err := c.SetFeatures(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.stop()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *guest) failures() string {
	g.errMu.Lock()
	defer g.errMu.Unlock()
	return strings.Join(g.errs, "\n")
}

// start serves all queues until g.stop.
func (g *guest) start() *guest {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i, r := range g.rings {
		wg.Go(func() {
			if err := g.c.runQueue(ctx, r, i); err != nil {
				g.t.Errorf("queue %d: %v", i, err)
			}
		})
	}
	g.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		for i, r := range g.rings {
			if s := r.dev.State(); s.InFlight != 0 {
				g.t.Errorf("queue %d: %d chains in flight after the stop", i, s.InFlight)
			}
		}
	})
	return g
}

// newTestConsole builds a device from settings.
func newTestConsole(t *testing.T, s settings) *console {
	t.Helper()
	for i := range s.Ports {
		s.Ports[i].Unconnected, s.Ports[i].Backlog = orKeep(s.Ports[i].Unconnected, s.Ports[i].Backlog)
	}
	s.Unconnected, s.Backlog = orKeep(s.Unconnected, s.Backlog)
	c, err := build(&sdk.Env{Name: "test"}, s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// orKeep fills in the schema's defaults.
func orKeep(policy string, n sdk.Size) (string, sdk.Size) {
	if policy == "" {
		policy = unconnectedKeep
	}
	if n == 0 {
		n = 256 << 10
	}
	return policy, n
}

// say sends a control message of the driver.
func (g *guest) say(port uint32, event, value uint16) {
	g.t.Helper()
	g.rings[virtio.ConsoleQueueControlTx].send(g.t, message{port, event, value, nil}.bytes(), 8)
}

// heard waits for n control messages and returns all that came.
func (g *guest) heard(n int) []message {
	g.t.Helper()
	r := g.rings[virtio.ConsoleQueueControlRx]
	eventually(g.t, "control messages", func() bool {
		r.collect()
		for r.post(nil, 256, true) {
			continue
		}
		return r.used() >= n
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	var ms []message
	for _, b := range r.pieces {
		if len(b) > 0 { // else the buffer was unusable
			ms = append(ms, parseMessage(b))
		}
	}
	return ms
}

func parseMessage(b []byte) message {
	m := message{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), nil}
	if len(b) > virtio.ConsoleControlSize {
		m.payload = b[virtio.ConsoleControlSize:]
	}
	return m
}
