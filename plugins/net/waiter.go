package main

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// waiter is what a port waits with: a blocking ppoll, for the caller's thread is the queue's own (see package eventfd). wait is
// called by one goroutine at a time, the others by any.
type waiter struct {
	fds [2]unix.PollFd

	//nolint:containedctx // to see whether forget belongs to the next call's context: nothing is allocated as long as it stays
	ctx    context.Context
	forget func() bool

	mu     sync.Mutex
	wakeFD int // an eventfd; -1: closed
}

func newWaiter() (*waiter, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &waiter{wakeFD: fd, fds: [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}}, nil //nolint:gosec // G115: a descriptor
}

// wait returns when fd (-1: none) has one of events, when wake was called since the last wait, after timeout milliseconds (-1: never),
// or with ctx's error. got are fd's events.
func (w *waiter) wait(ctx context.Context, fd int, events int16, timeout int) (got int16, err error) {
	if ctx != w.ctx {
		if w.forget != nil {
			w.forget()
		}
		w.ctx, w.forget = ctx, context.AfterFunc(ctx, w.wake)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	w.fds[1] = unix.PollFd{Fd: int32(fd), Events: events} //nolint:gosec // G115: a descriptor; the kernel leaves out those below 0
	_, err = unix.Poll(w.fds[:], timeout)
	switch {
	case errors.Is(err, unix.EINTR):
		w.fds[0].Revents, w.fds[1].Revents = 0, 0
	case err != nil:
		return 0, os.NewSyscallError("poll", err)
	}
	if w.fds[0].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(int(w.fds[0].Fd), count[:]) // there is nothing to do about an error: the next wait returns too
	}
	return w.fds[1].Revents, ctx.Err()
}

// wake makes a wait under way, or else the next one, return.
func (w *waiter) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wakeFD >= 0 {
		_, _ = unix.Write(w.wakeFD, one[:]) // fails if the count is full: then a wake is pending
	}
}

// close releases it. Nobody may be waiting. Idempotent.
func (w *waiter) close() error {
	w.mu.Lock()
	fd := w.wakeFD
	w.wakeFD = -1
	w.mu.Unlock()
	if fd < 0 {
		return nil
	}
	if w.forget != nil {
		w.forget()
	}
	return os.NewSyscallError("close", unix.Close(fd))
}
