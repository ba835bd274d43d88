package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestFullDiskFailsOnlyTheWrite(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("NOT ROOT: cannot mount a small file system; TestFileSizeLimitFailsOnlyTheWrite runs all the same")
	}
	dir := t.TempDir()
	if err := unix.Mount("virtplug-test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("CANNOT MOUNT a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	b, h := newDisk(t, path, defaultSettings())
	diskFillsUp(t, b, h, "the disk is full")
	// Once there is room it goes on.
	r := newRig(t, b, 0, 0)
	r.want(virtio.BlkSOK, virtio.BlkTDiscard, 0, segment(0, 128, 0), 0)
	r.write(1024, pattern(2, 4096))
}

// diskFillsUp writes until it fails, and checks that nothing else does.
func diskFillsUp(t *testing.T, b *block, h *fakeHost, why string) {
	t.Helper()
	r := newRig(t, b, 0, 0)
	first := pattern(1, 4096)
	r.write(0, first)
	failed := 0
	for sector := uint64(8); sector < 2048; sector += 8 {
		if status, _, written := r.request(virtio.BlkTOut, sector, first, 0); status == virtio.BlkSIOErr && written == 1 {
			failed++
		} else if status != virtio.BlkSOK {
			t.Fatalf("sector %d: status %d, used length %d", sector, status, written)
		}
	}
	if failed == 0 {
		t.Fatal("the disk did not fill up")
	}
	if !bytes.Equal(r.read(0, 4096), first) {
		t.Error("what was written before is gone")
	}
	r.flush()
	r.write(0, first)
	f := h.failures()
	if len(f) != 1 {
		t.Fatalf("%d failures told for %d failed writes: %q", len(f), failed, f)
	}
	for _, part := range []string{"write: " + b.img.path + ": 4096 bytes at offset ", why} {
		if !strings.Contains(f[0], part) {
			t.Errorf("told %q: lacks %q", f[0], part)
		}
	}
	if s := b.Statistics(); s["errors"] != uint64(failed) {
		t.Errorf("statistics %v", s)
	}
}

// TestFileSizeLimitFailsOnlyTheWrite runs itself as a process with a file size limit, whose signal (SIGXFSZ) must not end it;
// the Go runtime ignores it.
func TestFileSizeLimitFailsOnlyTheWrite(t *testing.T) {
	t.Parallel()
	const limited = "VIRTPLUG_BLOCK_TEST_LIMITED"
	if path := os.Getenv(limited); path != "" {
		b, h := newDisk(t, path, defaultSettings())
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 256 << 10, Max: 256 << 10}); err != nil {
			t.Fatal(err)
		}
		diskFillsUp(t, b, h, "ulimit -f")
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFileSizeLimitFailsOnlyTheWrite$", "-test.v") //nolint:gosec // G204: this test binary
	cmd.Env = append(os.Environ(), limited+"="+imageFile(t, 1<<20))
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestReporterTellsTheFirstAndCountsTheRest(t *testing.T) {
	t.Parallel()
	var told []string
	now := time.Unix(1000, 0)
	r := newReporter(func(err error) { told = append(told, err.Error()) })
	r.now = func() time.Time { return now }
	fail := func(o op, err error) {
		r.failed(o, &ioError{op: o.String(), path: "x.img", extent: extent{off: 512, size: 1024}, err: err})
	}
	want := func(n int, last string) {
		t.Helper()
		if len(told) != n || !strings.Contains(told[n-1], last) {
			t.Fatalf("told %q; want %d, the last with %q", told, n, last)
		}
	}
	fail(opWrite, unix.ENOSPC)
	want(1, "write: x.img: 1024 bytes at offset 512: no space left on device: the disk is full")
	for range 5 {
		fail(opWrite, unix.ENOSPC)
	}
	want(1, "write")
	fail(opWrite, unix.EIO) // another kind is told at once
	want(2, "input/output error")
	fail(opRead, unix.EIO)
	want(3, "read: x.img")
	now = now.Add(reportInterval)
	fail(opWrite, unix.ENOSPC)
	want(4, "and 5 like it")
	fail(opWrite, unix.ENOSPC)
	r.close()
	want(5, "and 1 like it")
	r.close()
	want(5, "and 1 like it")
	if !errors.Is(&ioError{err: unix.EIO}, unix.EIO) {
		t.Error("an ioError hides its cause")
	}
}
