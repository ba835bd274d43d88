package devicetest

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	// defaultSize is the size of queues where it does not matter, and indirectEntries of their tables.
	defaultSize     = 16
	indirectEntries = 16
	// slabBytes is what the buffers of one queue take their bytes from.
	slabBytes = 32 * kib
)

// layout is where a machine's memory lies.
type layout struct {
	// shift moves all guest addresses.
	shift guestmem.GPA
}

// machine is guest memory, and the driver of all queues of one instance.
type machine struct {
	t        *runner
	target   Target
	offer    pluginrpc.Offer
	features virtio.Features
	size     uint16

	file    *os.File
	regions []guestmem.MapRegion
	mem     *guestmem.Memory
	rings   *driver.Arena // one region: rings must lie in one
	buffers *driver.Arena // two adjacent regions whose bytes are apart in the file
	queues  []*queue
}

// newMachine opens and configures an instance and sets it up with features, all of the device's own and those of ring, as far
// as offered. Its queues are made and not started.
func (t *runner) newMachine(ring virtio.Features, size uint16) *machine {
	return t.machineFor(^virtio.Features(0), ring, size)
}

// machineFor is newMachine for a driver that knows only the features in sight.
func (t *runner) machineFor(sight, ring virtio.Features, size uint16) *machine {
	target := t.opened()
	m := &machine{t: t, target: target, offer: t.configure(target), size: size}
	m.features = m.offer.Features &^ (virtio.FIndirectDesc | virtio.FEventIdx) & m.known()
	m.features |= ring & m.offer.Features
	m.features &= sight
	m.makeMemory(layout{})
	m.negotiate()
	m.attach()
	m.makeQueues()
	return m
}

// known leaves out ring features that this driver does not understand.
func (m *machine) known() virtio.Features {
	return ^(virtio.RingFeatures | virtio.FAccessPlatform) | virtio.FIndirectDesc | virtio.FEventIdx | virtio.FVersion1
}

// plainMachine has all queues running, in the format that Linux uses.
func (t *runner) plainMachine() *machine {
	m := t.newMachine(virtio.FIndirectDesc|virtio.FEventIdx, defaultSize)
	m.startAll()
	return m
}

// makeMemory makes fresh memory: several regions, at offsets of the file that are not in the order of their addresses.
func (m *machine) makeMemory(l layout) {
	t := m.t
	n := uint64(max(1, len(m.offer.QueueSizes)))
	size := uint64(defaultSize)
	for _, most := range m.offer.QueueSizes {
		size = max(size, uint64(min(most, m.size)))
	}
	// A queue needs its rings and its tables, and a reset makes others; sparse, so generous.
	ringBytes := (n*(size*(32+16*indirectEntries)+4*guestmem.PageSize)*32 + mib) &^ (mib - 1)
	half := n * slabBytes / 2 * 32
	half = (half + mib) &^ (mib - 1)
	m.file = t.memfd(int64(mib + ringBytes + 2*half)) //nolint:gosec // G115: small
	fd := int(m.file.Fd())
	const low, high = 0x10_0000, 0x1_0000_0000
	m.regions = []guestmem.MapRegion{
		{Start: low + l.shift, Size: half, FD: fd, Offset: int64(mib + ringBytes + half)}, //nolint:gosec // G115: small
		{Start: low + l.shift + guestmem.GPA(half), Size: half, FD: fd, Offset: int64(mib)},
		{Start: high + l.shift, Size: ringBytes, FD: fd, Offset: int64(mib + half)}, //nolint:gosec // G115: small
	}
	mem, err := guestmem.Map(m.regions)
	t.must("map guest memory", err)
	t.Cleanup(func() { _ = mem.Close() })
	rs := mem.Regions()
	sub := func(r ...guestmem.Region) *driver.Arena {
		part, err := guestmem.New(r...)
		t.must("guest memory", err)
		return driver.NewArena(part)
	}
	m.mem, m.buffers, m.rings = mem, sub(rs[0], rs[1]), sub(rs[2])
}

func (t *runner) memfd(size int64) *os.File {
	fd, err := unix.MemfdCreate("virtplug-check", unix.MFD_CLOEXEC)
	t.must("memfd", err)
	f := os.NewFile(uintptr(fd), "memfd")
	t.Cleanup(func() { _ = f.Close() })
	t.must("memfd", f.Truncate(size))
	return f
}

func (m *machine) negotiate() {
	ctx, cancel := m.t.limited()
	defer cancel()
	_, err := m.target.SetFeatures(ctx, m.features)
	m.t.must("SetFeatures", err)
}

func (m *machine) attach() {
	ctx, cancel := m.t.limited()
	defer cancel()
	m.t.must("AttachMemory", m.target.AttachMemory(ctx, m.regions))
}

// makeQueues makes the driver's side of all queues anew, as a driver does after a reset.
func (m *machine) makeQueues() {
	old := m.queues
	m.queues = nil
	for i, most := range m.offer.QueueSizes {
		q := &queue{t: m.t, m: m, index: i, size: min(most, m.size), keeps: m.t.o.Keeps(i)}
		if old != nil {
			q.slab, q.kick, q.call, q.inflight = old[i].slab, old[i].kick, old[i].call, old[i].inflight
		} else {
			q.descriptors()
			var err error
			q.slab, err = m.buffers.Alloc(slabBytes, guestmem.PageSize)
			m.t.must("guest memory", err)
		}
		q.layOut()
		m.queues = append(m.queues, q)
	}
}

// descriptors makes the queue's eventfds and its in-flight region.
func (q *queue) descriptors() {
	for _, f := range []**os.File{&q.kick, &q.call} {
		var err error
		*f, err = eventfd.New()
		q.t.must("eventfd", err)
		q.t.Cleanup(func() { _ = (*f).Close() })
	}
	q.inflight = q.t.memfd(int64(virtq.InflightBytes(q.size)))
}

// startAll starts every queue, from the beginning of its ring.
func (m *machine) startAll() {
	for _, q := range m.queues {
		q.start()
	}
}

// stopAll stops every queue and checks where it stands.
func (m *machine) stopAll() {
	for _, q := range m.queues {
		q.stop()
	}
}

// reset resets the device; its queues are then set up anew, and not started.
func (m *machine) reset() {
	ctx, cancel := m.t.limited()
	defer cancel()
	m.t.must("Reset", m.target.Reset(ctx))
	m.negotiate()
	m.makeQueues()
}

// answering is a queue that must complete all chains, other than not; nil: there is none.
func (m *machine) answering(not *queue) *queue {
	for _, q := range m.queues {
		if !q.keeps && q != not {
			return q
		}
	}
	return nil
}

// alive fails if the instance does not answer.
func (m *machine) alive() {
	ctx, cancel := m.t.limited()
	defer cancel()
	if err := m.target.Health(ctx); err != nil {
		m.t.Fatalf("the instance does not live on in health: %w", err)
	}
}

// works sends chains through every queue.
func (m *machine) works() {
	for _, q := range m.queues {
		q.send(shape{readable: []int{16}, writable: []int{16, 1}})
		q.send(shape{writable: []int{64}})
		q.publish()
	}
	for _, q := range m.queues {
		q.settle()
	}
}
