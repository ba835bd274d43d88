package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// backend is the host's end of one port. Run, Read and Write are each called by one goroutine at a time, all three at
// once; each returns promptly when its ctx ends and can then be called again.
type backend interface {
	// Run watches the host's end while the device runs. opened is told whether somebody is there: at once, then at each change.
	Run(ctx context.Context, opened func(bool))
	// Read waits for input and returns at least one byte, ctx's error, or io.EOF if there will never be input again.
	// What it has not returned is still where it came from.
	Read(ctx context.Context, p []byte) (int, error)
	// Write takes all of p, or returns how many bytes it took and why not more: ctx's error, or that of the host's end.
	Write(ctx context.Context, p []byte) (int, error)
	// Counters passes on what the backend counted.
	Counters(add func(name string, value uint64))
	// Close releases the host's end. Nothing else is called after it.
	Close() error
}

// stream is a descriptor that the runtime's poller waits for: *os.File (pollable), *net.UnixConn.
type stream interface {
	io.ReadWriter
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// interrupt makes what waits under the deadline that set sets give up when ctx ends. release clears the deadline.
func interrupt(ctx context.Context, set func(time.Time) error) (release func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = set(time.Unix(1, 0)) // fails only on a closed descriptor, where nothing waits
	})
	return func() {
		if !stop() {
			<-done
			_ = set(time.Time{})
		}
	}
}

// readStream is s.Read that ends with ctx.
func readStream(ctx context.Context, s stream, p []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	defer interrupt(ctx, s.SetReadDeadline)()
	n, err := s.Read(p)
	if n > 0 {
		return n, nil
	}
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = ctx.Err()
	}
	return 0, err
}

// writeStream is s.Write that ends with ctx; partial writes are continued.
func writeStream(ctx context.Context, s stream, p []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	defer interrupt(ctx, s.SetWriteDeadline)()
	n, err := s.Write(p)
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = ctx.Err()
	}
	return n, err
}

// pollable replaces f by a descriptor of the same open file that can be waited for; f is closed.
func pollable(f *os.File) (*os.File, error) {
	name := f.Name()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(old uintptr) {
		fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("fcntl", dupErr)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fd))
	}
	g := os.NewFile(uintptr(fd), name)
	if err := g.SetReadDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("%s cannot be waited for: want a socket, FIFO or terminal: %w", name, err), g.Close())
	}
	return g, f.Close()
}

// hangup waits until the peer of the socket or terminal behind c has gone entirely, or ctx ends. It reads nothing.
func hangup(ctx context.Context, c interface {
	Control(f func(fd uintptr)) error
}) error {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil {
		return errors.Join(os.NewSyscallError("fcntl", err), unix.Close(ep))
	}
	f := os.NewFile(uintptr(ep), "epoll")
	defer func() { _ = f.Close() }()
	var ctlErr error
	if err := c.Control(func(fd uintptr) {
		// No events: hang-up and error are always reported.
		ctlErr = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{})
	}); err != nil {
		return err
	}
	if ctlErr != nil {
		return os.NewSyscallError("epoll_ctl", ctlErr)
	}
	defer interrupt(ctx, f.SetReadDeadline)()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var waitErr error
	err = raw.Read(func(fd uintptr) bool {
		var ev [1]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), ev[:], 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			waitErr = os.NewSyscallError("epoll_wait", err)
			return true
		}
		return n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, waitErr)
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
