package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// fakeHost records what the disk tells its surroundings.
type fakeHost struct {
	mu      sync.Mutex
	changes int
	fails   []error
	notices []string
}

func (h *fakeHost) ConfigChanged() { h.mu.Lock(); h.changes++; h.mu.Unlock() }

func (h *fakeHost) Fail(err error, _ bool) {
	h.mu.Lock()
	h.fails = append(h.fails, err)
	h.mu.Unlock()
}

func (h *fakeHost) Notice(message string, _ map[string]string) {
	h.mu.Lock()
	h.notices = append(h.notices, message)
	h.mu.Unlock()
}

// failures are the messages of Fail so far.
func (h *fakeHost) failures() (all []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, err := range h.fails {
		all = append(all, err.Error())
	}
	return all
}

// allFeatures is what a modern driver accepts of anything offered.
const allFeatures = ^virtio.Features(0)

// defaultSettings are the defaults of the settings' tags.
func defaultSettings() settings {
	return settings{Cache: "writeback", Discard: "unmap", Locking: "on", Queues: 1, QueueSize: 256}
}

// imageFile makes a sparse file.
func imageFile(tb testing.TB, size int64) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		tb.Fatal(err)
	}
	return path
}

// openFile opens a file of the test's for as long as the test.
func openFile(tb testing.TB, path string, flags int) *os.File {
	tb.Helper()
	f, err := os.OpenFile(path, flags, 0) //nolint:gosec // G304, G703: the test's own file
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	return f
}

// contents are a file's.
func contents(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// open gives cfg the opened image as the launcher would.
func open(tb testing.TB, path string, cfg *settings) {
	tb.Helper()
	flags := os.O_RDWR
	if cfg.ReadOnly {
		flags = os.O_RDONLY
	}
	cfg.Path = sdk.File{Path: path, File: openFile(tb, path, flags)}
}

// newDisk makes a disk on path with a driver that accepts all it offers.
func newDisk(tb testing.TB, path string, cfg settings) (*block, *fakeHost) {
	tb.Helper()
	open(tb, path, &cfg)
	h := &fakeHost{}
	b, err := newBlock("vda", h, func(error) {}, &cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = b.Close() })
	if err := b.SetFeatures(virtio.FVersion1 | b.Spec().Features); err != nil {
		tb.Fatal(err)
	}
	return b, h
}

// ringOf answers chains on a queue that has no notifications.
type ringOf struct{ *virtq.Queue }

func (r ringOf) Complete(c *virtq.Chain) { r.Queue.Complete(c) }

func (r ringOf) Finish(c *virtq.Chain) error {
	r.Queue.Complete(c)
	r.Flush()
	return nil
}

// rig drives one queue of a disk through a real ring in heap memory, from the driver's side. One goroutine.
type rig struct {
	tb    testing.TB
	disk  *block
	index int
	arena *driver.Arena
	drv   *driver.Queue
	dev   *virtq.Queue
	// header, data and status are the buffers of request.
	header, data, status driver.Buffer
	batch                [sdk.BatchSize]*virtq.Chain
}

const rigData = 1 << 20

func newRig(tb testing.TB, disk *block, index int, ringFeatures virtio.Features) *rig {
	tb.Helper()
	mem, err := guestmem.New(guestmem.Region{Start: 0x10000, Data: make([]byte, 8<<20)})
	if err != nil {
		tb.Fatal(err)
	}
	r := &rig{tb: tb, disk: disk, index: index, arena: driver.NewArena(mem)}
	size := disk.Spec().QueueSizes[index]
	if r.drv, err = driver.New(r.arena, driver.Config{Size: size, Features: ringFeatures}); err != nil {
		tb.Fatal(err)
	}
	d, a, u := r.drv.Areas()
	r.dev, err = virtq.Activate(mem, virtq.Config{Index: index, Size: size, DescArea: d, DriverArea: a, DeviceArea: u, Features: ringFeatures})
	if err != nil {
		tb.Fatal(err)
	}
	r.header, r.data, r.status = r.alloc(virtio.BlkHeaderSize), r.alloc(rigData), r.alloc(1)
	return r
}

func (r *rig) alloc(n int) driver.Buffer {
	r.tb.Helper()
	b, err := r.arena.Buffer(n)
	if err != nil {
		r.tb.Fatal(err)
	}
	return b
}

