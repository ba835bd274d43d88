package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestDiskKeepsWhatIsWritten(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]virtio.Features{
		"direct descriptors": 0, "event index": virtio.FEventIdx, "indirect descriptors": virtio.FIndirectDesc | virtio.FEventIdx,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := imageFile(t, 8<<20)
			b, h := newDisk(t, path, defaultSettings())
			r := newRig(t, b, 0, f)
			for i, n := range []int{512, 4096, 65536, rigData} {
				r.write(uint64(3+4096*i), pattern(i, n))
			}
			r.flush()
			file := contents(t, path)
			for i, n := range []int{512, 4096, 65536, rigData} {
				off := 512 * (3 + 4096*i)
				if !bytes.Equal(file[off:off+n], pattern(i, n)) {
					t.Errorf("%d bytes at %d are not in the file", n, off)
				}
				if got := r.read(uint64(3+4096*i), n); !bytes.Equal(got, pattern(i, n)) {
					t.Errorf("%d bytes at %d are read wrong", n, off)
				}
			}
			if got := r.read(0, 512); !bytes.Equal(got, make([]byte, 512)) {
				t.Error("a hole does not read zeroes")
			}
			s := b.Statistics()
			if s["writes"] != 4 || s["reads"] != 5 || s["flushes"] != 1 || s["write_bytes"] != 512+4096+65536+rigData || s["errors"] != 0 {
				t.Errorf("statistics %v", s)
			}
			if f := h.failures(); len(f) > 0 {
				t.Errorf("failures: %v", f)
			}
		})
	}
}

func TestDiskServesSegmentsSpreadOverMemory(t *testing.T) {
	t.Parallel()
	b, _ := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	r := newRig(t, b, 0, 0)
	r.putHeader(virtio.BlkTOut, 8)
	base := r.arena.Bytes(r.data)
	want := pattern(1, 250*512)
	readable := []driver.Buffer{r.header}
	for i := range 250 { // every second 512 bytes of the buffer: no two segments touch
		copy(base[1024*i:], want[512*i:512*(i+1)])
		readable = append(readable, driver.Buffer{Addr: r.data.Addr + gpa(1024*i), Len: 512})
	}
	if n := r.chain(readable, []driver.Buffer{r.status}); n != 1 || r.arena.Bytes(r.status)[0] != virtio.BlkSOK {
		t.Fatalf("used length %d, status %d", n, r.arena.Bytes(r.status)[0])
	}
	if got := r.read(8, len(want)); !bytes.Equal(got, want) {
		t.Error("the segments were not written in order")
	}
}

func TestConfigSpaceTellsTheGeometry(t *testing.T) {
	t.Parallel()
	cfg := defaultSettings()
	cfg.BlockSize, cfg.PhysicalBlockSize, cfg.OptIOSize, cfg.Queues, cfg.QueueSize = 1024, 8192, 1<<20, 3, 128
	b, h := newDisk(t, imageFile(t, 10<<20+1536), cfg)
	c, le := b.ReadConfig(), binary.LittleEndian
	for _, f := range []struct {
		name      string
		got, want uint64
	}{
		{"capacity", le.Uint64(c[0:]), 20<<10 + 2},
		{"size_max", uint64(le.Uint32(c[8:])), 0},
		{"seg_max", uint64(le.Uint32(c[12:])), 126},
		{"blk_size", uint64(le.Uint32(c[20:])), 1024},
		{"physical_block_exp", uint64(c[24]), 3},
		{"alignment_offset", uint64(c[25]), 0},
		{"min_io_size", uint64(le.Uint16(c[26:])), 8},
		{"opt_io_size", uint64(le.Uint32(c[28:])), 1024},
		{"writeback", uint64(c[32]), 1},
		{"num_queues", uint64(le.Uint16(c[34:])), 3},
		{"max_discard_sectors", uint64(le.Uint32(c[36:])), maxDiscardSectors},
		{"max_discard_seg", uint64(le.Uint32(c[40:])), maxDiscardSegments},
		{"discard_sector_alignment", uint64(le.Uint32(c[44:])), 8},
		{"max_write_zeroes_sectors", uint64(le.Uint32(c[48:])), maxZeroSectors},
		{"max_write_zeroes_seg", uint64(le.Uint32(c[52:])), maxZeroSegments},
		{"write_zeroes_may_unmap", uint64(c[56]), 1},
	} {
		if f.got != f.want {
			t.Errorf("%s = %d, want %d", f.name, f.got, f.want)
		}
	}
	if len(c) != virtio.BlkCfgSize {
		t.Errorf("%d bytes", len(c))
	}
	if s := b.Spec(); !s.Features.Has(virtio.FBlkMQ) || len(s.QueueSizes) != 3 || s.QueueSizes[2] != 128 {
		t.Errorf("spec %+v", s)
	}
	if len(h.notices) != 1 || !strings.Contains(h.notices[0], "last 512 bytes") {
		t.Errorf("the odd size was told as %q", h.notices)
	}
}

