package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	waitqueue "gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxStreams bounds the guest's TCP connections: each takes a descriptor, two goroutines and two buffers. Arbitrary.
	maxStreams = 4096
	// maxDials bounds those that wait for an answer, on each side. The guest's SYN beyond is not answered, and it repeats it; a client
	// of a forwarded port is reset.
	maxDials = 256
	// dialTimeout is how long one may wait. Linux itself gives up after some 130 s.
	dialTimeout = 60 * time.Second
	// userStreamBuffer is what is copied at once, in bytes: a few of the largest segments.
	userStreamBuffer = 128 << 10
	// userStreamMemory is divided among the connections: each of a new one's two buffers in the stack has as much as if all of those
	// open had that, but at least userStreamLeast. So a guest with a few fast ones has large windows, and one that fills the buffers of as
	// many as it may takes little more than 1 GB. In bytes, arbitrary.
	userStreamMemory = 64 << 20
	userStreamLeast  = 32 << 10
	// keepAlive is how often the host's end of an idle connection asks whether the peer is still there. The guest's end asks every two
	// hours: a paused guest keeps its connections at least that long.
	keepAlive = 5 * time.Minute
)

var errTooMany = errors.New("user-mode network: too many connections wait for the guest")

// userStreams are the TCP connections between the guest and the host.
type userStreams struct {
	total, refused atomic.Uint64
	// dialing are the connections to the guest that wait for its answer.
	dialing atomic.Int32

	mu     sync.Mutex
	open   map[*userStream]struct{}
	closed bool
}

// userStream is one TCP connection: its ends in the stack and on the host.
type userStream struct {
	ep    tcpip.Endpoint
	guest *gonet.TCPConn // ep's
	host  *net.TCPConn
	// buffer is how many bytes are copied at once.
	buffer int
}

func newUserStreams() *userStreams { return &userStreams{open: map[*userStream]struct{}{}} }

// add counts st in, and gives it its share of the memory; false: there are too many, or it is over.
func (s *userStreams) add(st *userStream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.open) >= maxStreams {
		s.refused.Add(1)
		return false
	}
	s.open[st] = struct{}{}
	s.total.Add(1)
	share := max(userStreamMemory/len(s.open), userStreamLeast)
	st.buffer = min(userStreamBuffer, share)
	if share < tcp.MaxBufferSize { // otherwise the stack's own growth is within it
		st.ep.SocketOptions().SetReceiveBufferSize(int64(share), true)
		st.ep.SocketOptions().SetSendBufferSize(int64(share), true)
	}
	return true
}

func (s *userStreams) remove(st *userStream) {
	s.mu.Lock()
	delete(s.open, st)
	s.mu.Unlock()
}

// close breaks all of them.
func (s *userStreams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for st := range s.open {
		st.abort()
	}
}

// abort resets both ends.
func (st *userStream) abort() {
	_ = st.host.SetLinger(0) // an error means that it is closed already
	_ = st.host.Close()
	st.ep.Abort()
}

// pass copies what comes from one end to the other one until its end, which it passes on.
func (st *userStream) pass(to, from interface {
	net.Conn
	CloseWrite() error
}) {
	buf := make([]byte, st.buffer)
	// Plain Read and Write: *net.TCPConn's ReadFrom has a smaller buffer of its own.
	if _, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buf); err != nil {
		st.abort()
		return
	}
	_ = to.CloseWrite() // an error means that it is closed already
}

// join passes bytes both ways until both ends are through or one is broken.
func (u *user) join(ep tcpip.Endpoint, wq *waitqueue.Queue, host *net.TCPConn) {
	st := &userStream{ep: ep, guest: gonet.NewTCPConn(wq, ep), host: host}
	if !u.streams.add(st) {
		st.abort()
		return
	}
	ep.SocketOptions().SetKeepAlive(true)
	var other sync.WaitGroup
	other.Go(func() { st.pass(host, st.guest) })
	st.pass(st.guest, host)
	other.Wait()
	_ = st.guest.Close() // never fails
	_ = host.Close()     // was shut down both ways
	u.drain(ep)
	u.streams.remove(st)
}

// drain returns when the guest has all of a closed connection: until then the stack holds its bytes, for ever if the guest likes.
func (u *user) drain(ep tcpip.Endpoint) {
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		switch tcp.EndpointState(ep.State()) { //nolint:exhaustive,gosec // those in which something may be left; G115: there are a dozen
		case tcp.StateEstablished, tcp.StateCloseWait, tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
		default:
			return
		}
		if pause(u.ctx, wait) != nil {
			return
		}
	}
}

