package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
)

// childEnv makes the test binary be a helper process instead: its value is which, its arguments are the helper's.
const childEnv = "VIRTPLUG_BLOCK_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "locker":
		os.Exit(locker(os.Args[1], os.Args[2] == "ro"))
	}
	fmt.Fprintln(os.Stderr, "unknown helper")
	os.Exit(2)
}

// child is a helper process.
func child(t *testing.T, which string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...) //nolint:gosec // G204: this test binary
	cmd.Env = append(os.Environ(), childEnv+"="+which)
	return cmd
}

// locker is a process that has a disk until its input ends.
func locker(path string, readOnly bool) int {
	cfg := defaultSettings()
	cfg.ReadOnly = readOnly
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags, 0) //nolint:gosec // G304, G703: the test's own file
	if err == nil {
		cfg.Path = sdk.File{Path: path, File: f}
		_, err = newBlock("other", &fakeHost{}, func(error) {}, &cfg)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stdout, err)
		return 1
	}
	_, _ = fmt.Fprintln(os.Stdout, "ready")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return 0
}

// try opens the image anew, as another device would, and tries to make a disk of it.
func try(t *testing.T, path string, readOnly bool) error {
	t.Helper()
	cfg := defaultSettings()
	cfg.ReadOnly = readOnly
	open(t, path, &cfg)
	b, err := newBlock("vdb", &fakeHost{}, func(error) {}, &cfg)
	if err != nil {
		return errors.Join(err, cfg.Path.Close())
	}
	return b.Close()
}

// wantUse checks whether others may use the image.
func wantUse(t *testing.T, path, what string, reader, writer bool) {
	t.Helper()
	for _, c := range []struct {
		readOnly, ok bool
	}{{true, reader}, {false, writer}} {
		err := try(t, path, c.readOnly)
		// Another test may be starting a process, which has our descriptors until it executes its program.
		for begin := time.Now(); c.ok && err != nil && time.Since(begin) < 30*time.Second; {
			runtime.Gosched()
			err = try(t, path, c.readOnly)
		}
		if (err == nil) != c.ok {
			t.Errorf("%s, another, read-only %v: %v", what, c.readOnly, err)
		}
		if err != nil && (!errors.Is(err, errImageInUse) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: %v: does not say what is wrong", what, err)
		}
	}
}

func TestImageIsLocked(t *testing.T) {
	t.Parallel()
	path := imageFile(t, 1<<20)
	wantUse(t, path, "nobody", true, true)
	b, _ := newDisk(t, path, defaultSettings())
	wantUse(t, path, "a writer", false, false)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	ro := defaultSettings()
	ro.ReadOnly = true
	b, _ = newDisk(t, path, ro)
	wantUse(t, path, "a reader", true, false)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	off := defaultSettings()
	off.Locking = "off"
	newDisk(t, path, off)
	wantUse(t, path, "one that does not lock", true, true)
}

func TestImageIsLockedBetweenProcesses(t *testing.T) {
	t.Parallel()
	for _, readOnly := range []bool{false, true} {
		path := imageFile(t, 1<<20)
		cmd := child(t, "locker", path, map[bool]string{true: "ro", false: "rw"}[readOnly])
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Fatalf("the other process says %q, %v", line, err)
		}
		wantUse(t, path, "another process", readOnly, false)
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		wantUse(t, path, "a process that has ended", true, true)
	}
}

// TestLockStaysWithTheDescription: the launcher keeps the file open and gives the same description to the next instance.
func TestLockStaysWithTheDescription(t *testing.T) {
	t.Parallel()
	path := imageFile(t, 1<<20)
	cfg := defaultSettings()
	open(t, path, &cfg) // the launcher's descriptor, kept
	instance := func() *block {
		fd, err := unix.FcntlInt(cfg.Path.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		own := cfg
		own.Path.File = os.NewFile(uintptr(fd), path)
		b, err := newBlock("vda", &fakeHost{}, func(error) {}, &own)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := instance()
	second := instance() // a swap: both at once
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	wantUse(t, path, "the second instance", false, false)
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	wantUse(t, path, "between two instances", false, false)
	third := instance()
	if err := errors.Join(third.Close(), cfg.Path.Close()); err != nil {
		t.Fatal(err)
	}
	wantUse(t, path, "after the device", true, true)
}

// TestLocksWorkWithQEMU sets locks as QEMU's block/file-posix.c does for a disk.
func TestLocksWorkWithQEMU(t *testing.T) {
	t.Parallel()
	for _, writes := range []bool{false, true} {
		path := imageFile(t, 1<<20)
		f := openFile(t, path, os.O_RDWR)
		uses := []int64{100}
		if writes {
			uses = append(uses, 101)
		}
		for _, b := range append(uses, 201, 203) {
			if err := setLock(int(f.Fd()), unix.F_RDLCK, b, 1); err != nil {
				t.Fatal(err)
			}
		}
		wantUse(t, path, fmt.Sprintf("QEMU that writes: %v", writes), !writes, false)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
