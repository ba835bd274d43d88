package virtq_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// ringFeatures are the combinations that a split queue can be negotiated with.
var ringFeatures = map[string]virtio.Features{
	"plain":             virtio.FVersion1,
	"indirect":          virtio.FVersion1 | virtio.FIndirectDesc,
	"eventidx":          virtio.FVersion1 | virtio.FEventIdx,
	"indirect+eventidx": virtio.FVersion1 | virtio.FIndirectDesc | virtio.FEventIdx,
}

// heapMemory is two adjacent regions on the heap, where the race detector sees them.
func heapMemory(tb testing.TB, pages int) *guestmem.Memory {
	tb.Helper()
	n := uint64(pages) * guestmem.PageSize //nolint:gosec // G115: small
	m, err := guestmem.New(
		guestmem.Region{Start: 0x10000, Data: make([]byte, n)},
		guestmem.Region{Start: 0x10000 + guestmem.GPA(n), Data: make([]byte, n)},
	)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// memfdMemory is the same over shared memory, as in life.
func memfdMemory(tb testing.TB, pages int) *guestmem.Memory {
	tb.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		tb.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	n := uint64(pages) * guestmem.PageSize           //nolint:gosec // G115: small
	if err := f.Truncate(int64(2 * n)); err != nil { //nolint:gosec // G115: small
		tb.Fatal(err)
	}
	m, err := guestmem.Map([]guestmem.MapRegion{
		{Start: 0x10000, Size: n, FD: fd},
		{Start: 0x10000 + guestmem.GPA(n), Size: n, FD: fd, Offset: int64(n)}, //nolint:gosec // G115: small
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
	return m
}

// pair is a driver and a device on one ring.
type pair struct {
	mem      *guestmem.Memory
	arena    *driver.Arena
	drv      *driver.Queue
	dev      *virtq.Queue
	cfg      virtq.Config
	inflight []byte
}

func newPair(tb testing.TB, mem *guestmem.Memory, size uint16, f virtio.Features) *pair {
	tb.Helper()
	a := driver.NewArena(mem)
	drv, err := driver.New(a, driver.Config{Size: size, Features: f})
	if err != nil {
		tb.Fatal(err)
	}
	p := &pair{mem: mem, arena: a, drv: drv, inflight: make([]byte, virtq.InflightBytes(size))}
	p.cfg = virtq.Config{Size: size, Features: f, Inflight: p.inflight}
	p.cfg.DescArea, p.cfg.DriverArea, p.cfg.DeviceArea = drv.Areas()
	p.activate(tb)
	return p
}

func (p *pair) activate(tb testing.TB) {
	tb.Helper()
	dev, err := virtq.Activate(p.mem, p.cfg)
	if err != nil {
		tb.Fatal(err)
	}
	p.dev = dev
}

// fataler is what testing.TB and rapid.T have in common.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

// buffers allocates a buffer for each length.
func (p *pair) buffers(tb fataler, lens ...int) []driver.Buffer {
	tb.Helper()
	bs := make([]driver.Buffer, len(lens))
	for i, n := range lens {
		b, err := p.arena.Buffer(n)
		if err != nil {
			tb.Fatal(err)
		}
		bs[i] = b
	}
	return bs
}
