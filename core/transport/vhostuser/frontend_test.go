package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// fakeDevice records what a session does and refuses what the broker would refuse.
type fakeDevice struct {
	mu        sync.Mutex
	calls     []string
	features  virtio.Features
	sizes     []uint16
	space     []byte
	base      []uint16
	running   []bool
	memory    []device.MemoryRegion
	kick      []*os.File
	call      []*os.File
	onChange  func([]byte)
	refuse    error         // of SetFeatures and WriteConfig
	stopBlock chan struct{} // StopQueue waits for it, or for ctx
}

func newFake(sizes ...uint16) *fakeDevice {
	n := len(sizes)
	return &fakeDevice{
		features: virtio.FVersion1 | virtio.FIndirectDesc | virtio.FEventIdx | virtio.FBlkFlush, sizes: sizes,
		space: []byte("0123456789abcdef"), base: make([]uint16, n), running: make([]bool, n),
		kick: make([]*os.File, n), call: make([]*os.File, n),
	}
}

func (d *fakeDevice) note(format string, a ...any) {
	d.calls = append(d.calls, fmt.Sprintf(format, a...))
}

// took returns the calls since the last took.
func (d *fakeDevice) took() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.calls
	d.calls = nil
	return c
}

// runs tells whether any queue does.
func (d *fakeDevice) runs() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.running, true)
}

func (d *fakeDevice) Name() string              { return "fake" }
func (d *fakeDevice) Features() virtio.Features { return d.features }
func (d *fakeDevice) QueueCount() int           { return len(d.sizes) }
func (d *fakeDevice) ConfigSpace() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.space)
}
func (d *fakeDevice) OnNeedsReset(func()) {}
func (d *fakeDevice) OnConfigChange(f func([]byte)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onChange = f
}

func (d *fakeDevice) SetFeatures(_ context.Context, f virtio.Features) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.Contains(d.running, true) {
		return errors.New("BUG: features while a queue runs")
	}
	d.note("features %v", f)
	return d.refuse
}

func (d *fakeDevice) WriteConfig(_ context.Context, off int, b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("config %d %s", off, b)
	if d.refuse == nil {
		copy(d.space[off:off+len(b)], b)
	}
	return d.refuse
}

func (d *fakeDevice) SetMemory(_ context.Context, regions []device.MemoryRegion) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range regions {
		if _, err := r.File.Stat(); err != nil {
			return fmt.Errorf("BUG: %w", err)
		}
	}
	d.memory = regions
	d.note("memory %d", len(regions))
	return nil
}

func (d *fakeDevice) SetQueue(i int, size uint16, desc, driver, dev guestmem.GPA) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running[i] {
		return errors.New("BUG: queue set while it runs")
	}
	d.note("queue %d size %d at %v %v %v", i, size, desc, driver, dev)
	return nil
}

func (d *fakeDevice) SetQueueBase(i int, next uint16) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.base[i] = next
	return nil
}

func (d *fakeDevice) SetKick(_ context.Context, i int, f *os.File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	closeFile(d.kick[i])
	d.kick[i] = f
	return nil
}

func (d *fakeDevice) SetCall(_ context.Context, i int, f *os.File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	closeFile(d.call[i])
	d.call[i] = f
	return nil
}

func closeFile(f *os.File) {
	if f != nil {
		_ = f.Close()
	}
}

func (d *fakeDevice) StartQueue(_ context.Context, i int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running[i] || d.memory == nil || d.kick[i] == nil {
		return errors.New("BUG: queue started twice, or not set up")
	}
	d.running[i] = true
	d.note("start %d base %d", i, d.base[i])
	return nil
}

// StopQueue pretends that 7 chains were served since the start.
func (d *fakeDevice) StopQueue(ctx context.Context, i int) (uint16, error) {
	if d.stopBlock != nil {
		select {
		case <-d.stopBlock:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running[i] {
		d.running[i] = false
		d.base[i] += 7
	}
	d.note("stop %d", i)
	return d.base[i], nil
}

func (d *fakeDevice) Reset(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.running)
	d.note("reset")
	return nil
}

func (d *fakeDevice) Release(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.sizes {
		closeFile(d.kick[i])
		closeFile(d.call[i])
		d.kick[i], d.call[i] = nil, nil
	}
	clear(d.running)
	d.memory, d.onChange = nil, nil
	d.note("release")
	return nil
}

// frontend is the other side of a session.
type frontend struct {
	t    testing.TB
	c    *Conn
	done chan error // Serve's answer
}

// pair is a connected pair of unix stream sockets.
func pair(tb testing.TB) (a, b *net.UnixConn) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "pair")
		defer func() { _ = f.Close() }()
		c, err := net.FileConn(f)
		if err != nil {
			tb.Fatal(err)
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			tb.Fatal("no unix socket")
		}
		return u
	}
	return conn(fds[0]), conn(fds[1])
}

func connect(tb testing.TB, d Device, o Options) *frontend {
	tb.Helper()
	a, b := pair(tb)
	f := &frontend{t: tb, c: NewConn(a), done: make(chan error, 1)}
	go func() { f.done <- Serve(context.Background(), b, d, o) }()
	tb.Cleanup(func() { _ = f.c.Close() })
	return f
}

// end disconnects and returns what Serve returned.
func (f *frontend) end() error {
	_ = f.c.Close()
	return <-f.done
}

func (f *frontend) send(r Request, flags uint32, payload []byte, fds ...int) {
	f.t.Helper()
	if err := f.c.Send(r, FlagVersion|flags, payload, fds...); err != nil {
		f.t.Fatal(err)
	}
}

// ask sends and returns the reply's payload, whose header must be exact.
func (f *frontend) ask(r Request, flags uint32, payload []byte, fds ...int) []byte {
	f.t.Helper()
	f.send(r, flags, payload, fds...)
	m, err := f.c.Receive()
	if err != nil {
		f.t.Fatalf("%v: no reply: %v", r, err)
	}
	if m.Request != r || m.Flags != 0x5 || len(m.FDs) != 0 {
		f.t.Fatalf("%v: reply %+v: want the same request, flags 0x5, no descriptors", r, m)
	}
	return m.Payload
}

// do sends with need_reply and returns the status.
func (f *frontend) do(r Request, payload []byte, fds ...int) uint64 {
	f.t.Helper()
	v, err := DecodeU64(f.ask(r, FlagNeedReply, payload, fds...))
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func (f *frontend) ok(r Request, payload []byte, fds ...int) {
	f.t.Helper()
	if v := f.do(r, payload, fds...); v != 0 {
		f.t.Fatalf("%v: status %d: want 0", r, v)
	}
}

func (f *frontend) u64(r Request) uint64 {
	f.t.Helper()
	v, err := DecodeU64(f.ask(r, 0, nil))
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

// memfd is a descriptor of a file of n bytes; it is the front-end's and closed at the end.
func memfd(tb testing.TB, n int64) int {
	tb.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Ftruncate(fd, n); err != nil {
		tb.Fatal(err)
	}
	return fd
}

func eventfd(tb testing.TB) int {
	tb.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
