package mmio_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ramEnd is where the fake device's guest memory ends.
const ramEnd = 1 << 32

var errRefused = errors.New("refused")

// area is a queue as the fake device was told it.
type area struct {
	size                 uint16
	desc, driver, device guestmem.GPA
	running              bool
}

// fake is a device that does what the broker does with requests, and waits where a test says.
type fake struct {
	offered virtio.Features
	sizes   []uint16

	mu          sync.Mutex
	config      []byte
	calls       []string
	status      virtio.Status
	features    virtio.Features
	featuresSet bool
	needs       bool
	closed      bool
	queues      []area
	refuse      map[string]error
	gates       map[string]chan struct{} // a call of that name waits until it is closed
	entered     chan string              // nil, or told of each call that waits
	onConfig    func([]byte)
	onNeeds     func()
}

func newFake() *fake {
	f := &fake{
		offered: virtio.FVersion1 | virtio.FEventIdx | virtio.FIndirectDesc | 1<<5 | 1<<38 | 1<<40,
		sizes:   []uint16{256, 64, 8}, config: []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
		refuse: map[string]error{}, gates: map[string]chan struct{}{},
	}
	f.queues = make([]area, len(f.sizes))
	return f
}

// call notes a call and waits if the test wants that; the error is the test's, or ctx's.
func (f *fake) call(name, text string) error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return errors.New("closed")
	}
	f.calls = append(f.calls, text)
	gate, err := f.gates[name], f.refuse[name]
	f.mu.Unlock()
	if gate != nil {
		if f.entered != nil {
			f.entered <- name
		}
		<-gate
	}
	return err
}

func (f *fake) log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// changeConfig is the device changing its space by itself.
func (f *fake) changeConfig(change func(config []byte)) {
	f.mu.Lock()
	change(f.config)
	tell, c := f.onConfig, slices.Clone(f.config)
	f.mu.Unlock()
	if tell != nil {
		tell(c)
	}
}

// askReset is the device asking for a reset.
func (f *fake) askReset() {
	f.mu.Lock()
	told := f.needs
	f.needs = true
	tell := f.onNeeds
	f.mu.Unlock()
	if tell != nil && !told {
		tell()
	}
}

func (f *fake) running() (is []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.queues {
		if f.queues[i].running {
			is = append(is, i)
		}
	}
	return is
}

func (f *fake) Name() string              { return "fake0" }
func (f *fake) ID() virtio.DeviceID       { return virtio.IDBlock }
func (f *fake) Features() virtio.Features { return f.offered }
func (f *fake) QueueCount() int           { return len(f.sizes) }
func (f *fake) QueueSizeMax(i int) uint16 { return f.sizes[i] }

func (f *fake) NeedsReset() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.needs
}

func (f *fake) ReadConfigAt(p []byte, offset int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if offset >= len(f.config) {
		return 0
	}
	return copy(p, f.config[offset:])
}

func (f *fake) SetStatus(s virtio.Status) { f.set(func() { f.status = s }) }

func (f *fake) SetFeatures(_ context.Context, v virtio.Features) error {
	if err := f.call("features", "features "+v.String()); err != nil {
		return err
	}
	if v&^f.offered != 0 {
		return errRefused
	}
	f.set(func() { f.features, f.featuresSet = v, true })
	return nil
}

func (f *fake) WriteConfig(_ context.Context, offset int, data []byte) error {
	if err := f.call("config", fmt.Sprintf("config %d %x", offset, data)); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if offset+len(data) > len(f.config) {
		return errRefused
	}
	copy(f.config[offset:], data)
	return nil
}

func (f *fake) SetQueue(i int, size uint16, desc, driver, device guestmem.GPA) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.queues[i].running || size == 0 || size&(size-1) != 0 || desc%16 != 0 || driver%2 != 0 || device%4 != 0 {
		return errRefused
	}
	f.queues[i] = area{size: size, desc: desc, driver: driver, device: device}
	return nil
}

func (f *fake) SetQueueBase(int, uint16) error { return nil }

func (f *fake) StartQueue(_ context.Context, i int) error {
	if err := f.call("start", fmt.Sprintf("start %d", i)); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	q := &f.queues[i]
	if q.running || q.size == 0 || q.desc >= ramEnd || q.driver >= ramEnd || q.device >= ramEnd {
		return errRefused
	}
	q.running = true
	return nil
}

func (f *fake) StopQueue(_ context.Context, i int) (uint16, error) {
	if err := f.call("stop", fmt.Sprintf("stop %d", i)); err != nil {
		return 0, err
	}
	f.set(func() { f.queues[i].running = false })
	return 0, nil
}

func (f *fake) Reset(context.Context) error {
	if err := f.call("reset", "reset"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.queues)
	f.needs, f.featuresSet, f.features, f.status = false, false, 0, 0
	return nil
}

func (f *fake) OnConfigChange(g func([]byte)) { f.set(func() { f.onConfig = g }) }
func (f *fake) OnNeedsReset(g func())         { f.set(func() { f.onNeeds = g }) }

