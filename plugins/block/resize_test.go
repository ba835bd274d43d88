package main

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestResize(t *testing.T) {
	t.Parallel()
	path := imageFile(t, 1<<20)
	b, h := newDisk(t, path, defaultSettings())
	r := newRig(t, b, 0, 0)
	r.want(virtio.BlkSIOErr, virtio.BlkTIn, 2048, nil, 512)
	step := func(args string, want resizeResult, changes int) {
		t.Helper()
		got, err := resize(t, b, args)
		if err != nil || got != want {
			t.Errorf("resize %s: %+v, %v; want %+v", args, got, err, want)
		}
		if h.changes != changes || b.img.sectors() != uint64(want.Size)/512 { //nolint:gosec // G115: positive
			t.Errorf("resize %s: %d changes told (want %d), %d sectors", args, h.changes, changes, b.img.sectors())
		}
	}
	refuse := func(args, why string) {
		t.Helper()
		before := b.img.sectors()
		if _, err := resize(t, b, args); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("resize %s: %v, want an error with %q", args, err, why)
		}
		if b.img.sectors() != before {
			t.Errorf("resize %s changed the disk", args)
		}
	}
	if err := os.Truncate(path, 2<<20); err != nil {
		t.Fatal(err)
	}
	step(``, resizeResult{2 << 20, 1 << 20}, 1)
	r.write(2048, pattern(1, 4096))
	step(`{}`, resizeResult{2 << 20, 2 << 20}, 1)
	step(`{"size": 3145728}`, resizeResult{3 << 20, 2 << 20}, 2)
	refuse(`{"size": 2097152}`, "force = true")
	refuse(`{"size": 3145729}`, "not a multiple of the block size")
	refuse(`{"sizes": 1}`, "unknown")
	refuse(`{"size": 100}`, "100: want")
	if size := allocated(t, path); size > 1<<20 {
		t.Errorf("growing allocated %d bytes", size)
	}
	step(`{"size": 1048576, "force": true}`, resizeResult{1 << 20, 3 << 20}, 3)
	r.want(virtio.BlkSIOErr, virtio.BlkTIn, 2048, nil, 512)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	refuse(`{}`, "at least one block")
	if _, err := b.Command(t.Context(), "reboot", nil); err == nil {
		t.Error("an unknown command was taken")
	}
}

// TestShrinkingWaitsForIO: a request that was checked against the former size neither gets through afterwards nor makes the
// file grow again, and none is cut off in the middle.
func TestShrinkingWaitsForIO(t *testing.T) {
	t.Parallel()
	path := imageFile(t, 2<<20)
	b, h := newDisk(t, path, defaultSettings())
	b.img.mu.RLock() // as a request under way does
	done := make(chan error, 1)
	go func() {
		_, err := resize(t, b, `{"size": 1048576, "force": true}`)
		done <- err
	}()
	for b.img.mu.TryRLock() { // fails as soon as somebody waits to write
		b.img.mu.RUnlock()
		select {
		case err := <-done:
			t.Fatalf("the disk shrank under a request: %v", err)
		default:
			runtime.Gosched()
		}
	}
	if size, err := b.img.measure(); err != nil || size != 2<<20 {
		t.Errorf("the file was cut before the request ended: %d bytes, %v", size, err)
	}
	b.img.mu.RUnlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r := newRig(t, b, 0, 0)
	for _, kind := range []uint32{virtio.BlkTIn, virtio.BlkTOut, virtio.BlkTDiscard, virtio.BlkTWriteZeroes} {
		r.putHeader(kind, 2048)
		copy(r.arena.Bytes(r.data), segment(2048, 8, 0))
		readable, writable := cut(r.header, 16), cut(r.status, 1)
		switch kind {
		case virtio.BlkTIn:
			writable = append(cut(r.data, 512), r.status)
		case virtio.BlkTOut:
			readable = append(readable, cut(r.data, 512)...)
		default:
			readable = append(readable, cut(r.data, 16)...)
		}
		r.add(readable, writable)
		n, err := r.dev.PopBatch(r.batch[:])
		if err != nil {
			t.Fatal(err)
		}
		b.queues[0].handle(4096, ringOf{r.dev}, r.batch[:n]) // the size before
		r.dev.Flush()
		if _, _, ok := r.drv.Used(); !ok || r.arena.Bytes(r.status)[0] != virtio.BlkSIOErr {
			t.Errorf("type %d beyond the new end: status %d", kind, r.arena.Bytes(r.status)[0])
		}
	}
	for _, f := range h.failures() {
		if !strings.Contains(f, errBeyond.Error()) {
			t.Errorf("told %q", f)
		}
	}
	if size, err := b.img.measure(); err != nil || size != 1<<20 {
		t.Errorf("the file has %d bytes, %v", size, err)
	}
}
