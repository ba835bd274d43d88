package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
)

const (
	// retryFirst is the pause before the second attempt to reach a peer. It doubles, up to retryLocal for a peer on this host, where an
	// attempt costs nothing, and up to retryFar for another one. It is also the least time between two peers of a listener.
	retryFirst = 200 * time.Millisecond
	retryLocal = time.Second
	retryFar   = 5 * time.Second
	// dialPatience is how long one attempt may take.
	dialPatience = 5 * time.Second
	// probeInterval is how often a peer that nothing tells of is looked for.
	probeInterval = time.Second
	// drainPatience is how long what a peer sent before it hung up may wait for the driver.
	drainPatience = time.Second
)

// peerSource is where peers come from.
type peerSource interface {
	// run gives s one peer after the other, until ctx ends.
	run(ctx context.Context, s *socket)
	// close releases the own end's address. run has returned, or was never called.
	close() error
}

// dialer goes to the peer.
type dialer struct {
	to    string        // for people
	limit time.Duration // of the pause between attempts
	// open makes the connection, or finds out that there is somebody.
	open func(ctx context.Context, counts *socketCounters) (*conn, error)
	// probe tells whether the peer is still there; nil: the connection itself tells.
	probe func() error
	// release releases the own end's address; nil: there is none.
	release func() error
}

func (d *dialer) close() error {
	if d.release == nil {
		return nil
	}
	return d.release()
}

