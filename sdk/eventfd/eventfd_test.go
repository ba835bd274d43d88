package eventfd_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/eventfd"
)

// ends are the kinds of descriptors that front-ends send for kicks: what we wait on, and what they write to.
var ends = map[string]func(t *testing.T) (wait, write int){
	"blocking eventfd":     func(t *testing.T) (int, int) { t.Helper(); return eventfdPair(t, 0) },
	"non-blocking eventfd": func(t *testing.T) (int, int) { t.Helper(); return eventfdPair(t, unix.EFD_NONBLOCK) },
	"pipe": func(t *testing.T) (int, int) {
		t.Helper()
		var p [2]int
		check(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
		return p[0], p[1]
	},
	"socket": func(t *testing.T) (int, int) {
		t.Helper()
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		return p[0], p[1]
	},
}

func eventfdPair(t *testing.T, flags int) (wait, write int) {
	t.Helper()
	fd, err := unix.Eventfd(0, flags|unix.EFD_CLOEXEC)
	check(t, err)
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	check(t, err)
	return fd, dup
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryKickAndEveryWakeEndsAWait(t *testing.T) {
	t.Parallel()
	for name, pair := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wait, write := pair(t)
			flags, err := unix.FcntlInt(uintptr(wait), unix.F_GETFL, 0)
			check(t, err)
			w, err := eventfd.NewWaiter(wait)
			check(t, err)
			returned := expect(t, w)
			for i := range 200 {
				if i%2 == 0 {
					check(t, eventfd.Signal(write))
				} else {
					check(t, w.Wake())
				}
				select {
				case <-returned:
				case <-time.After(30 * time.Second):
					t.Fatalf("round %d: Wait did not return", i)
				}
			}
			after, err := unix.FcntlInt(uintptr(wait), unix.F_GETFL, 0)
			check(t, err)
			if after != flags {
				t.Errorf("flags of the descriptor were %#x and are %#x", flags, after)
			}
		})
	}
}

// expect waits again and again and says so. A Wait may return for nothing, so there may be more words than kicks; never fewer.
func expect(t *testing.T, w *eventfd.Waiter) <-chan struct{} {
	t.Helper()
	returned, stop, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if err := w.Wait(); err != nil {
				t.Error(err)
				return
			}
			select {
			case returned <- struct{}{}:
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		check(t, w.Wake())
		<-done
		check(t, w.Close())
		check(t, w.Close())
		check(t, w.Wake())
	})
	return returned
}

func TestAWaitWithoutAKickBlocks(t *testing.T) {
	t.Parallel()
	for name, pair := range ends {
		wait, write := pair(t)
		w, err := eventfd.NewWaiter(wait)
		check(t, err)
		done := asyncWait(w)
		for range 3 { // a Wait may return once for nothing, but not always
			select {
			case err := <-done:
				t.Errorf("%s: Wait returned for nothing: %v", name, err)
			case <-time.After(20 * time.Millisecond):
			}
		}
		check(t, eventfd.Signal(write))
		check(t, <-done)
	}
}

func asyncWait(w *eventfd.Waiter) <-chan error {
	done := make(chan error, 1)
	go func() { done <- w.Wait() }()
	return done
}

func TestAClosedSenderIsSaid(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"pipe", "socket"} {
		wait, write := ends[name](t)
		w, err := eventfd.NewWaiter(wait)
		check(t, err)
		check(t, unix.Close(write))
		if err := w.Wait(); !errors.Is(err, eventfd.ErrClosed) {
			t.Errorf("%s: Wait = %v", name, err)
		}
	}
}

func TestSignalNeverBlocks(t *testing.T) {
	t.Parallel()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	check(t, err)
	for range 100000 { // far more than the socket holds
		check(t, eventfd.Signal(p[0]))
	}
	check(t, unix.Close(p[1]))
	check(t, eventfd.Signal(p[0]))
	if err := eventfd.Signal(-1); err == nil {
		t.Error("a descriptor that is none was accepted")
	}
	f, err := eventfd.New()
	check(t, err)
	check(t, f.Close())
	if _, err := eventfd.NewWaiter(1 << 20); !errors.Is(err, os.ErrInvalid) && !errors.Is(err, unix.EBADF) {
		t.Errorf("NewWaiter on nothing = %v", err)
	}
}
