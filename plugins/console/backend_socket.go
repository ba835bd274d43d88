package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pendingLimit is how much input of clients that have gone may wait for the guest before the next is accepted: an
// arbitrary bound above what a socket buffers.
const pendingLimit = 1 << 20

// socket serves one client at a time on a listening unix socket. Others wait in the listener's queue until the present
// one has closed.
type socket struct {
	*outlet
	l      *net.UnixListener
	failed func(error)
	conns  atomic.Uint64

	// cur is the connected client; Run's.
	cur *net.UnixConn
	// inTurn is held by who reads; in is where from, nil when it has reached its end; pending is input of former clients.
	inTurn  chan struct{}
	in      *net.UnixConn
	pending []byte
	// more holds a token when in or pending changed for Read, less when pending shrank for Run.
	more, less chan struct{}
}

func newSocket(o *outlet, l *net.UnixListener, failed func(error)) *socket {
	return &socket{
		outlet: o, l: l, failed: failed,
		inTurn: make(chan struct{}, 1), more: make(chan struct{}, 1), less: make(chan struct{}, 1),
	}
}

func (s *socket) Run(ctx context.Context, opened func(bool)) {
	opened(s.cur != nil)
	for ctx.Err() == nil {
		if s.cur == nil {
			c, err := s.accept(ctx)
			if err != nil {
				if ctx.Err() == nil {
					s.failed(fmt.Errorf("accept on %v: %w", s.l.Addr(), err))
					sleep(ctx, time.Second)
				}
				continue
			}
			s.connect(c)
			opened(true)
		}
		raw, err := s.cur.SyscallConn()
		if err == nil {
			err = hangup(ctx, raw)
		}
		if ctx.Err() != nil {
			return // the client stays for the next Run
		}
		if err != nil {
			s.failed(fmt.Errorf("watch client of %v: %w", s.l.Addr(), err))
		}
		s.disconnect()
		opened(false)
	}
}

func (s *socket) accept(ctx context.Context) (*net.UnixConn, error) {
	for {
		s.inTurn <- struct{}{}
		n := len(s.pending)
		<-s.inTurn
		if n <= pendingLimit {
			break
		}
		select {
		case <-s.less:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer interrupt(ctx, s.l.SetDeadline)()
	return s.l.AcceptUnix()
}

func (s *socket) connect(c *net.UnixConn) {
	s.conns.Add(1)
	s.cur = c
	s.inTurn <- struct{}{}
	s.in = c
	<-s.inTurn
	signal(s.more)
	s.attach(c)
}

// disconnect ends a client that has hung up; what it sent and nobody read yet goes to pending.
func (s *socket) disconnect() {
	s.detach(s.cur)
	s.inTurn <- struct{}{} // a Read that waits for this client ends by itself
	if s.in != nil {
		rest, _ := io.ReadAll(s.in) // an error is the client's end like any other
		s.pending = append(s.pending, rest...)
		s.in = nil
	}
	<-s.inTurn
	signal(s.more)
	_ = s.cur.Close() // nothing of ours is left in it
	s.cur = nil
}

func (s *socket) Read(ctx context.Context, p []byte) (int, error) {
	for {
		n, err := s.readOnce(ctx, p)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-s.more:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// readOnce returns 0 and no error if there is no input now.
func (s *socket) readOnce(ctx context.Context, p []byte) (int, error) {
	select {
	case s.inTurn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-s.inTurn }()
	if len(s.pending) > 0 {
		n := copy(p, s.pending)
		if s.pending = s.pending[n:]; len(s.pending) == 0 {
			s.pending = nil
		}
		signal(s.less)
		return n, nil
	}
	if s.in == nil {
		return 0, nil
	}
	n, err := readStream(ctx, s.in, p)
	if err != nil && ctx.Err() == nil {
		s.in = nil // its end: Run closes it when it has gone entirely
		return 0, nil
	}
	return n, err
}

func (s *socket) Counters(add func(string, uint64)) {
	s.counters(add)
	add("connections", s.conns.Load())
}

func (s *socket) Close() error {
	s.close()
	var err error
	if s.cur != nil {
		err = s.cur.Close()
	}
	if e := s.l.Close(); !errors.Is(e, net.ErrClosed) && !errors.Is(e, unix.ENOENT) {
		err = errors.Join(err, e)
	}
	return err
}