func (d *dialer) run(ctx context.Context, s *socket) {
	told := false // that there is nobody
	for pause := retryFirst; ; pause = min(2*pause, d.limit) {
		c, err := d.open(ctx, &s.counts)
		switch {
		case err == nil:
			began := time.Now()
			s.attach(c)
			err = s.serve(ctx, c, d.probe)
			if told = true; ctx.Err() == nil {
				s.tellLost(c, err, "trying to reach it again")
			}
			if time.Since(began) > d.limit {
				pause = retryFirst
			}
		case !told && ctx.Err() == nil:
			told = true
			s.news.notice(fmt.Sprintf("no peer at %s, trying until there is one: %v", d.to, err), map[string]string{"peer": d.to, "link": "down"})
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// acceptor waits for peers; one at a time is served.
type acceptor struct{ l net.Listener }

func (a *acceptor) close() error {
	if err := a.l.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (a *acceptor) run(ctx context.Context, s *socket) {
	defer context.AfterFunc(ctx, func() { _ = a.l.Close() })() // it is closed anyhow
	served := make(chan struct{})                              // closed when the present peer has gone
	close(served)
	for {
		nc, err := a.l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = nc.Close() // nothing was said on it
			}
			return
		case err != nil:
			s.news.fail(fmt.Errorf("socket: wait for a peer at %v: %w", a.l.Addr(), err))
		case s.taken():
			s.counts.refused.Add(1)
			_ = nc.Close() // nothing was said on it
			s.news.notice(fmt.Sprintf("another peer at %v was refused: there is one already", a.l.Addr()), nil)
		default:
			<-served
			served = a.serve(ctx, s, nc)
		}
		if !sleep(ctx, retryFirst) {
			return
		}
	}
}

// serve makes nc the peer; the channel is closed when it has gone.
func (a *acceptor) serve(ctx context.Context, s *socket, nc net.Conn) chan struct{} {
	served := make(chan struct{})
	name := a.l.Addr().String()
	if a.l.Addr().Network() == "tcp" {
		name = nc.RemoteAddr().String()
	}
	c, err := streamConn(nc, name, &s.counts)
	if err != nil {
		s.news.fail(fmt.Errorf("socket: peer at %s: %w", name, err))
		close(served)
		return served
	}
	s.attach(c)
	s.running.Go(func() {
		defer close(served)
		if err := s.serve(ctx, c, nil); ctx.Err() == nil {
			s.tellLost(c, err, "waiting for the next")
		}
	})
	return served
}

// streamConn makes a connection of nc, which is closed.
func streamConn(nc net.Conn, name string, counts *socketCounters) (*conn, error) {
	fd, err := takeOver(nc)
	if err != nil {
		return nil, err
	}
	if nc.RemoteAddr().Network() != "tcp" { // whose window grows by itself
		enlarge(fd)
	}
	if nc.RemoteAddr().Network() == "unixpacket" {
		return newConn(fd, &datagramWire{counts: counts, lasts: byBoth}, name)
	}
	return newConn(fd, &streamWire{counts: counts}, name)
}

// taken tells whether there is a peer that has not hung up. One that has makes room at once.
func (s *socket) taken() bool {
	c := s.acquire()
	if c == nil {
		return false
	}
	defer c.release()
	if !c.hungUp() {
		return true
	}
	s.lost(c, errHungUp)
	return false
}

// attach makes c the peer.
func (s *socket) attach(c *conn) {
	s.counts.connections.Add(1)
	s.cur.Store(c)
	s.waiter.wake()
	s.news.notice("connected to "+c.name, map[string]string{"peer": c.name, "link": "up"})
	s.changed()
}

// serve returns why the peer has gone, or ctx's error. Then the link is down.
func (s *socket) serve(ctx context.Context, c *conn, probe func() error) error {
	err := watch(ctx, c, probe)
	s.lost(c, err)
	s.waiter.wake()
	if errors.Is(err, errFraming) {
		s.counts.badPeers.Add(1)
	}
	if ctx.Err() == nil {
		s.changed()
	}
	c.release()
	return err
}

// watch waits for the end of c.
func watch(ctx context.Context, c *conn, probe func() error) error {
	fd, timeout := c.fd, -1
	if probe != nil {
		fd, timeout = -1, int(probeInterval.Milliseconds())
	}
	for {
		events := int16(unix.POLLRDHUP)
		if c.wire.unfinished() {
			events |= unix.POLLOUT
		}
		got, err := c.over.wait(ctx, fd, events, timeout)
		if err != nil {
			return err
		}
		if err := c.cause(); err != nil {
			return err
		}
		switch {
		case probe != nil:
			if err := probe(); err != nil {
				return peerError(err)
			}
		case got == unix.POLLOUT:
			if err := c.wire.finish(c.fd); err != nil {
				return err
			}
		case got != 0: // whoever receives takes what is still there, and then sees the end
			if _, err := c.over.wait(ctx, -1, 0, int(drainPatience.Milliseconds())); err != nil {
				return err
			}
			if err := c.cause(); err != nil {
				return err
			}
			return errHungUp
		}
	}
}

// tellLost says that the peer c has gone.
func (s *socket) tellLost(c *conn, err error, next string) {
	if errors.Is(err, errFraming) {
		s.news.fail(fmt.Errorf("socket: peer %s was disconnected, %s: %w", c.name, next, err))
		return
	}
	s.news.notice(fmt.Sprintf("peer %s: %v: %s", c.name, err, next), map[string]string{"peer": c.name, "link": "down"})
}

// sleep returns false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

const (
	// newsBurst is how many messages go to the user at once, newsInterval how often another one does after that. Arbitrary.
	newsBurst    = 6
	newsInterval = 10 * time.Second
)

// news tells the user what happens to the peer, but not more than he can read. Any goroutine.
type news struct {
	env *sdk.Env

	mu     sync.Mutex
	recent []time.Time // when the last ones were told, at most newsBurst
	unsaid int
}

func (n *news) notice(message string, facts map[string]string) {
	if unsaid, ok := n.allowed(); ok {
		n.env.Notice(message+unsaid, facts)
	}
}

func (n *news) fail(err error) {
	if unsaid, ok := n.allowed(); ok {
		n.env.Fail(fmt.Errorf("%w%s", err, unsaid), false)
	}
}

// allowed tells whether another message may go, and what to add to it.
func (n *news) allowed() (unsaid string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	for len(n.recent) > 0 && now.Sub(n.recent[0]) > newsBurst*newsInterval {
		n.recent = n.recent[1:]
	}
	if len(n.recent) >= newsBurst {
		if now.Sub(n.recent[len(n.recent)-1]) < newsInterval {
			n.unsaid++
			return "", false
		}
		n.recent = n.recent[1:]
	}
	n.recent = append(n.recent, now)
	if n.unsaid > 0 {
		unsaid = fmt.Sprintf(" (%d messages before this one were left out)", n.unsaid)
		n.unsaid = 0
	}
	return unsaid, true
}
