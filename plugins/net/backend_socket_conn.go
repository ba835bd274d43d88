package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/vecio"
)

// socketBuffer is what the kernel is asked to keep for a peer that reads in bursts, in bytes. Arbitrary; it gives what its limits
// (net.core.wmem_max, rmem_max) allow.
const socketBuffer = 1 << 20

// errHungUp is a peer that has closed the connection.
var errHungUp = errors.New("the peer has closed the connection")

// peerError says of an error that it is the peer's doing.
func peerError(err error) error { return fmt.Errorf("the peer has gone: %w", err) }

// wire puts frames on a connection's descriptor, which is non-blocking. send by one goroutine, receive and buffered by another one.
// An error means that the connection is over.
type wire interface {
	// send takes frames as port.Send does. Dropped ones are counted.
	send(ctx context.Context, fd int, frames []frame) (dropped int, err error)
	// receive is as port.Receive. Frames that came before an error are returned first.
	receive(fd int, frames []frame) (int, error)
	// buffered tells whether receive has something although nothing is in the socket.
	buffered() bool
	// unfinished tells whether the peer has only the beginning of a frame; finish goes on with it as far as there is room. Any goroutine;
	// they wait for nobody.
	unfinished() bool
	finish(fd int) error
}

// conn is one peer for the time that it is connected. It is counted who uses it; the last one closes it.
type conn struct {
	fd   int
	wire wire
	name string // of the peer, for people

	users atomic.Int32 // 0: closed
	over  *waiter      // is woken when it has failed

	mu  sync.Mutex
	err error // why it has failed
}

// newConn takes over fd, with one user.
func newConn(fd int, w wire, name string) (*conn, error) {
	over, err := newWaiter()
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	c := &conn{fd: fd, wire: w, name: name, over: over}
	c.users.Store(1)
	return c, nil
}

// retain makes the caller a user; false: it is closed.
func (c *conn) retain() bool {
	for {
		n := c.users.Load()
		if n == 0 {
			return false
		}
		if c.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (c *conn) release() {
	if c.users.Add(-1) == 0 {
		_ = unix.Close(c.fd) // nothing of ours is left in it
		_ = c.over.close()   // an eventfd's cannot fail
	}
}

// fail says that it is over; the first error counts. The caller is a user.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.over.wake()
}

// cause is why it has failed, nil if it has not.
func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// hungUp tells whether the peer of a stream is gone.
func (c *conn) hungUp() bool {
	fds := [1]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLRDHUP}} //nolint:gosec // G115: a descriptor
	_, err := unix.Poll(fds[:], 0)
	return err == nil && fds[0].Revents != 0
}

// takeOver makes a descriptor of our own of c, which it closes: the runtime's poller is to stay out of the frames' way.
func takeOver(c io.Closer) (int, error) {
	defer c.Close() //nolint:errcheck // ours stays open
	sc, ok := c.(syscall.Conn)
	if !ok {
		return -1, errors.New("BUG: a connection without a descriptor")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var e error
	err = raw.Control(func(theirs uintptr) { fd, e = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, os.NewSyscallError("fcntl", e)); err != nil {
		return -1, err
	}
	return fd, nil
}

// enlarge asks for room in both directions; less does too.
func enlarge(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
}

// pushing is the part of sending that all kinds have: vectors, and the patience with a peer that does not read.
type pushing struct {
	out vecio.IO
	vec [][]byte
	// full: the peer did not read for as long as our patience is, and has not made room since.
	full bool
	// until is when the patience of the present call ends; zero: it was not needed yet.
	until time.Time
}

// roomSlice is how often somebody who waits for room looks whether his context has ended: arbitrary, some ten times in sendPatience.
const roomSlice = 10 * time.Millisecond

// room waits until fd takes more, as long as the patience of this call lasts.
func (s *pushing) room(ctx context.Context, fd int) bool {
	if s.full {
		return false
	}
	now := time.Now()
	if s.until.IsZero() {
		s.until = now.Add(sendPatience)
	}
	for ; ctx.Err() == nil && now.Before(s.until); now = time.Now() {
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}} //nolint:gosec // G115: a descriptor
		n, err := unix.Poll(fds[:], int(min(roomSlice, s.until.Sub(now)).Milliseconds())+1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return true // an error shows in what is called next
		}
	}
	s.full = true
	return false
}

// markDropped marks frames, and returns how many.
func markDropped(frames []frame) int {
	for i := range frames {
		frames[i].dropped = true
	}
	return len(frames)
}

// fits tells whether n bytes can be a frame.
func fits(n int) bool { return n >= minFrame && n <= maxSocketFrame }

// size is how many bytes bufs have.
func size(bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// scatter copies p to bufs, which have the room.
func scatter(bufs [][]byte, p []byte) {
	for _, b := range bufs {
		p = p[copy(b, p):]
	}
}

// gather copies bufs, without their first skip bytes, to dst as far as it has room, and returns how many bytes.
func gather(dst []byte, bufs [][]byte, skip int) int {
	n := 0
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		n += copy(dst[n:], b[skip:])
		skip = 0
	}
	return n
}
