// Package loopback is the machine without a guest: the driver is Go code in this process. It owns real shared memory and
// real eventfds and goes through the broker as every machine does, so a plugin cannot tell it from one that boots Linux.
// For benchmarks, the conformance suite and process tests.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/memory"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Options say how the driver sets the device up.
type Options struct {
	// MemoryBytes is the size of guest memory, rounded up to whole pages; 0: 16 MiB.
	MemoryBytes uint64
	// Refuse are offered features that the driver does not accept.
	Refuse virtio.Features
	// Queues is how many of the device's queues are started, the first ones; 0: all.
	Queues int
	// QueueSize is their size in entries, bounded by what the device takes; 0: 256.
	QueueSize uint16
	// IndirectEntries is the length of a head's indirect table; 0: 64.
	IndirectEntries int
}

// Machine is a device with its driver. Queues are independent of each other; everything else is for one goroutine.
type Machine struct {
	dev      *device.Device
	ram      *memory.RAM
	mem      *guestmem.Memory
	arena    *driver.Arena
	features virtio.Features
	queues   []*Queue
	lent     bool // a view of a Lguest, which is whose everything is
}

// Queue is the driver side of one virtqueue, with its notifications. One goroutine at a time, but for Wake.
type Queue struct {
	*driver.Queue
	kick *os.File
	fd   int // kick's descriptor
	call *eventfd.Waiter
	// notify kicks in stead of fd, on a bus where that is not the driver's to signal; nil: fd.
	notify func()
}

const memoryStart = 0x10_0000 // as on a PC: not 0, so that a mixed-up offset shows

// Open negotiates and starts dev, which stays the caller's. On error nothing is left running.
func Open(ctx context.Context, dev *device.Device, o Options) (*Machine, error) {
	m := &Machine{dev: dev, features: dev.Features() &^ o.Refuse}
	if err := m.open(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("loopback machine: %s: %w", dev.Name(), err), m.Close(ctx))
	}
	return m, nil
}

func (m *Machine) open(ctx context.Context, o Options) (err error) {
	size := o.MemoryBytes
	if size == 0 {
		size = 16 << 20
	}
	size = (size + guestmem.PageSize - 1) &^ (guestmem.PageSize - 1)
	if m.ram, err = memory.New("loopback", memory.Span{Start: memoryStart, Size: size}); err != nil {
		return err
	}
	if m.mem, err = m.ram.Map(); err != nil {
		return err
	}
	m.arena = driver.NewArena(m.mem)
	m.dev.SetStatus(virtio.StatusAcknowledge | virtio.StatusDriver)
	if err := m.dev.SetFeatures(ctx, m.features); err != nil {
		return err
	}
	if err := m.dev.SetMemory(ctx, m.ram.Table()); err != nil {
		return err
	}
	n := m.dev.QueueCount()
	if o.Queues > 0 {
		n = min(n, o.Queues)
	}
	for i := range n {
		q, err := m.startQueue(ctx, i, o)
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		m.queues = append(m.queues, q)
	}
	m.dev.SetStatus(virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusFeaturesOK | virtio.StatusDriverOK)
	return nil
}

func (m *Machine) startQueue(ctx context.Context, i int, o Options) (*Queue, error) {
	size := o.QueueSize
	if size == 0 {
		size = 256
	}
	ring, err := driver.New(m.arena, driver.Config{
		Size: min(size, m.dev.QueueSizeMax(i)), Features: m.features, IndirectEntries: o.IndirectEntries,
	})
	if err != nil {
		return nil, err
	}
	q := &Queue{Queue: ring}
	desc, avail, used := ring.Areas()
	err = m.dev.SetQueue(i, ring.Size(), desc, avail, used)
	err = errors.Join(err, q.notifications(func(kick, call *os.File) error {
		return errors.Join(m.dev.SetKick(ctx, i, kick), m.dev.SetCall(ctx, i, call))
	}))
	if err == nil {
		err = m.dev.StartQueue(ctx, i)
	}
	if err != nil {
		return nil, errors.Join(err, q.close())
	}
	return q, nil
}

// notifications makes the two eventfds and gives one description of each away.
func (q *Queue) notifications(give func(kick, call *os.File) error) error {
	kick, err := eventfd.New()
	if err != nil {
		return err
	}
	call, err := eventfd.New()
	if err != nil {
		return errors.Join(err, kick.Close())
	}
	q.fd = int(kick.Fd())
	q.kick = kick
	ours := int(call.Fd())
	wait, err := unix.FcntlInt(uintptr(ours), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return errors.Join(os.NewSyscallError("fcntl", err), call.Close())
	}
	if q.call, err = eventfd.NewWaiter(wait); err != nil {
		return errors.Join(err, unix.Close(wait), call.Close())
	}
	theirs, err := unix.FcntlInt(uintptr(q.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return errors.Join(os.NewSyscallError("fcntl", err), call.Close())
	}
	return give(os.NewFile(uintptr(theirs), "kick"), call)
}

func (q *Queue) close() error {
	var errs []error
	if q.kick != nil {
		errs = append(errs, q.kick.Close())
	}
	if q.call != nil {
		errs = append(errs, q.call.Close())
	}
	return errors.Join(errs...)
}

// Features are the negotiated ones.
func (m *Machine) Features() virtio.Features { return m.features }

// Arena hands out guest memory for buffers.
func (m *Machine) Arena() *driver.Arena { return m.arena }

// Queues are the started ones, by number.
func (m *Machine) Queues() []*Queue { return m.queues }

// Device is what was opened.
func (m *Machine) Device() *device.Device { return m.dev }

// Send publishes what Add put in and kicks if the device wants that.
func (q *Queue) Send() error {
	if q.Publish() {
		return q.Kick()
	}
	return nil
}

// Kick notifies the device whether it wants that or not.
func (q *Queue) Kick() error {
	if q.notify != nil {
		q.notify()
		return nil
	}
	return eventfd.Signal(q.fd)
}

// WaitCall blocks until the device calls or Wake is called. Ask EnableCalls first: if it says that there is more, do not
// wait. Spurious returns are possible.
func (q *Queue) WaitCall() error { return q.call.Wait() }

// Wake makes WaitCall return. Any goroutine.
func (q *Queue) Wake() error { return q.call.Wake() }

// Close stops the queues, resets the device and releases the memory. The device stays open.
func (m *Machine) Close(ctx context.Context) error {
	if m.lent {
		return nil
	}
	var errs []error
	for i := range m.queues {
		_, err := m.dev.StopQueue(ctx, i)
		errs = append(errs, err)
	}
	errs = append(errs, m.dev.Release(ctx))
	for _, q := range m.queues {
		errs = append(errs, q.close())
	}
	m.queues = nil
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	if m.ram != nil {
		errs = append(errs, m.ram.Close())
	}
	return errors.Join(errs...)
}
