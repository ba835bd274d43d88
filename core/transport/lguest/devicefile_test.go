package lguest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// fakeKernel is /dev/lguest with the rules of drivers/lguest/lguest_user.c. Its guest is the channel guest, which gives what
// each read answers.
type fakeKernel struct {
	tb    testing.TB
	guest chan answer
	host  *fakeHost

	mu     sync.Mutex
	owner  int // the thread that initialized it
	inits  int
	dead   string
	closed bool
}

// answer is what makes the guest stop: an address it notified, or an error.
type answer struct {
	address uint64
	err     error
	// reason: the guest died.
	reason string
}

func newKernel(tb testing.TB) *fakeKernel {
	tb.Helper()
	return &fakeKernel{tb: tb, guest: make(chan answer), host: newHost()}
}

func (k *fakeKernel) Pwrite(p []byte, cpu int64) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, err := DecodeRequest(p, wordSize)
	switch {
	case k.closed:
		k.tb.Error("written after it was closed")
		return 0, unix.EBADF
	case cpu != 0 || err != nil:
		return 0, unix.EINVAL
	case r.Op == OpInitialize && k.inits > 0:
		return 0, unix.EBUSY
	case r.Op != OpInitialize && k.inits == 0:
		return 0, unix.EINVAL
	case k.dead != "":
		return 0, unix.ENOENT
	}
	if err := r.Do(k.host); err != nil {
		return 0, unix.EINVAL
	}
	if r.Op == OpInitialize {
		k.inits++
		k.owner = unix.Gettid()
		return 3 * wordSize, nil // as it was, though four words were written
	}
	return 0, nil
}

func (k *fakeKernel) Pread(p []byte, cpu int64) (int, error) {
	k.mu.Lock()
	owner, dead, inits := k.owner, k.dead, k.inits
	k.mu.Unlock()
	switch {
	case inits == 0 || cpu != 0:
		return 0, unix.EINVAL
	case unix.Gettid() != owner:
		return 0, unix.EPERM
	case dead != "":
		return copy(p, dead+"\x00"), nil
	}
	a := <-k.guest
	if a.reason != "" {
		k.mu.Lock()
		k.dead = a.reason
		k.mu.Unlock()
		return 0, unix.ENOENT
	}
	if a.err != nil {
		return 0, a.err
	}
	return copy(p, words(wordSize, a.address)), nil
}

func (k *fakeKernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	return nil
}

// The whole of it: a guest behind the file probes a device, kicks it and gets its interrupt.
func TestABusBehindADeviceFile(t *testing.T) {
	t.Parallel()
	k := newKernel(t)
	file := NewDeviceFile(k)
	d := newFake(t, "vda", virtio.IDBlock, f9, nil, 8)
	r := newRig(t, 4, func(*fakeHost) Requests { return file }, d)
	sameCalls(t, "kernel", k.host.took(), "initialize 0x1000 0x7 0x2000")
	over := make(chan error, 1)
	go func() {
		over <- file.Run(t.Context(), func(a guestmem.GPA) { r.bus.Notify(t.Context(), a) })
	}()
	ring := r.ringAt(0)
	notify := func(a guestmem.GPA) {
		if !k.host.kicked(a) {
			k.guest <- answer{address: uint64(a)}
			k.guest <- answer{err: unix.EINTR} // taken only when the address was handled
		}
	}
	r.page[offStatus] = 0
	notify(r.at)
	r.accept(f9)
	r.page[offStatus] = byte(driver)
	notify(r.at)
	if !d.running(0) || d.accepted != f9 {
		t.Fatal("not started")
	}
	count(t, d.queues[0].kick, time.Minute)
	notify(ring)
	if n := count(t, d.queues[0].kick, time.Minute); n != 1 {
		t.Errorf("%d kicks, want 1", n)
	}
	if _, err := d.queues[0].call.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	select {
	case irq := <-k.host.irqs:
		if irq != 1 {
			t.Errorf("interrupt %d", irq)
		}
	case <-time.After(time.Minute):
		t.Error("no interrupt")
	}
	k.guest <- answer{reason: "bad stack page 0x1234"}
	if err := <-over; !errors.Is(err, ErrDead) || err.Error() != "guest died: bad stack page 0x1234" {
		t.Errorf("Run = %v", err)
	}
	if err := file.IRQ(1); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "the guest is dead") {
		t.Errorf("IRQ for a dead guest: %v", err)
	}
	if err := r.bus.Release(t.Context()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
	for what, err := range map[string]error{
		"IRQ": file.IRQ(1), "Initialize": file.Initialize(1, 2, 3), "Run": file.Run(t.Context(), nil),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s after Close = %v", what, err)
		}
	}
}

