package main

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// dio skips if the tests' file system has no direct I/O.
func dio(t *testing.T, size int64) (string, settings) {
	t.Helper()
	path := imageFile(t, size)
	cfg := defaultSettings()
	cfg.Direct = true
	if _, err := unix.FcntlInt(openFile(t, path, os.O_RDWR).Fd(), unix.F_SETFL, unix.O_DIRECT); err != nil {
		t.Skipf("NO DIRECT I/O in %s: %v", filepath.Dir(path), err)
	}
	return path, cfg
}

func TestDirectTakesBuffersAndExtentsThatDoNotFit(t *testing.T) {
	t.Parallel()
	path, cfg := dio(t, 4<<20)
	cfg.BlockSize = 512
	b, _ := newDisk(t, path, cfg)
	if b.img.direct == nil || b.img.direct.align < 512 {
		t.Fatalf("direct I/O is not set up: %+v", b.img.direct)
	}
	// Pretend that the disk needs 4096: extents of single sectors are replaced in their blocks.
	b.img.direct.align = 4096
	r := newRig(t, b, 0, 0)
	model := make([]byte, 4<<20)
	for i, w := range []struct{ sector, sectors, shift int }{
		{0, 8, 0}, {8, 8, 8}, {3, 1, 0}, {5, 20, 4}, {100, 1900, 2}, {4096 - 7, 4, 0}, {8191, 1, 0},
	} {
		data := pattern(i, 512*w.sectors)
		copy(model[512*w.sector:], data)
		at := r.data
		at.Addr += gpa(w.shift) // an address that direct I/O does not take
		copy(r.arena.Bytes(r.data)[w.shift:], data)
		r.putHeader(virtio.BlkTOut, uint64(w.sector)) //nolint:gosec // G115: small
		r.chain(append(cut(r.header, 16), cut(at, len(data))...), cut(r.status, 1))
		if s := r.arena.Bytes(r.status)[0]; s != virtio.BlkSOK {
			t.Fatalf("write %d: status %d", i, s)
		}
		clear(r.arena.Bytes(r.data))
		r.putHeader(virtio.BlkTIn, uint64(w.sector)) //nolint:gosec // G115: small
		if n := r.chain(cut(r.header, 16), append(cut(at, len(data)), r.status)); int(n) != len(data)+1 {
			t.Fatalf("read %d: used length %d, want %d", i, n, len(data)+1)
		}
		if !bytes.Equal(r.arena.Bytes(r.data)[w.shift:w.shift+len(data)], data) {
			t.Fatalf("read %d: wrong data", i)
		}
	}
	b.img.noPunch.Store(true)
	b.img.noZeroRange.Store(true) // so zeroes are written
	for _, z := range []struct{ sector, sectors uint32 }{{111, 1}, {200, 9}, {256, 16}} {
		clear(model[512*z.sector : 512*(z.sector+z.sectors)])
		r.want(virtio.BlkSOK, virtio.BlkTWriteZeroes, 0, segment(uint64(z.sector), z.sectors, 1), 0)
	}
	r.flush()
	if !bytes.Equal(contents(t, path), model) {
		t.Error("the file is not what was written")
	}
}

// TestDirectReplacesNothingElse: while a sector is replaced in its block, a write of the whole block must not get lost.
func TestDirectReplacesNothingElse(t *testing.T) {
	t.Parallel()
	path, cfg := dio(t, 1<<20)
	cfg.Queues = 2
	b, _ := newDisk(t, path, cfg)
	b.img.direct.align = 4096
	if b.img.direct.fits(extent{off: 512, size: 4096}) || b.img.direct.fits(extent{size: 512}) || !b.img.direct.fits(extent{off: 4096, size: 8192}) {
		t.Error("fits is wrong")
	}
	whole, part := newRig(t, b, 0, 0), newRig(t, b, 1, 0)
	for i := range 300 {
		var both sync.WaitGroup
		both.Go(func() { whole.write(8, pattern(i, 4096)) })
		both.Go(func() { part.write(11, pattern(i+7, 512)) })
		both.Wait()
		got, want := whole.read(8, 4096), pattern(i, 4096)
		copy(want[1536:2048], got[1536:2048]) // the one that both wrote: either
		if !bytes.Equal(got, want) {
			t.Fatalf("round %d: the write of the block was lost", i)
		}
	}
}

func TestDirectFlagFollowsTheSetting(t *testing.T) {
	t.Parallel()
	path, cfg := dio(t, 1<<20)
	newDisk(t, path, cfg)
	b := cfg
	open(t, path, &b)
	flags := func(f *os.File) int {
		n, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	img, err := openImage(path, b.Path.File, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{true, false, true} {
		if err := img.setDirect(on); err != nil {
			t.Fatal(err)
		}
		if got := flags(b.Path.File)&unix.O_DIRECT != 0; got != on || (img.direct != nil) != on {
			t.Errorf("set %v: the description has it %v", on, got)
		}
	}
}