func TestReadOnlyDiskRefusesEveryChange(t *testing.T) {
	t.Parallel()
	path := imageFile(t, 1<<20)
	cfg := defaultSettings()
	cfg.ReadOnly = true
	b, _ := newDisk(t, path, cfg)
	if f := b.Spec().Features; !f.Has(virtio.FBlkRO) || f&(virtio.FBlkDiscard|virtio.FBlkWriteZeroes|virtio.FBlkConfigWCE) != 0 {
		t.Errorf("features %v", f)
	}
	if err := b.SetFeatures(allFeatures); err != nil { // a driver that does not keep to the offer
		t.Fatal(err)
	}
	r := newRig(t, b, 0, 0)
	r.want(virtio.BlkSIOErr, virtio.BlkTOut, 0, pattern(1, 512), 0)
	r.want(virtio.BlkSIOErr, virtio.BlkTDiscard, 0, segment(0, 1, 0), 0)
	r.want(virtio.BlkSIOErr, virtio.BlkTWriteZeroes, 0, segment(0, 1, 0), 0)
	r.read(0, 4096)
	r.flush()
	if s := b.Statistics(); s["rejected"] != 3 || s["errors"] != 0 {
		t.Errorf("statistics %v", s)
	}
	if _, err := resize(t, b, `{"size": 2097152}`); err == nil {
		t.Error("a read-only image was resized")
	}
}

// countSyncs counts synchronisations.
func countSyncs(b *block) *atomic.Int64 {
	var n atomic.Int64
	sync := b.img.fdatasync
	b.img.fdatasync = func(fd int) error { n.Add(1); return sync(fd) }
	return &n
}

func TestWriteThroughSynchronisesBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	cfg := defaultSettings()
	cfg.Cache = "writethrough"
	b, _ := newDisk(t, imageFile(t, 1<<20), cfg)
	n := countSyncs(b)
	r := newRig(t, b, 0, 0)
	if b.ReadConfig()[virtio.BlkCfgWriteback] != 0 {
		t.Error("writeback is told")
	}
	answered := false
	sync := b.img.fdatasync
	b.img.fdatasync = func(fd int) error { answered = answered || r.drv.HasUsed(); return sync(fd) }
	r.write(0, pattern(1, 512))
	r.want(virtio.BlkSOK, virtio.BlkTWriteZeroes, 0, segment(0, 8, 0), 0)
	if n.Load() != 2 || answered {
		t.Errorf("%d synchronisations for 2 writes, answered before: %v", n.Load(), answered)
	}
	r.read(0, 512)
	if n.Load() != 2 {
		t.Error("a read synchronised")
	}
	// Several writes of one batch share one.
	for range 4 {
		r.putHeader(virtio.BlkTOut, 0)
		r.add([]driver.Buffer{r.header, cut(r.data, 512)[0]}, []driver.Buffer{r.status})
	}
	r.serve()
	if n.Load() != 3 {
		t.Errorf("%d synchronisations for a batch, want 1", n.Load()-2)
	}
}

func TestCacheModeFollowsTheDriver(t *testing.T) {
	t.Parallel()
	b, _ := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	n := countSyncs(b)
	r := newRig(t, b, 0, 0)
	step := func(what string, want int64) {
		t.Helper()
		if got := n.Swap(0); got != want {
			t.Errorf("%s: %d synchronisations, want %d", what, got, want)
		}
	}
	set := func(v byte) {
		t.Helper()
		if err := b.WriteConfig(virtio.BlkCfgWriteback, []byte{v}); err != nil {
			t.Fatal(err)
		}
	}
	r.write(0, pattern(1, 512))
	step("write-back write", 0)
	r.flush()
	step("flush", 1)
	set(0)
	step("turning the cache off", 1)
	set(0)
	step("turning it off again", 0)
	r.write(0, pattern(1, 512))
	step("write-through write", 1)
	set(1)
	r.write(0, pattern(1, 512))
	step("write-back again", 0)
	if err := b.Reset(); err != nil {
		t.Fatal(err)
	}
	if err := b.SetFeatures(virtio.FVersion1 | b.Spec().Features&^virtio.FBlkFlush); err != nil {
		t.Fatal(err)
	}
	if b.ReadConfig()[virtio.BlkCfgWriteback] != 0 {
		t.Error("without FLUSH writeback must be 0 (5.2.5.2)")
	}
	set(1)
	r.write(0, pattern(1, 512))
	step("write of a driver without FLUSH", 1)
	if err := b.Reset(); err != nil {
		t.Fatal(err)
	}
	if err := b.SetFeatures(virtio.FVersion1 | b.Spec().Features); err != nil {
		t.Fatal(err)
	}
	if b.ReadConfig()[virtio.BlkCfgWriteback] != 1 {
		t.Error("a reset does not bring the setting back")
	}
}

