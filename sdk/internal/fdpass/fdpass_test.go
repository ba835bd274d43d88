package fdpass_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/internal/fdpass"
)

// These tests count the process's descriptors, so they do not run in parallel.

// openFDs counts the descriptors of the process.
func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// pair returns both halves and, for messages that Sender would not send, the raw launcher end. At the end it checks that
// nothing leaked.
func pair(t *testing.T) (*fdpass.Sender, *fdpass.Receiver, int) {
	t.Helper()
	warmUp(t)
	before := openFDs(t)
	launcher, plugin, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := unix.FcntlInt(launcher.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := fdpass.NewSender(launcher)
	if err != nil {
		t.Fatal(err)
	}
	r, err := fdpass.NewReceiver(plugin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), r.Close(), s.Close(), r.Close(), unix.Close(raw)); err != nil {
			t.Errorf("close: %v", err)
		}
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
	return s, r, raw
}

// warmUp makes the Go runtime open its poller before anything is counted.
func warmUp(t *testing.T) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
}

func memfd(t *testing.T, text string) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return fd
}

func closeAll(t *testing.T, fds ...int) {
	t.Helper()
	for _, fd := range fds {
		if err := unix.Close(fd); err != nil {
			t.Errorf("close %d: %v", fd, err)
		}
	}
}

func header(magic, count uint32, token uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, magic)
	b = binary.LittleEndian.AppendUint32(b, count)
	return binary.LittleEndian.AppendUint64(b, token)
}

func sendRaw(t *testing.T, raw int, data []byte, fds ...int) {
	t.Helper()
	if err := unix.Sendmsg(raw, data, unix.UnixRights(fds...), nil, 0); err != nil {
		t.Fatal(err)
	}
}

func TestTakeReturnsTheDescriptorsOfItsToken(t *testing.T) { //nolint:paralleltest // counts descriptors
	s, r, _ := pair(t)
	a, b := memfd(t, "first"), memfd(t, "second")
	defer closeAll(t, a, b)
	t1, err := s.Send(t.Context(), []int{a})
	if err != nil {
		t.Fatal(err)
	}
	t2, err := s.Send(t.Context(), []int{b, a})
	if err != nil {
		t.Fatal(err)
	}
	got2, err := r.Take(t.Context(), t2, 2)
	if err != nil {
		t.Fatal(err)
	}
	got1, err := r.Take(t.Context(), t1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, append(got1, got2...)...)
	for i, want := range []string{"first", "second", "first"} {
		fd := append(got1, got2...)[i]
		buf := make([]byte, 16)
		n, err := unix.Pread(fd, buf, 0)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("descriptor %d: %q, %v: want %q", i, buf[:n], err, want)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %#x, %v: want close-on-exec", i, flags, err)
		}
	}
}

func TestTakeWaitsForALateMessage(t *testing.T) { //nolint:paralleltest // counts descriptors
	s, r, _ := pair(t)
	fd := memfd(t, "")
	defer closeAll(t, fd)
	type result struct {
		fds []int
		err error
	}
	got := make(chan result)
	go func() {
		fds, err := r.Take(context.WithoutCancel(t.Context()), 1, 1)
		got <- result{fds, err}
	}()
	if _, err := s.Send(t.Context(), []int{fd}); err != nil {
		t.Fatal(err)
	}
	res := <-got
	if res.err != nil {
		t.Fatal(res.err)
	}
	closeAll(t, res.fds...)
}

// rawMessage is a message as it goes over the socket, with fds copies of one descriptor.
type rawMessage struct {
	data []byte
	fds  int
}

