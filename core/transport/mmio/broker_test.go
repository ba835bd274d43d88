package mmio_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/memory"
	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/devicetest"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// stamper is a device on the SDK that fills buffers with the byte that stands in its configuration space.
type stamper struct {
	mu    sync.Mutex
	space [8]byte
	env   *sdk.Env
}

func (*stamper) Spec() sdk.Spec { return sdk.Spec{Features: 1 << 5, QueueSizes: []uint16{64, 16}} }

func (s *stamper) HandleChain(_ context.Context, _ *sdk.Queue, c *virtq.Chain) error {
	s.mu.Lock()
	b := s.space[0]
	s.mu.Unlock()
	w := c.Writer()
	_, err := w.Write(bytes.Repeat([]byte{b}, w.Len()))
	return err
}

func (s *stamper) ReadConfig() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.space[:])
}

func (s *stamper) WriteConfig(offset int, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(s.space[offset:], data)
	return nil
}

// change is the device's own change of its space.
func (s *stamper) change(b byte) {
	s.mu.Lock()
	s.space[7] = b
	s.mu.Unlock()
	s.env.ConfigChanged()
}

// instance is an instance of the SDK's in this process, as the broker takes one.
type instance struct {
	devicetest.Target
	offer  pluginrpc.Offer
	events <-chan pluginrpc.Event
	cancel context.CancelFunc
	done   chan struct{}
	once   sync.Once
}

func (i *instance) Offer() pluginrpc.Offer         { return i.offer }
func (i *instance) Events() <-chan pluginrpc.Event { return i.events }
func (i *instance) Done() <-chan struct{}          { return i.done }

func (i *instance) Err() error {
	select {
	case <-i.done:
		return fmt.Errorf("ended: %w", device.ErrLost)
	default:
		return nil
	}
}

// crash ends it as the end of its process does, seen from the broker; its queues end with Close.
func (i *instance) crash() { i.once.Do(func() { close(i.done) }) }

func (i *instance) Close() error {
	err := i.Target.Close()
	i.cancel()
	i.crash()
	return err
}

// board is a real device behind registers, with guest memory and notifications as the KVM machine makes them.
type board struct {
	*guest
	dev   *device.Device
	mem   *guestmem.Memory
	arena *driver.Arena
	kicks []int // our ends
	calls []int

	mu        sync.Mutex
	stampers  []*stamper
	instances []*instance
}

func (b *board) last() (*stamper, *instance) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stampers[len(b.stampers)-1], b.instances[len(b.instances)-1]
}