// A legacy driver sets writeback whenever it likes, and no choice of features changes it (5.2.5.3); one that does not know the
// field has what its features say.
func TestALegacyDriversCacheMode(t *testing.T) {
	t.Parallel()
	b, _ := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	legacy := b.Spec().Features
	for _, tc := range []struct {
		name      string
		before    byte
		features  virtio.Features
		writeback byte
	}{
		{"written through before", 0, legacy, 0},
		{"written back before, and no FLUSH", 1, legacy &^ virtio.FBlkFlush, 1},
		{"no CONFIG_WCE", 0, legacy &^ virtio.FBlkConfigWCE, 1},
		{"neither", 1, legacy &^ (virtio.FBlkConfigWCE | virtio.FBlkFlush), 0},
		{"not legacy, no FLUSH", 1, virtio.FVersion1 | legacy&^virtio.FBlkFlush, 0},
	} {
		if err := b.Reset(); err != nil {
			t.Fatal(err)
		}
		if err := b.WriteConfig(virtio.BlkCfgWriteback, []byte{tc.before}); err != nil {
			t.Fatal(err)
		}
		if err := b.SetFeatures(tc.features); err != nil {
			t.Fatal(err)
		}
		if got := b.ReadConfig()[virtio.BlkCfgWriteback]; got != tc.writeback {
			t.Errorf("%s: writeback is %d, want %d", tc.name, got, tc.writeback)
		}
	}
}

func TestWriteConfigTakesOnlyWriteback(t *testing.T) {
	t.Parallel()
	b, _ := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	for _, w := range []struct {
		offset int
		data   []byte
		ok     bool
	}{
		{32, []byte{2}, false}, {0, []byte{1}, false}, {33, []byte{0}, false}, {31, []byte{0}, false},
		{31, []byte{9, 0}, true}, {0, b.ReadConfig(), true}, {32, []byte{1, 0, 0, 0}, true},
	} {
		if err := b.WriteConfig(w.offset, w.data); (err == nil) != w.ok {
			t.Errorf("write of %v at %d: %v", w.data, w.offset, err)
		}
	}
}

func TestAFailedFlushStaysFailed(t *testing.T) {
	t.Parallel()
	b, h := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	r := newRig(t, b, 0, 0)
	sync := b.img.fdatasync
	b.img.fdatasync = func(int) error { return unix.EIO }
	r.want(virtio.BlkSIOErr, virtio.BlkTFlush, 0, nil, 0)
	b.img.fdatasync = sync // the kernel would now say that all is well
	r.want(virtio.BlkSIOErr, virtio.BlkTFlush, 0, nil, 0)
	if err := b.Health(); !errors.Is(err, unix.EIO) {
		t.Errorf("health: %v", err)
	}
	r.write(0, pattern(1, 512)) // nothing else breaks
	r.read(0, 512)
	f := h.failures()
	if len(f) != 1 || !strings.Contains(f[0], "flush: "+b.img.path) || !strings.Contains(f[0], "writes may be lost") {
		t.Errorf("told: %q", f)
	}
}

func TestDiskThatSomebodyTruncated(t *testing.T) {
	t.Parallel()
	path := imageFile(t, 1<<20)
	b, h := newDisk(t, path, defaultSettings())
	r := newRig(t, b, 0, 0)
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	status, _, written := r.request(virtio.BlkTIn, 6, nil, 2048)
	if status != virtio.BlkSIOErr || written != 1025 {
		t.Errorf("read over the end: status %d, used length %d; want %d and the 1024 bytes that were there + 1", status, written, virtio.BlkSIOErr)
	}
	r.read(0, 4096)
	if f := h.failures(); len(f) != 1 || !strings.Contains(f[0], "read: "+path+": 2048 bytes at offset 3072: the image is shorter") {
		t.Errorf("told: %q", f)
	}
}