func TestTakeFailsClearly(t *testing.T) { //nolint:paralleltest // counts descriptors
	good := rawMessage{header(fdpass.Magic, 1, 7), 1}
	for name, tc := range map[string]struct { //nolint:paralleltest // counts descriptors
		sent  []rawMessage
		token uint64
		count int
		want  error
	}{
		"token never came":           {nil, 7, 1, fdpass.ErrNeverCame},
		"token 0":                    {nil, 0, 1, fdpass.ErrMalformed},
		"request wants more":         {[]rawMessage{good}, 7, 2, fdpass.ErrCount},
		"request wants fewer":        {[]rawMessage{{header(fdpass.Magic, 2, 7), 2}}, 7, 1, fdpass.ErrCount},
		"header says more":           {[]rawMessage{{header(fdpass.Magic, 3, 7), 1}}, 7, 3, fdpass.ErrCount},
		"header says fewer":          {[]rawMessage{{header(fdpass.Magic, 1, 7), 2}}, 7, 1, fdpass.ErrCount},
		"no descriptors at all":      {[]rawMessage{{header(fdpass.Magic, 0, 7), 0}}, 7, 0, fdpass.ErrCount},
		"bad magic":                  {[]rawMessage{{header(fdpass.Magic+1, 1, 7), 1}}, 7, 1, fdpass.ErrMalformed},
		"header too short":           {[]rawMessage{{good.data[:12], 1}}, 7, 1, fdpass.ErrMalformed},
		"header too long":            {[]rawMessage{{append(header(fdpass.Magic, 1, 7), 0), 1}}, 7, 1, fdpass.ErrMalformed},
		"message with token 0":       {[]rawMessage{{header(fdpass.Magic, 1, 0), 1}}, 7, 1, fdpass.ErrMalformed},
		"two messages with the same": {[]rawMessage{good, good}, 7, 1, fdpass.ErrTwice},
	} {
		t.Run(name, func(t *testing.T) {
			_, r, raw := pair(t)
			fd := memfd(t, "")
			defer closeAll(t, fd)
			for _, m := range tc.sent {
				sendRaw(t, raw, m.data, slices.Repeat([]int{fd}, m.fds)...)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			fds, err := r.Take(ctx, tc.token, tc.count)
			if !errors.Is(err, tc.want) || fds != nil {
				t.Fatalf("Take = %v, %v: want %v", fds, err, tc.want)
			}
			// The socket goes on.
			sendRaw(t, raw, header(fdpass.Magic, 1, 8), fd)
			fds, err = r.Take(t.Context(), 8, 1)
			if err != nil {
				t.Fatal(err)
			}
			closeAll(t, fds...)
		})
	}
}

func TestATokenTakenOnceIsUsedUp(t *testing.T) { //nolint:paralleltest // counts descriptors
	_, r, raw := pair(t)
	fd := memfd(t, "")
	defer closeAll(t, fd)
	sendRaw(t, raw, header(fdpass.Magic, 1, 7), fd)
	fds, err := r.Take(t.Context(), 7, 1)
	if err != nil {
		t.Fatal(err)
	}
	closeAll(t, fds...)
	if _, err := r.Take(t.Context(), 7, 1); !errors.Is(err, fdpass.ErrTwice) {
		t.Errorf("second Take: %v: want ErrTwice", err)
	}
	sendRaw(t, raw, header(fdpass.Magic, 1, 7), fd)
	if _, err := r.Take(t.Context(), 7, 1); !errors.Is(err, fdpass.ErrTwice) {
		t.Errorf("Take after a second message: %v: want ErrTwice", err)
	}
}

func TestTooLowALimitOfOpenFilesIsNamed(t *testing.T) { //nolint:paralleltest // changes a limit of the process
	_, r, raw := pair(t)
	fd := memfd(t, "")
	defer closeAll(t, fd)
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	low := lim
	low.Cur = uint64(fd) + 2 //nolint:gosec // G115: a descriptor; fewer than the message carries
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	sendErr := unix.Sendmsg(raw, header(fdpass.Magic, 8, 7), unix.UnixRights(fd, fd, fd, fd, fd, fd, fd, fd), nil, 0)
	fds, err := r.Take(t.Context(), 7, 8)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if sendErr != nil {
		t.Fatal(sendErr)
	}
	if !errors.Is(err, fdpass.ErrTruncated) {
		t.Errorf("Take = %v, %v: want ErrTruncated", fds, err)
	}
}

func TestUntakenMessagesAreBounded(t *testing.T) { //nolint:paralleltest // counts descriptors
	s, r, _ := pair(t)
	fd := memfd(t, "")
	defer closeAll(t, fd)
	before := openFDs(t)
	for range 500 {
		if _, err := s.Send(t.Context(), []int{fd}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Take(t.Context(), 500, 1); !errors.Is(err, fdpass.ErrTooMany) {
		t.Errorf("the 500th: %v: want ErrTooMany", err)
	}
	if n := openFDs(t) - before; n > 64 {
		t.Errorf("%d descriptors are kept: want at most 64", n)
	}
	fds, err := r.Take(t.Context(), 1, 1)
	if err != nil {
		t.Fatalf("the first: %v", err)
	}
	closeAll(t, fds...)
}

func TestOldTokensAreForgottenNotLeaked(t *testing.T) { //nolint:paralleltest // counts descriptors
	s, r, _ := pair(t)
	fd := memfd(t, "")
	defer closeAll(t, fd)
	for i := range uint64(5000) { // the first stays untaken and is dropped when its token is forgotten
		token, err := s.Send(t.Context(), []int{fd})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue
		}
		fds, err := r.Take(t.Context(), token, 1)
		if err != nil {
			t.Fatal(err)
		}
		closeAll(t, fds...)
	}
}

func TestDoneTellsThatTheLauncherIsGone(t *testing.T) { //nolint:paralleltest // counts descriptors
	launcher, plugin, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	r, err := fdpass.NewReceiver(plugin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	fd := memfd(t, "")
	defer closeAll(t, fd)
	sendRaw(t, int(launcher.Fd()), header(fdpass.Magic, 1, 7), fd)
	select {
	case <-r.Done():
		t.Fatal("done before the launcher's end is closed")
	default:
	}
	if err := launcher.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Done():
	case <-time.After(time.Minute):
		t.Fatal("not done")
	}
	fds, err := r.Take(t.Context(), 7, 1) // what came before the end is not lost
	if err != nil {
		t.Fatal(err)
	}
	closeAll(t, fds...)
	if _, err := r.Take(t.Context(), 8, 1); !errors.Is(err, fdpass.ErrClosed) {
		t.Errorf("Take: %v: want ErrClosed", err)
	}
}

func TestSendFailsClearly(t *testing.T) { //nolint:paralleltest // counts descriptors
	launcher, plugin, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	s, err := fdpass.NewSender(launcher)
	if err != nil {
		t.Fatal(err)
	}
	fd := memfd(t, "")
	defer closeAll(t, fd)
	for _, n := range []int{0, fdpass.MaxFDs + 1} {
		if _, err := s.Send(t.Context(), make([]int, n)); err == nil {
			t.Errorf("%d descriptors: no error", n)
		}
	}
	// A plugin that does not read: the socket fills.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for err == nil {
		_, err = s.Send(ctx, []int{fd})
	}
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, unix.ETOOMANYREFS) {
		t.Errorf("full socket: %v: want DeadlineExceeded", err)
	}
	cancelled, cancel2 := context.WithCancel(t.Context())
	cancel2()
	if _, err := s.Send(cancelled, []int{fd}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := plugin.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(t.Context(), []int{fd}); !errors.Is(err, fdpass.ErrClosed) {
		t.Errorf("closed by the plugin: %v: want ErrClosed", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(t.Context(), []int{fd}); !errors.Is(err, fdpass.ErrClosed) {
		t.Errorf("closed: %v: want ErrClosed", err)
	}
}

func TestOnlyASeqpacketSocketIsTaken(t *testing.T) { //nolint:paralleltest // counts descriptors
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, fds[1])
	if _, err := fdpass.NewReceiver(os.NewFile(uintptr(fds[0]), "stream")); err == nil {
		t.Error("a stream socket was taken")
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fdpass.NewReceiver(f); err == nil {
		t.Error("/dev/null was taken")
	}
}
