// Package eventfd waits for kicks and sends calls over descriptors that somebody else made: eventfds as a rule, pipes or
// sockets from some front-ends (User-Mode Linux). All carry 8-byte counts.
//
// A Waiter blocks its thread in the kernel (a blocking read, or ppoll for descriptors that are non-blocking): measured, that
// costs half of what Go's netpoller costs on a locked thread. The flags of a descriptor are never changed: they belong to an
// open file description that the front-end uses too. QEMU, for one, reads its kick descriptors when it stops a device and
// would hang for ever if one had been made blocking (docs/adr/0003).
package eventfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// New makes an eventfd, close-on-exec; blocking reads.
func New() (*os.File, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return os.NewFile(uintptr(fd), "eventfd"), nil
}

// Signal writes one count to fd and never blocks. A full or closed other side is no error: then a notification is pending
// already, or nobody listens.
func Signal(fd int) error {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	for {
		_, err := unix.Write(fd, one[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
			return nil
		}
		return fmt.Errorf("signal: descriptor %d: %w", fd, err)
	}
}

// ErrClosed is returned by Wait once the other side of a pipe or socket is closed.
var ErrClosed = errors.New("the sending side is closed")

// Waiter waits for counts on one descriptor. Wait: one goroutine at a time; Wake: any.
type Waiter struct {
	fd, wake int         // wake is our own eventfd, or -1 if fd itself can be written (a blocking eventfd)
	woken    atomic.Bool // only if wake < 0
	mu       sync.Mutex  // guards closing against Wake
	closed   bool
}

// NewWaiter takes over fd: Close closes it.
func NewWaiter(fd int) (*Waiter, error) {
	w := &Waiter{fd: fd, wake: -1}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("wait for kicks: descriptor %d: %w", fd, os.NewSyscallError("fcntl", err))
	}
	if flags&unix.O_NONBLOCK != 0 || !isEventfd(fd) {
		if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return nil, fmt.Errorf("wait for kicks: %w", os.NewSyscallError("eventfd", err))
		}
	}
	return w, nil
}

func isEventfd(fd int) bool {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && name == "anon_inode:[eventfd]"
}

// Wait blocks until a count arrives or Wake was called since the last Wait. Spurious returns are possible.
// ErrClosed: nothing will come any more.
func (w *Waiter) Wait() error {
	if w.wake >= 0 {
		return w.poll()
	}
	if w.woken.Swap(false) {
		return nil // the count that Wake wrote makes a later Wait return once for nothing
	}
	err := drain(w.fd)
	w.woken.Store(false) // if Wake came just now, its count is still there
	return err
}

// poll waits for either descriptor and takes what is there.
func (w *Waiter) poll() error {
	fds := [2]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.wake), Events: unix.POLLIN}} //nolint:gosec // G115: descriptors
	for {
		_, err := unix.Poll(fds[:], -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("poll", err)
		}
		break
	}
	if fds[1].Revents != 0 {
		if err := drain(w.wake); err != nil {
			return err
		}
	}
	if fds[0].Revents != 0 {
		return drain(w.fd)
	}
	return nil
}

// drain takes what is there. An eventfd gives its whole count in one read; a socket or pipe may hold more than a buffer: the
// next Wait takes the rest.
func drain(fd int) error {
	var buf [64]byte
	for {
		n, err := unix.Read(fd, buf[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return os.NewSyscallError("read", err)
		case n == 0:
			return ErrClosed
		}
		return nil
	}
}

// Wake makes a Wait under way, or else the next one, return.
func (w *Waiter) Wake() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
		return nil
	case w.wake >= 0:
		return Signal(w.wake)
	}
	w.woken.Store(true)
	return Signal(w.fd)
}

// Close closes the descriptors. Nobody may be waiting. Idempotent.
func (w *Waiter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	err := unix.Close(w.fd)
	if w.wake >= 0 {
		err = errors.Join(err, unix.Close(w.wake))
	}
	return os.NewSyscallError("close", err)
}