func TestHandlerAllocatesNothing(t *testing.T) { //nolint:paralleltest // AllocsPerRun counts the whole process
	b, _ := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	for name, f := range map[string]virtio.Features{"direct": 0, "indirect": virtio.FIndirectDesc | virtio.FEventIdx} {
		r := newRig(t, b, 0, f)
		header, data, status := []driver.Buffer{r.header}, cut(r.data, 4096), []driver.Buffer{r.status}
		out, in := slices.Concat(header, data), slices.Concat(data, status)
		round := func() {
			for range 4 {
				r.putHeader(virtio.BlkTOut, 8)
				r.chain(out, status)
				r.putHeader(virtio.BlkTIn, 8)
				r.chain(header, in)
				r.putHeader(virtio.BlkTFlush, 0)
				r.chain(header, status)
				r.putHeader(virtio.BlkTGetID, 0)
				r.chain(header, in)
				r.putHeader(99, 0)
				r.chain(header, in)
			}
		}
		round()
		if n := testing.AllocsPerRun(50, round); n != 0 {
			t.Errorf("%s: %.2f allocations in 20 requests", name, n)
		}
	}
}

// lateEngine finishes each request on another goroutine: the seam that an asynchronous engine uses.
type lateEngine struct {
	inner *inline
	wg    sync.WaitGroup
	mu    sync.Mutex // an inline engine is for one goroutine
}

func (e *lateEngine) submit(batch []*request) {
	for _, r := range batch {
		e.wg.Go(func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.inner.submit([]*request{r})
		})
	}
}

func (e *lateEngine) close() error { e.wg.Wait(); return e.inner.close() }

func TestEngineMayFinishLater(t *testing.T) {
	t.Parallel()
	b, _ := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	q := &b.queues[0]
	late := &lateEngine{}
	late.inner = newInline(b.img, &b.cache.through, func(r *request, _ bool) { q.done(r, true) })
	q.engine = late
	r := newRig(t, b, 0, 0)
	want := pattern(1, 64*512)
	copy(r.arena.Bytes(r.data), want)
	var all []driver.Buffer
	for i := range 64 {
		h, s := r.alloc(16), r.alloc(1)
		r.arena.Bytes(s)[0] = 0xaa
		all = append(all, s)
		copy(r.arena.Bytes(h), header(virtio.BlkTOut, uint64(i)))
		r.add([]driver.Buffer{h, {Addr: r.data.Addr + gpa(512*i), Len: 512}}, []driver.Buffer{s})
	}
	r.serve()
	late.wg.Wait()
	for i, s := range all {
		if _, _, ok := r.drv.Used(); !ok || r.arena.Bytes(s)[0] != virtio.BlkSOK {
			t.Fatalf("request %d of %d was not answered", i, len(all))
		}
	}
	q.engine = newInline(b.img, &b.cache.through, q.done)
	if got := r.read(0, len(want)); !bytes.Equal(got, want) {
		t.Error("what was written late is not there")
	}
}

// TestQueuesWorkTogetherWhileTheDiskChanges is for the race detector: I/O on all queues, resizing, mode changes, readers
// of everything.
func TestQueuesWorkTogetherWhileTheDiskChanges(t *testing.T) {
	t.Parallel()
	cfg := defaultSettings()
	cfg.Queues = 4
	b, h := newDisk(t, imageFile(t, 4<<20), cfg)
	var workers, others sync.WaitGroup
	for i := range 4 {
		r := newRig(t, b, i, virtio.FEventIdx)
		workers.Go(func() {
			for n := range 200 {
				want := pattern(i+n, 4096)
				r.write(uint64(i*256), want)                         //nolint:gosec // G115: small
				if !bytes.Equal(r.read(uint64(i*256), 4096), want) { //nolint:gosec // G115: small
					t.Errorf("queue %d: wrong data", i)
				}
				r.request(virtio.BlkTIn, 4<<11+uint64(n), nil, 512) // may or may not exist
				r.request(virtio.BlkTOut, 4<<11+uint64(n), want, 0)
			}
		})
	}
	stop := make(chan struct{})
	others.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			for _, args := range []string{`{"size": 8388608}`, `{"size": 4194304, "force": true}`} {
				if _, err := resize(t, b, args); err != nil {
					t.Error(err)
				}
			}
			if err := b.WriteConfig(virtio.BlkCfgWriteback, []byte{byte(n % 2)}); err != nil {
				t.Error(err)
			}
			_, _, _ = b.ReadConfig(), b.Statistics(), b.Health()
		}
	})
	workers.Wait()
	close(stop)
	others.Wait()
	if size, err := b.img.measure(); err != nil || size != 4<<20 {
		t.Errorf("the image has %d bytes (%v): a write under way made it grow again", size, err)
	}
	for _, f := range h.failures() {
		if !strings.Contains(f, errBeyond.Error()) {
			t.Error(f)
		}
	}
}