// add makes a chain available.
func (r *rig) add(readable, writable []driver.Buffer) {
	if _, ok := r.drv.Add(readable, writable); !ok {
		r.tb.Fatal("the ring is full")
	}
	r.drv.Publish()
}

// serve lets the device serve all that is available.
func (r *rig) serve() {
	for {
		n, err := r.dev.PopBatch(r.batch[:])
		if err != nil {
			r.tb.Fatal(err)
		}
		if n == 0 {
			return
		}
		r.disk.queues[r.index].handle(r.disk.img.sectors(), ringOf{r.dev}, r.batch[:n])
		r.dev.Flush()
	}
}

// chain sends one chain and returns used.len.
func (r *rig) chain(readable, writable []driver.Buffer) uint32 {
	r.tb.Helper()
	r.add(readable, writable)
	r.serve()
	_, written, ok := r.drv.Used()
	if !ok {
		r.tb.Fatal("the request was not answered")
	}
	return written
}

// gpa is an offset into a buffer.
func gpa(n int) guestmem.GPA { return guestmem.GPA(n) } //nolint:gosec // G115: never negative

// cut is the first n bytes of b, none if n is 0.
func cut(b driver.Buffer, n int) []driver.Buffer {
	if n == 0 {
		return nil
	}
	b.Len = uint32(n) //nolint:gosec // G115: at most rigData
	return []driver.Buffer{b}
}

func (r *rig) putHeader(kind uint32, sector uint64) {
	h := r.arena.Bytes(r.header)
	binary.LittleEndian.PutUint32(h, kind)
	binary.LittleEndian.PutUint64(h[8:], sector)
}

// request sends header, out and room for in and a status; it returns status, data and used.len.
func (r *rig) request(kind uint32, sector uint64, out []byte, in int) (status byte, data []byte, written uint32) {
	r.tb.Helper()
	r.putHeader(kind, sector)
	r.arena.Bytes(r.status)[0] = 0xaa
	buf := r.arena.Bytes(r.data)
	if in > 0 {
		for i := range buf[:in] {
			buf[i] = 0x55
		}
	}
	copy(buf, out)
	written = r.chain(append([]driver.Buffer{r.header}, cut(r.data, len(out))...), append(cut(r.data, in), r.status))
	return r.arena.Bytes(r.status)[0], bytes.Clone(buf[:in]), written
}

// want sends a request and expects a status.
func (r *rig) want(status byte, kind uint32, sector uint64, out []byte, in int) []byte {
	r.tb.Helper()
	got, data, written := r.request(kind, sector, out, in)
	if got != status {
		r.tb.Fatalf("type %d, sector %d, %d bytes out, %d in: status %d, want %d", kind, sector, len(out), in, got, status)
	}
	if status == virtio.BlkSOK && int(written) != in+1 {
		r.tb.Fatalf("type %d: used length %d, want %d", kind, written, in+1)
	}
	return data
}

func (r *rig) write(sector uint64, out []byte) {
	r.tb.Helper()
	r.want(virtio.BlkSOK, virtio.BlkTOut, sector, out, 0)
}

func (r *rig) read(sector uint64, n int) []byte {
	r.tb.Helper()
	return r.want(virtio.BlkSOK, virtio.BlkTIn, sector, nil, n)
}

func (r *rig) flush() {
	r.tb.Helper()
	r.want(virtio.BlkSOK, virtio.BlkTFlush, 0, nil, 0)
}

// segment is one range of DISCARD or WRITE_ZEROES.
func segment(sector uint64, n, flags uint32) []byte {
	b := make([]byte, virtio.BlkRangeSize)
	binary.LittleEndian.PutUint64(b, sector)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint32(b[12:], flags)
	return b
}

// pattern is n bytes that differ by seed and by place.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(seed*131 + i*7 + i>>8 + 1) //nolint:gosec // G115: wraps on purpose
	}
	return b
}

// resize runs the command.
func resize(tb testing.TB, b *block, args string) (resizeResult, error) {
	tb.Helper()
	got, err := b.Command(context.Background(), "resize", []byte(args))
	if err != nil {
		return resizeResult{}, err
	}
	res, ok := got.(resizeResult)
	if !ok {
		tb.Fatalf("resize answered %T", got)
	}
	return res, nil
}
