package shm_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/internal/shm"
)

func TestFieldsOutsideOrMisalignedAreRefused(t *testing.T) {
	t.Parallel()
	b := make([]byte, 4096)
	for _, off := range []int{-1, -2, 1, 4093, 4095, 4096, 5000} {
		if _, err := shm.U16At(b, off); err == nil {
			t.Errorf("U16At(%d) was accepted", off)
		}
		if _, err := shm.WordAt(b, off); err == nil {
			t.Errorf("WordAt(%d) was accepted", off)
		}
		if _, err := shm.Word64At(b, off); err == nil {
			t.Errorf("Word64At(%d) was accepted", off)
		}
	}
	if _, err := shm.WordAt(b, 2); err == nil {
		t.Error("a word at 2 was accepted")
	}
	if _, err := shm.Word64At(b, 4); err == nil {
		t.Error("a word of 64 bits at 4 was accepted")
	}
	for _, c := range []struct{ off, n, align int }{{0, 0, 2}, {0, 4097, 2}, {4090, 8, 2}, {1, 4, 2}, {4, 8, 8}, {-2, 8, 2}} {
		if _, err := shm.RingAt(b, c.off, c.n, c.align); err == nil {
			t.Errorf("RingAt%+v was accepted", c)
		}
	}
}

func TestAStoreLeavesTheOtherHalfOfItsWordAlone(t *testing.T) {
	t.Parallel()
	b := bytes.Repeat([]byte{0xaa}, 4096)
	for _, off := range []int{0, 2, 4, 4094} {
		f, err := shm.U16At(b, off)
		if err != nil {
			t.Fatal(err)
		}
		f.Store(0x1234)
		if f.Load() != 0x1234 || b[off] != 0x34 || b[off+1] != 0x12 {
			t.Errorf("at %d: % x", off, b[off:off+2])
		}
		b[off], b[off+1] = 0xaa, 0xaa
		if !bytes.Equal(b, bytes.Repeat([]byte{0xaa}, 4096)) {
			t.Fatalf("a store at %d changed its neighbours", off)
		}
	}
}

func TestAWordOf64BitsIsStoredInPlace(t *testing.T) {
	t.Parallel()
	b := bytes.Repeat([]byte{0xaa}, 4096)
	for _, off := range []int{0, 8, 4088} {
		w, err := shm.Word64At(b, off)
		if err != nil {
			t.Fatal(err)
		}
		w.Store(0x0102030405060708)
		if got := binary.NativeEndian.Uint64(b[off:]); got != 0x0102030405060708 || w.Load() != got {
			t.Errorf("at %d: %#x, %#x", off, got, w.Load())
		}
		w.Store(0xaaaaaaaaaaaaaaaa)
		if !bytes.Equal(b, bytes.Repeat([]byte{0xaa}, 4096)) {
			t.Fatalf("a store at %d changed its neighbours", off)
		}
	}
}

func TestNeighboursMayBeWrittenAtTheSameTime(t *testing.T) {
	t.Parallel()
	b := make([]byte, 4096)
	var wg sync.WaitGroup
	for _, off := range []int{0, 2} {
		f, err := shm.U16At(b, off)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for i := range uint16(20000) {
				f.Store(i)
				if got := f.Load(); got != i {
					t.Errorf("stored %d, read %d: the neighbour's store undid it", i, got)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestARingReadsItsEntriesAtEitherAlignment(t *testing.T) {
	t.Parallel()
	b := make([]byte, 4096)
	for i := range b {
		b[i] = byte(i)
	}
	for _, off := range []int{4, 6} {
		r, err := shm.RingAt(b, off, 64, 2)
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint16(32) {
			if got, want := r.Load16(i), uint16(b[off+2*int(i)])|uint16(b[off+2*int(i)+1])<<8; got != want {
				t.Errorf("ring at %d, entry %d = %#x, want %#x", off, i, got, want)
			}
		}
	}
}

func TestVectorsSkipAndStopAtTheKernelsLimit(t *testing.T) {
	t.Parallel()
	var v shm.Vec
	bufs := [][]byte{make([]byte, 3), make([]byte, 5), nil, make([]byte, 7)}
	for skip, want := range map[int]int{0: 15, 2: 13, 3: 12, 4: 11, 8: 7, 15: 0, 99: 0} {
		if got := v.Set(bufs, skip); got != want {
			t.Errorf("Set(skip %d) = %d, want %d", skip, got, want)
		}
	}
	many := make([][]byte, shm.IovMax+10)
	for i := range many {
		many[i] = []byte{1}
	}
	if got := v.Set(many, 0); got != shm.IovMax {
		t.Errorf("Set(%d vectors) = %d", len(many), got)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if n, e := v.Pwritev2(int(f.Fd()), 5, 0); n != shm.IovMax || e != 0 {
		t.Errorf("Pwritev2 = %d, %v", n, e)
	}
	if n, e := v.Preadv2(int(f.Fd()), 1<<20, 0); n != 0 || e != 0 {
		t.Errorf("Preadv2 past the end = %d, %v", n, e)
	}
	if _, e := v.Preadv2(-1, 0, 0); e != unix.EBADF {
		t.Errorf("Preadv2 on no file = %v", e)
	}
}