func (b *board) start(legacy bool) func(context.Context) (device.Instance, error) {
	return func(ctx context.Context) (device.Instance, error) {
		s := &stamper{space: [8]byte{0x5a}}
		target, err := devicetest.InProcess(sdk.Plugin[sdk.NoConfig]{
			Name: "stamper", Version: "1.0.0", Device: virtio.IDEntropy, Legacy: legacy,
			New: func(env *sdk.Env, _ sdk.NoConfig) (sdk.Device, error) { s.env = env; return s, nil },
		})(ctx, nil)
		if err != nil {
			return nil, err
		}
		i := &instance{Target: target, done: make(chan struct{})}
		if i.offer, err = target.Configure(ctx, pluginrpc.Settings{DeviceName: "s0", ConfigJSON: []byte("{}")}); err != nil {
			return nil, err
		}
		var live context.Context
		live, i.cancel = context.WithCancel(context.WithoutCancel(ctx))
		if i.events, err = target.Events(live); err != nil {
			return nil, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.stampers, b.instances = append(b.stampers, s), append(b.instances, i)
		return i, nil
	}
}

func newBoard(t *testing.T, legacy bool) *board {
	t.Helper()
	b := &board{}
	b.dev = device.New(device.Options{
		Name: "s0", DeviceID: virtio.IDEntropy, Start: b.start(legacy), Legacy: legacy,
		Restart: device.Restart{MinDelay: time.Millisecond, HealthInterval: -1},
	})
	must(t, b.dev.Open(t.Context()))
	ram, err := memory.New("mmio", memory.Span{Start: 0x10_0000, Size: 4 << 20})
	must(t, err)
	b.mem, err = ram.Map()
	must(t, err)
	b.arena = driver.NewArena(b.mem)
	must(t, b.dev.SetMemory(t.Context(), ram.Table()))
	for i := range b.dev.QueueCount() {
		b.kicks = append(b.kicks, b.notifier(t, func(f *os.File) error { return b.dev.SetKick(t.Context(), i, f) }))
		b.calls = append(b.calls, b.notifier(t, func(f *os.File) error { return b.dev.SetCall(t.Context(), i, f) }))
	}
	b.guest = newGuest(t, b.dev, true, func(o *mmio.Options) {
		o.Kick = func(q uint32) { must(t, eventfd.Signal(b.kicks[q])) }
	})
	t.Cleanup(func() {
		b.r.Close()
		must(t, errors.Join(b.dev.Release(context.Background()), b.dev.Close(), b.mem.Close(), ram.Close()))
	})
	return b
}

// notifier makes an eventfd, of which the device gets a descriptor.
func (b *board) notifier(t *testing.T, give func(*os.File) error) int {
	t.Helper()
	ours, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(ours) })
	theirs, err := unix.FcntlInt(uintptr(ours), unix.F_DUPFD_CLOEXEC, 3)
	must(t, err)
	must(t, give(os.NewFile(uintptr(theirs), "eventfd")))
	return ours
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// boot initialises the device with accept of what is offered, and returns the driver's queues.
func (b *board) boot(accept virtio.Features) ([]*driver.Queue, error) {
	b.setStatus(0)
	b.setStatus(ack | drv)
	features := b.dev.Features() & accept
	b.accept(features)
	b.setStatus(ack | drv | okF)
	if !b.status().Has(okF) {
		return nil, errors.New("features refused")
	}
	var queues []*driver.Queue
	for i := range b.dev.QueueCount() {
		b.write(mmio.RegQueueSel, uint32(i))
		size := uint16(b.read(mmio.RegQueueNumMax)) //nolint:gosec // small
		ring, err := driver.New(b.arena, driver.Config{Size: size, Features: features})
		if err != nil {
			return nil, err
		}
		desc, avail, used := ring.Areas()
		b.setQueue(i, uint32(ring.Size()), desc, avail, used)
		b.write(mmio.RegQueueReady, 1)
		queues = append(queues, ring)
	}
	b.setStatus(allOK)
	if s := b.status(); s != allOK {
		return nil, fmt.Errorf("status %#x", s)
	}
	return queues, nil
}

// stamped sends a buffer through q and returns what it is filled with.
func (b *board) stamped(t *testing.T, i int, q *driver.Queue) byte {
	t.Helper()
	mark := b.arena.Mark()
	defer b.arena.Rewind(mark)
	buf, err := b.arena.Buffer(32)
	must(t, err)
	mem := b.arena.Bytes(buf)
	clear(mem)
	if _, ok := q.Add(nil, []driver.Buffer{buf}); !ok {
		t.Fatal("the ring is full")
	}
	if q.Publish() {
		b.write(mmio.RegQueueNotify, uint32(i)) //nolint:gosec // small
	}
	eventually(t, "a used buffer", func() bool { _, _, ok := q.Used(); return ok })
	if !bytes.Equal(mem, bytes.Repeat(mem[:1], 32)) {
		t.Errorf("buffer %x", mem)
	}
	return mem[0]
}

// works sends a buffer through each queue.
func (b *board) works(t *testing.T, queues []*driver.Queue, stamp byte) {
	t.Helper()
	for i, q := range queues {
		for range 3 {
			if got := b.stamped(t, i, q); got != stamp {
				t.Errorf("queue %d: stamped %#x, want %#x", i, got, stamp)
			}
		}
		var count [8]byte
		if _, err := unix.Read(b.calls[i], count[:]); err != nil {
			t.Errorf("queue %d: no used buffer notification: %v", i, err)
		}
	}
}

const every = ^virtio.Features(0)

