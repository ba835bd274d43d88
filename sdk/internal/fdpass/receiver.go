package fdpass

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// TakeTimeout is how long Take waits if its context has no deadline of its own.
	TakeTimeout = 5 * time.Second

	// maxParked bounds the messages that wait to be taken. The launcher has one or two on the way.
	maxParked = 64
	// maxRemembered bounds the tokens that are remembered as used, so that a second use is noticed.
	maxRemembered = 4096
)

// Receiver is the plugin's end. It reads messages as they come and keeps them until taken. Safe for concurrent use.
type Receiver struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	done chan struct{} // closed when the launcher's end is closed, or Close was called
	read sync.WaitGroup

	mu      sync.Mutex
	tokens  map[uint64]*message
	order   []uint64 // the keys of tokens, oldest first
	parked  int
	bad     error         // a malformed message came and was not reported yet
	arrived chan struct{} // closed and replaced when something came
	closed  bool
	buf     [HeaderSize + 1]byte
	oob     []byte
}

// message is what is known of a token.
type message struct {
	fds   []int // to be taken, while err is nil and taken is false
	err   error
	taken bool
}

// NewReceiver takes over f, the inherited end, and begins to read.
func NewReceiver(f *os.File) (*Receiver, error) {
	c, err := conn(f)
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("descriptor socket: %w", err), c.Close())
	}
	r := &Receiver{
		conn: c, raw: raw, done: make(chan struct{}), tokens: make(map[uint64]*message), arrived: make(chan struct{}),
		oob: make([]byte, unix.CmsgSpace(4*MaxFDs)),
	}
	r.read.Go(func() {
		defer close(r.done)
		_ = raw.Read(func(fd uintptr) bool { return !r.drain(fd) })
		r.wake()
	})
	return r, nil
}

// Done is closed when the launcher's end is closed, which mostly means that the launcher died, or after Close.
func (r *Receiver) Done() <-chan struct{} { return r.done }

// Take returns the count descriptors of token's message; they are the caller's and close-on-exec. It waits for the message
// until ctx ends, at most TakeTimeout. Errors: the sentinels of this package.
func (r *Receiver) Take(ctx context.Context, token uint64, count int) ([]int, error) {
	ctx, cancel := context.WithTimeout(ctx, TakeTimeout)
	defer cancel()
	if token == 0 {
		return nil, fmt.Errorf("descriptors of token 0: %w: tokens begin at 1", ErrMalformed)
	}
	for {
		// What the launcher sent before its RPC is in the socket: read it now, so that the answer does not depend on
		// how far the reading goroutine is.
		_ = r.raw.Control(func(fd uintptr) { r.drain(fd) }) // an error means closed: lookup tells
		fds, arrived, err := r.lookup(token, count)
		if err != nil {
			return nil, fmt.Errorf("descriptors of token %d: %w", token, err)
		}
		if fds != nil {
			return fds, nil
		}
		select {
		case <-arrived:
		case <-r.done:
			fds, _, err := r.lookup(token, count)
			if fds == nil {
				err = fmt.Errorf("descriptors of token %d: %w", token, cmp.Or(err, ErrClosed))
			}
			return fds, err
		case <-ctx.Done():
			return nil, fmt.Errorf("descriptors of token %d: %w: %w", token, ErrNeverCame, ctx.Err())
		}
	}
}

// lookup returns the descriptors, or what is wrong, or (neither) a channel that is closed when more has arrived.
func (r *Receiver) lookup(token uint64, count int) ([]int, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.tokens[token]
	switch {
	case m == nil && r.closed:
		return nil, nil, ErrClosed
	case m == nil && r.bad != nil:
		err := r.bad
		r.bad = nil
		return nil, nil, err
	case m == nil:
		return nil, r.arrived, nil
	case m.err != nil:
		return nil, nil, m.err
	case m.taken:
		return nil, nil, fmt.Errorf("%w: an earlier request took them", ErrTwice)
	}
	fds := m.fds
	m.fds, m.taken = nil, true
	r.parked--
	if len(fds) != count {
		closeAll(fds)
		m.err = fmt.Errorf("%w: the message carried %d, the request says %d", ErrCount, len(fds), count)
		return nil, nil, m.err
	}
	return fds, nil, nil
}

// drain reads what is there. more is false when nothing will ever come again.
func (r *Receiver) drain(fd uintptr) (more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	for {
		n, oobn, flags, _, err := unix.Recvmsg(int(fd), r.buf[:], r.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return true
		case err != nil, n == 0 && oobn == 0: // no message of ours is empty: the peer's end is closed
			return false
		}
		r.arrive(r.buf[:n], r.oob[:oobn], flags)
		close(r.arrived)
		r.arrived = make(chan struct{})
	}
}

// arrive files one message. r.mu is held.
func (r *Receiver) arrive(data, oob []byte, flags int) {
	fds, err := rights(oob)
	token, count := uint64(0), uint32(0)
	switch {
	case len(data) != HeaderSize:
		err = fmt.Errorf("%w: %d bytes: want %d", ErrMalformed, len(data), HeaderSize)
	case binary.LittleEndian.Uint32(data) != Magic:
		err = fmt.Errorf("%w: magic %#x: want %#x", ErrMalformed, binary.LittleEndian.Uint32(data), Magic)
	default:
		count, token = binary.LittleEndian.Uint32(data[4:]), binary.LittleEndian.Uint64(data[8:])
	}
	if err == nil && token == 0 {
		err = fmt.Errorf("%w: token 0", ErrMalformed)
	}
	if token == 0 {
		closeAll(fds)
		r.bad = err
		return
	}
	old := r.tokens[token]
	switch {
	case old != nil:
		r.unpark(old)
		err = fmt.Errorf("%w: two messages carried it", ErrTwice)
	case err != nil:
	case flags&unix.MSG_CTRUNC != 0:
		err = fmt.Errorf("%w: %d of %d came", ErrTruncated, len(fds), count)
	case uint64(len(fds)) != uint64(count) || count == 0:
		err = fmt.Errorf("%w: the message's header says %d, it carried %d", ErrCount, count, len(fds))
	case r.parked == maxParked:
		err = ErrTooMany
	}
	if err != nil {
		closeAll(fds)
		r.remember(token, &message{err: err})
		return
	}
	r.parked++
	r.remember(token, &message{fds: fds})
}

func (r *Receiver) remember(token uint64, m *message) {
	if r.tokens[token] == nil {
		r.order = append(r.order, token)
	}
	r.tokens[token] = m
	if len(r.order) > maxRemembered {
		r.unpark(r.tokens[r.order[0]])
		delete(r.tokens, r.order[0])
		r.order = append(r.order[:0], r.order[1:]...)
	}
}

// unpark closes m's descriptors if it still has them.
func (r *Receiver) unpark(m *message) {
	if m.fds != nil {
		closeAll(m.fds)
		m.fds = nil
		r.parked--
	}
}

func (r *Receiver) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.arrived)
	r.arrived = make(chan struct{})
}

// Close closes the socket and every descriptor that was not taken. Idempotent.
func (r *Receiver) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		r.read.Wait()
		return nil
	}
	r.closed = true
	for _, m := range r.tokens {
		r.unpark(m)
	}
	clear(r.tokens)
	r.order = nil
	r.mu.Unlock()
	err := r.conn.Close()
	r.read.Wait()
	return err
}

// rights extracts all descriptors of a control buffer.
func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control data: %w", ErrMalformed, err)
	}
	var fds []int
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return fds, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
