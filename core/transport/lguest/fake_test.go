package lguest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// fakeQueue is what a fakeDevice knows of a queue.
type fakeQueue struct {
	size               uint16
	desc, avail, used  guestmem.GPA
	base, next         uint16
	running            bool
	kick, call         *os.File
	started            int
	memoryWhenReleased []byte
}

// fakeDevice is a device that keeps the broker's rules and complains where the bus breaks them.
type fakeDevice struct {
	tb     testing.TB
	name   string
	id     virtio.DeviceID
	offer  virtio.Features
	legacy bool
	sizes  []uint16
	// ringBytes reads a queue's ring when it stops, to see that it has not been touched yet.
	mem *guestmem.Memory

	mu         sync.Mutex
	config     []byte
	calls      []string
	fail       map[string]error
	accepted   virtio.Features
	negotiated bool
	memory     bool
	status     virtio.Status
	queues     []fakeQueue
	onConfig   func([]byte)
	onReset    func()
}

func newFake(tb testing.TB, name string, id virtio.DeviceID, offer virtio.Features, config []byte, sizes ...uint16) *fakeDevice {
	tb.Helper()
	d := &fakeDevice{
		tb: tb, name: name, id: id, offer: offer, legacy: true, sizes: sizes, config: config,
		fail: map[string]error{}, queues: make([]fakeQueue, len(sizes)),
	}
	tb.Cleanup(func() {
		for i := range d.queues {
			closeFile(d.queues[i].kick)
			closeFile(d.queues[i].call)
		}
	})
	return d
}

func closeFile(f *os.File) {
	if f != nil {
		_ = f.Close()
	}
}

// did records a call; the caller holds mu.
func (d *fakeDevice) did(format string, args ...any) error {
	call := fmt.Sprintf(format, args...)
	d.calls = append(d.calls, call)
	return d.fail[call]
}

// took returns the calls since the last time.
func (d *fakeDevice) took() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := d.calls
	d.calls = nil
	return calls
}

func (d *fakeDevice) Name() string              { return d.name }
func (d *fakeDevice) ID() virtio.DeviceID       { return d.id }
func (d *fakeDevice) Features() virtio.Features { return d.offer }
func (d *fakeDevice) Legacy() bool              { return d.legacy }
func (d *fakeDevice) QueueCount() int           { return len(d.sizes) }
func (d *fakeDevice) QueueSizeMax(i int) uint16 { return d.sizes[i] }

func (d *fakeDevice) SetFeatures(_ context.Context, f virtio.Features) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f&^d.offer != 0 || f.Has(virtio.FVersion1) {
		d.tb.Errorf("%s: features %v set, %v offered", d.name, f, d.offer)
	}
	d.accepted, d.negotiated = f, true
	return d.did("features %v", f)
}

func (d *fakeDevice) SetStatus(s virtio.Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status = s
}

func (d *fakeDevice) ConfigSpace() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.config)
}

func (d *fakeDevice) SetMemory(_ context.Context, _ []device.MemoryRegion) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.memory = true
	return d.did("memory")
}

func (d *fakeDevice) SetQueue(i int, size uint16, desc, driver, used guestmem.GPA) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.queues[i]
	if q.running {
		d.tb.Errorf("%s: queue %d set while it runs", d.name, i)
	}
	q.size, q.desc, q.avail, q.used = size, desc, driver, used
	return nil
}

func (d *fakeDevice) SetQueueBase(i int, next uint16) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queues[i].base = next
	return nil
}

func (d *fakeDevice) SetKick(_ context.Context, i int, f *os.File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	closeFile(d.queues[i].kick)
	d.queues[i].kick = f
	return d.did("kick %d", i)
}

func (d *fakeDevice) SetCall(_ context.Context, i int, f *os.File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	closeFile(d.queues[i].call)
	d.queues[i].call = f
	return d.did("call %d", i)
}

func (d *fakeDevice) StartQueue(_ context.Context, i int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.queues[i]
	if q.running || !d.negotiated || !d.memory || q.size == 0 || q.kick == nil || q.call == nil {
		d.tb.Errorf("%s: queue %d started although running=%v negotiated=%v memory=%v size=%d", d.name, i, q.running, d.negotiated, d.memory, q.size)
	}
	err := d.did("start %d base=%d", i, q.base)
	if err == nil {
		q.running, q.next = true, q.base
		q.started++
		_, _ = q.kick.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) // as the broker does
	}
	return err
}

func (d *fakeDevice) StopQueue(_ context.Context, i int) (uint16, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.queues[i]
	q.running = false
	if d.mem != nil && q.size != 0 {
		b, err := d.mem.Slice(q.desc, int(RingLayout(q.desc, q.size).Bytes())) //nolint:gosec // G115: small
		if err != nil {
			d.tb.Error(err)
		}
		q.memoryWhenReleased = slices.Clone(b)
	}
	return q.next, d.did("stop %d", i)
}

func (d *fakeDevice) Reset(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.negotiated, d.accepted, d.status = false, 0, 0
	for i := range d.queues {
		q := &d.queues[i]
		d.queues[i] = fakeQueue{kick: q.kick, call: q.call, started: q.started, memoryWhenReleased: q.memoryWhenReleased}
	}
	return d.did("reset")
}

func (d *fakeDevice) Release(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.queues {
		d.queues[i].running = false
	}
	d.onConfig, d.onReset = nil, nil
	return d.did("release")
}

func (d *fakeDevice) OnConfigChange(f func([]byte)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onConfig = f
}

func (d *fakeDevice) OnNeedsReset(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onReset = f
}

// changeConfig changes the configuration space as the device itself does.
func (d *fakeDevice) changeConfig(c []byte) {
	d.mu.Lock()
	d.config = c
	f := d.onConfig
	d.mu.Unlock()
	if f != nil {
		f(slices.Clone(c))
	}
}

func (d *fakeDevice) running(i int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queues[i].running
}

// fakeHost records requests.
type fakeHost struct {
	mu    sync.Mutex
	log   []string
	kicks map[guestmem.GPA]int
	fail  error // of EventFD
	irqs  chan uint32
}

func newHost() *fakeHost {
	return &fakeHost{kicks: map[guestmem.GPA]int{}, irqs: make(chan uint32, 64)}
}

func (h *fakeHost) Initialize(base, pfnLimit, start uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, fmt.Sprintf("initialize %#x %#x %#x", base, pfnLimit, start))
	return nil
}

func (h *fakeHost) IRQ(irq uint32) error {
	select {
	case h.irqs <- irq:
	default:
	}
	return nil
}

func (h *fakeHost) EventFD(a guestmem.GPA, fd int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		return h.fail
	}
	if _, ok := h.kicks[a]; ok {
		h.log = append(h.log, fmt.Sprintf("eventfd %v again, and the first wins", a))
		return nil
	}
	h.kicks[a] = fd
	h.log = append(h.log, fmt.Sprintf("eventfd %v", a))
	return nil
}

func (h *fakeHost) took() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	log := h.log
	h.log = nil
	return log
}

// kicked is the guest's NOTIFY of an address that has an eventfd.
func (h *fakeHost) kicked(a guestmem.GPA) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	fd, ok := h.kicks[a]
	if ok {
		_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	return ok
}