// outward is where a packet of the guest to a leads on the host; false: nowhere.
func (u *user) outward(a tcpip.Address) (netip.Addr, bool) {
	to := netip.AddrFrom4(a.As4())
	switch {
	case u.restrict:
		return to, false
	case to == u.plan.host:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	}
	return to, routable(to) && !u.plan.subnet.Contains(to)
}

// forwardStreamsOut lets the guest's connections out.
func (u *user) forwardStreamsOut() {
	f := tcp.NewForwarder(u.stack, 0, maxDials, u.connectOut)
	u.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
		if _, ok := u.outward(id.LocalAddress); !ok {
			return false // the stack answers by a reset
		}
		return f.HandlePacket(id, p)
	})
}

// connectOut serves a connection that the guest opens, in a goroutine of the stack's. The guest's is established when the host's is.
func (u *user) connectOut(r *tcp.ForwarderRequest) {
	if !u.enter() {
		r.Complete(true)
		return
	}
	defer u.tasks.Done()
	id := r.ID()
	to, _ := u.outward(id.LocalAddress)
	ctx, cancel := context.WithTimeout(u.ctx, dialTimeout)
	defer cancel()
	d := net.Dialer{KeepAlive: keepAlive}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp4", netip.AddrPortFrom(to, id.LocalPort).String())
	host, ok := c.(*net.TCPConn)
	if err != nil || !ok {
		u.streams.refused.Add(1)
		r.Complete(true)
		return
	}
	wq := &waitqueue.Queue{}
	ep, e := r.CreateEndpoint(wq)
	r.Complete(false)
	if e != nil { // the guest has given up
		_ = host.SetLinger(0)
		_ = host.Close()
		return
	}
	u.join(ep, wq, host)
}

// forwardStreamsIn opens the host's port of f and serves who connects.
func (u *user) forwardStreamsIn(f *userForward) (netip.AddrPort, error) {
	lc := net.ListenConfig{KeepAlive: keepAlive}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(u.ctx, f.family(), f.host.String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	u.closers = append(u.closers, l.Close)
	u.spawn(func() { u.acceptIn(l, f.guest) })
	return netip.ParseAddrPort(l.Addr().String())
}

// acceptIn serves what connects to l, a port of the host.
func (u *user) acceptIn(l net.Listener, guestPort uint16) {
	for u.ctx.Err() == nil {
		c, err := l.Accept()
		if err != nil {
			_ = pause(u.ctx, 100*time.Millisecond) // out of descriptors, mostly; or it is over
			continue
		}
		if host, ok := c.(*net.TCPConn); !ok || !u.spawn(func() { u.connectIn(host, guestPort) }) {
			_ = c.Close() // it is over
		}
	}
}

// connectIn connects host, a connection from outside, to a port of the guest.
func (u *user) connectIn(host *net.TCPConn, guestPort uint16) {
	ctx, cancel := context.WithTimeout(u.ctx, dialTimeout)
	defer cancel()
	wq := &waitqueue.Queue{}
	err := errTooMany
	var ep tcpip.Endpoint
	if u.streams.dialing.Add(1) <= maxDials {
		ep, err = u.dialGuest(ctx, wq, guestPort)
	}
	u.streams.dialing.Add(-1)
	if err != nil {
		u.streams.refused.Add(1)
		_ = host.SetLinger(0) // the client is to see a reset, as from the guest
		_ = host.Close()
		return
	}
	u.join(ep, wq, host)
}

// dialGuest opens a TCP connection to the guest.
func (u *user) dialGuest(ctx context.Context, wq *waitqueue.Queue, guestPort uint16) (tcpip.Endpoint, error) {
	ep, e := u.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if e != nil {
		return nil, userError("connection to the guest", e)
	}
	entry, done := waitqueue.NewChannelEntry(waitqueue.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	e = ep.Connect(tcpip.FullAddress{NIC: userNIC, Addr: tcpAddress(u.plan.guest), Port: guestPort})
	if _, started := e.(*tcpip.ErrConnectStarted); started {
		select {
		case <-done:
			e = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			return nil, ctx.Err()
		}
	}
	if e != nil {
		ep.Close()
		return nil, userError("connection to the guest", e)
	}
	return ep, nil
}

// userError is a stack's error.
func userError(what string, e tcpip.Error) error {
	return fmt.Errorf("user-mode network: %s: %s", what, e)
}