func TestEndsOfAGuestBehindADeviceFile(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		a    answer
		is   error
		want string
	}{
		{"reboot", answer{err: unix.ERESTART}, ErrReboot, ""},
		{"death", answer{reason: strings.Repeat("long reason ", 200)}, ErrDead, "long reason long reason"},
		{"another fault", answer{err: unix.EFAULT}, unix.EFAULT, "run guest: bad address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := newKernel(t)
			file := NewDeviceFile(k)
			t.Cleanup(func() { _ = file.Close() })
			if err := file.Run(t.Context(), nil); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "not initialized") {
				t.Errorf("Run before Initialize = %v", err)
			}
			if err := file.EventFD(0x5000, 3); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "LHREQ_EVENTFD: invalid argument: not initialized") {
				t.Errorf("EventFD before Initialize = %v", err)
			}
			if err := file.IRQ(3); !errors.Is(err, unix.EINVAL) {
				t.Errorf("IRQ before Initialize = %v", err)
			}
			if err := file.Initialize(1, 2, 3); err != nil {
				t.Fatal(err)
			}
			if err := file.Initialize(1, 2, 3); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "has a guest already") {
				t.Errorf("Initialize twice = %v", err)
			}
			if err := file.EventFD(0, 3); !errors.Is(err, ErrRequest) {
				t.Errorf("EventFD of address 0 = %v", err)
			}
			go func() { k.guest <- c.a }()
			if err := file.Run(t.Context(), nil); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run = %v", err)
			}
		})
	}
}

func TestRunLooksAtItsContext(t *testing.T) {
	t.Parallel()
	k := newKernel(t)
	file := NewDeviceFile(k)
	t.Cleanup(func() { _ = file.Close() })
	if err := file.Initialize(1, 2, 3); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { k.guest <- answer{address: 0x1234} }()
	var got guestmem.GPA
	err := file.Run(ctx, func(a guestmem.GPA) { got = a; cancel() })
	if !errors.Is(err, context.Canceled) || got != 0x1234 {
		t.Errorf("Run = %v, notified %v", err, got)
	}
}

// What is written to a real descriptor are the words, at offset 0; and a read that is short is not repeated at another offset.
func TestARealDescriptor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lguest")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := OpenDeviceFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	for _, c := range []struct {
		do   func() error
		want []byte
	}{
		{func() error { return file.Initialize(0x4000, 5, 6) }, words(wordSize, 0, 0x4000, 5, 6)},
		{func() error { return file.IRQ(9) }, words(wordSize, 2, 9, 5, 6)},
		{func() error { return file.EventFD(0x5000, 3) }, words(wordSize, 4, 0x5000, 3, 6)},
	} {
		if err := c.do(); err != nil {
			t.Error(err)
		}
		got, err := os.ReadFile(path) //nolint:gosec // G304: the test's own
		if err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("file has %x, %v: want %x", got, err, c.want)
		}
	}
	var seen []guestmem.GPA
	ctx, cancel := context.WithCancel(t.Context())
	err = file.Run(ctx, func(a guestmem.GPA) {
		if seen = append(seen, a); len(seen) == 2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || len(seen) != 2 || seen[0] != 4 || seen[1] != 4 {
		t.Errorf("Run = %v, notified %v", err, seen)
	}
	if err := os.Truncate(path, 3); err != nil {
		t.Fatal(err)
	}
	if err := file.Run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "3 bytes read") {
		t.Errorf("a short read: %v", err)
	}
}

func TestAKernelWithoutLguest(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lguest")
	if _, err := OpenDeviceFile(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "removed in Linux 4.14") || !strings.Contains(err.Error(), "kvm machine") {
		t.Errorf("OpenDeviceFile = %v", err)
	}
	if _, err := OpenDeviceFile(t.TempDir()); err == nil {
		t.Error("a directory was taken")
	}
}