// guest is the driver's view of a window: reads come from the page, as with KVM's read-only memory, or from Read.
type guest struct {
	t    testing.TB
	r    *mmio.Registers
	page []byte // nil: reads go to Read

	mu         sync.Mutex
	interrupts int
	kicks      []uint32
}

// newGuest makes the registers of d; paged: with a page. change may add options.
func newGuest(tb testing.TB, d mmio.Device, paged bool, change func(*mmio.Options)) *guest {
	tb.Helper()
	g := &guest{t: tb}
	o := mmio.Options{
		Interrupt: func() { g.mu.Lock(); g.interrupts++; g.mu.Unlock() },
		Kick:      func(q uint32) { g.mu.Lock(); g.kicks = append(g.kicks, q); g.mu.Unlock() },
	}
	ready := make(chan struct{}) // the device may tell something before g.r is there
	if paged {
		g.page = sharedPage(tb)
		o.Changed = func() { <-ready; g.r.Render(g.page) }
	}
	if change != nil {
		change(&o)
	}
	g.r = mmio.New(d, o)
	close(ready)
	if paged {
		g.r.Render(g.page)
	}
	tb.Cleanup(g.r.Close)
	return g
}

// bytes is a read of n bytes.
func (g *guest) bytes(at, n int) []byte {
	p := make([]byte, n)
	if g.page != nil {
		copy(p, g.page[at:])
	} else {
		g.r.Read(uint64(at), p) //nolint:gosec // small
	}
	return p
}

func (g *guest) read(reg int) uint32 { return binary.LittleEndian.Uint32(g.bytes(reg, 4)) }

func (g *guest) write(reg int, v uint32) {
	g.r.Write(uint64(reg), binary.LittleEndian.AppendUint32(nil, v)) //nolint:gosec // small
}

func (g *guest) status() virtio.Status { return virtio.Status(g.read(mmio.RegStatus)) } //nolint:gosec // 8 bits

func (g *guest) setStatus(s virtio.Status) { g.write(mmio.RegStatus, uint32(s)) }

func (g *guest) count() (interrupts int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.interrupts
}

func (g *guest) want(what string, got, want uint32) {
	g.t.Helper()
	if got != want {
		g.t.Errorf("%s: %#x, want %#x", what, got, want)
	}
}

// setQueue tells the registers of a queue.
func (g *guest) setQueue(i int, size uint32, desc, driver, device guestmem.GPA) {
	g.write(mmio.RegQueueSel, uint32(i)) //nolint:gosec // small
	g.write(mmio.RegQueueNum, size)
	for reg, a := range map[int]guestmem.GPA{
		mmio.RegQueueDescLow: desc, mmio.RegQueueDriverLow: driver, mmio.RegQueueDeviceLow: device,
	} {
		g.write(reg, uint32(a)) //nolint:gosec // the lower half
		g.write(reg+4, uint32(a>>32))
	}
}

func (g *guest) accept(f virtio.Features) {
	for sel := range uint32(2) {
		g.write(mmio.RegDriverFeaturesSel, sel)
		g.write(mmio.RegDriverFeatures, uint32(f>>(32*sel))) //nolint:gosec // a half
	}
}

const (
	ack   = virtio.StatusAcknowledge
	drv   = virtio.StatusDriver
	okF   = virtio.StatusFeaturesOK
	okD   = virtio.StatusDriverOK
	allOK = ack | drv | okF | okD
)

// linux initialises the device as Linux's virtio_mmio does, with all queues. It returns what is wrong, as probing would fail.
func (g *guest) linux() error {
	if g.read(mmio.RegMagicValue) != mmio.MagicValue || g.read(mmio.RegVersion) != 2 || g.read(mmio.RegDeviceID) == 0 {
		return errors.New("no such device")
	}
	g.setStatus(0)
	g.setStatus(g.status() | ack)
	g.setStatus(g.status() | drv)
	var offered virtio.Features
	for _, sel := range []uint32{1, 0} {
		g.write(mmio.RegDeviceFeaturesSel, sel)
		offered = offered<<32 | virtio.Features(g.read(mmio.RegDeviceFeatures))
	}
	g.accept(offered & wanted)
	g.setStatus(g.status() | okF)
	if !g.status().Has(okF) {
		return errors.New("device refuses features")
	}
	for i := 0; ; i++ {
		g.write(mmio.RegQueueSel, uint32(i))
		if g.read(mmio.RegQueueReady) != 0 {
			return fmt.Errorf("queue %d is in use", i)
		}
		n := g.read(mmio.RegQueueNumMax)
		if n == 0 {
			break
		}
		base := guestmem.GPA(0x1_0000 * (i + 1))
		g.setQueue(i, n, base, base+0x4000, base+0x8000)
		g.write(mmio.RegQueueReady, 1)
	}
	if g.status().Has(okD) {
		return errors.New("DRIVER_OK before the driver set it")
	}
	g.setStatus(g.status() | okD)
	if s := g.status(); s != allOK {
		return fmt.Errorf("status %#x", s)
	}
	return nil
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("never happened: %s", what)
		}
	}
}
