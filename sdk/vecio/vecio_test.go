package vecio_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/vecio"
)

func file(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestBytesComeBackThroughOtherBuffers(t *testing.T) {
	t.Parallel()
	f := file(t)
	want := bytes.Repeat([]byte("virtplug"), 3000) // more vectors than one call takes
	var out, in [][]byte
	for i := 0; i < len(want); i += 7 {
		out = append(out, want[i:min(i+7, len(want))])
	}
	got := make([]byte, len(want))
	for i := 0; i < len(got); i += 11 {
		in = append(in, got[i:min(i+11, len(got))])
	}
	var v vecio.IO
	if n, err := v.WriteAt(int(f.Fd()), out, 100); n != len(want) || err != nil {
		t.Fatalf("WriteAt = %d, %v", n, err)
	}
	if n, err := v.ReadAt(int(f.Fd()), in, 100); n != len(want) || err != nil || !bytes.Equal(got, want) {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	if n, err := v.ReadAt(int(f.Fd()), in, 101); n != len(want)-1 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt over the end = %d, %v: want %d and EOF", n, err, len(want)-1)
	}
}

func TestAFailedWriteSaysHowMuchWasWritten(t *testing.T) {
	t.Parallel()
	var v vecio.IO
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no /dev/full: ", err)
	}
	defer full.Close() //nolint:errcheck // nothing was written
	if n, err := v.WriteAt(int(full.Fd()), [][]byte{make([]byte, 10)}, 0); n != 0 || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("WriteAt = %d, %v: want ENOSPC", n, err)
	}
}

func TestReadNowaitNeverGivesLessWithoutSaying(t *testing.T) {
	t.Parallel()
	f := file(t)
	if _, err := f.Write(make([]byte, 8192)); err != nil {
		t.Fatal(err)
	}
	var v vecio.IO
	buf := make([]byte, 4096)
	n, err := v.ReadNowait(int(f.Fd()), [][]byte{buf}, 0)
	if err == nil && n != len(buf) || err != nil && !errors.Is(err, vecio.ErrWouldBlock) {
		t.Errorf("ReadNowait = %d, %v", n, err)
	}
	if n, err := v.ReadNowait(int(f.Fd()), [][]byte{buf}, 6000); n == len(buf) || !errors.Is(err, vecio.ErrWouldBlock) {
		t.Errorf("ReadNowait over the end = %d, %v", n, err)
	}
}

func TestDatagramsGoThroughSeveralBuffersOneACall(t *testing.T) {
	t.Parallel()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0]) //nolint:errcheck // closed below; a test that failed
	var v vecio.IO
	in := [][]byte{make([]byte, 3), {}, make([]byte, 5)}
	if _, err := v.Read(p[0], in); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("Read of nothing: %v", err)
	}
	if n, err := v.Write(p[1], [][]byte{[]byte("01"), []byte("234567")}, 3); n != 5 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if n, err := v.Read(p[0], in); n != 5 || err != nil || string(in[0]) != "345" || string(in[2][:2]) != "67" {
		t.Fatalf("Read = %d, %v, %q", n, err, in)
	}
	if err := unix.Close(p[1]); err != nil {
		t.Fatal(err)
	}
	if n, err := v.Read(p[0], in); n != 0 || err != nil {
		t.Errorf("Read at the end = %d, %v", n, err)
	}
	if _, err := v.Write(p[0], in, 0); !errors.Is(err, unix.EPIPE) {
		t.Errorf("Write to nobody: %v", err)
	}
}

func TestNothingIsAllocated(t *testing.T) { //nolint:paralleltest // it counts the process's allocations
	f := file(t)
	bufs := [][]byte{make([]byte, 512), make([]byte, 4096)}
	fd := int(f.Fd())
	var v vecio.IO
	if n := testing.AllocsPerRun(100, func() {
		if _, err := v.WriteAt(fd, bufs, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := v.ReadAt(fd, bufs, 0); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