func TestARealDeviceIsSetUpAHundredTimes(t *testing.T) {
	t.Parallel()
	b := newBoard(t, false)
	for round := range 100 {
		mark := b.arena.Mark()
		queues, err := b.boot(every)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if round%10 == 0 {
			b.works(t, queues, 0x5a)
		} else if round%3 == 0 { // a reset with buffers in the rings
			for i, q := range queues {
				buf, err := b.arena.Buffer(16)
				must(t, err)
				q.Add(nil, []driver.Buffer{buf})
				q.Publish()
				b.write(mmio.RegQueueNotify, uint32(i))
			}
		}
		b.setStatus(0)
		b.want("status", uint32(b.status()), 0)
		b.arena.Rewind(mark)
	}
}

func TestARealDevicesConfigurationSpace(t *testing.T) {
	t.Parallel()
	b := newBoard(t, false)
	queues, err := b.boot(every)
	must(t, err)
	b.r.Write(mmio.RegConfig, []byte{0x33})
	b.want("configuration byte", uint32(b.bytes(mmio.RegConfig, 1)[0]), 0x33)
	b.works(t, queues, 0x33)
	generation := b.read(mmio.RegConfigGeneration)
	s, i := b.last()
	s.change(9)
	eventually(t, "a configuration change notification", func() bool { return b.count() == 1 })
	b.want("InterruptStatus", b.read(mmio.RegInterruptStatus), mmio.InterruptUsed|mmio.InterruptConfig)
	if b.bytes(mmio.RegConfig+7, 1)[0] != 9 || b.read(mmio.RegConfigGeneration) == generation {
		t.Error("the change does not show")
	}
	b.write(mmio.RegInterruptACK, 3)

	// Another instance takes over: it knows what the driver wrote, and its own change is told.
	i.crash()
	eventually(t, "another instance", func() bool { _, j := b.last(); return j != i && b.dev.State() == device.StateReady })
	b.works(t, queues, 0x33)
	eventually(t, "the other instance's space", func() bool { return b.bytes(mmio.RegConfig+7, 1)[0] == 0 })
	eventually(t, "its notification", func() bool { return b.count() == 2 })
	b.want("status", uint32(b.status()), uint32(allOK))
}

func TestARealDeviceThatNeedsAReset(t *testing.T) {
	t.Parallel()
	b := newBoard(t, false)
	queues, err := b.boot(every)
	must(t, err)
	queues[0].Raw().SetAvailIdx(40_000) // no driver has so many buffers
	b.write(mmio.RegQueueNotify, 0)
	eventually(t, "NEEDS_RESET", func() bool { return b.status().Has(virtio.StatusNeedsReset) })
	eventually(t, "its notification", func() bool { return b.count() == 1 })
	b.want("InterruptStatus", b.read(mmio.RegInterruptStatus), mmio.InterruptUsed|mmio.InterruptConfig)
	queues, err = b.boot(every)
	must(t, err)
	b.works(t, queues, 0x5a)

	b.setStatus(0)
	b.setStatus(ack | drv)
	b.accept(every & b.dev.Features())
	b.setStatus(ack | drv | okF)
	b.setQueue(0, 64, 0x7000_0000, 0x7000_1000, 0x7000_2000) // where there is no memory
	b.write(mmio.RegQueueReady, 1)
	b.setStatus(allOK)
	b.want("status", uint32(b.status()), uint32(allOK|virtio.StatusNeedsReset))
	queues, err = b.boot(every)
	must(t, err)
	b.works(t, queues, 0x5a)
}

// A driver that does not write the upper half of the features, as some hobby systems: served if the plugin serves legacy
// drivers, and otherwise told by FEATURES_OK.
func TestARealDeviceWithoutVersion1(t *testing.T) {
	t.Parallel()
	for _, legacy := range []bool{true, false} {
		t.Run(fmt.Sprintf("legacy=%t", legacy), func(t *testing.T) {
			t.Parallel()
			b := newBoard(t, legacy)
			queues, err := b.boot(1<<32 - 1)
			if (err == nil) != legacy {
				t.Fatal(err)
			}
			b.works(t, queues, 0x5a)
			queues, err = b.boot(every)
			must(t, err)
			b.works(t, queues, 0x5a)
		})
	}
}
