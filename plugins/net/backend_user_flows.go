package main

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	// maxFlows bounds the UDP flows: each takes a descriptor and a goroutine. One more ends the one that was idle longest. Arbitrary.
	maxFlows = 1024
	// flowTimeout ends a flow without a datagram either way: at least 2 minutes (RFC 4787, 4.3). sweepTime is how often that is looked at.
	flowTimeout = 2 * time.Minute
	sweepTime   = 10 * time.Second
	// maxDatagram is the largest UDP payload over IPv4, in bytes.
	maxDatagram = 65507
	// firstFlowPort is the gateway's first port for flows that begin on the host.
	firstFlowPort = 1024
)

// userFlows are the UDP flows between the guest and the host. The guest's datagrams go straight from its packets to the host's
// sockets: nothing waits in between, and what a socket does not take at once is dropped.
type userFlows struct {
	total, refused, evicted, malformed, full atomic.Uint64
	// buffers are *[maxDatagram]byte, held only while a datagram is passed.
	buffers sync.Pool
	timeout time.Duration

	mu sync.Mutex
	// open are the flows by the guest's (remote) and the stack's (local) address and port.
	open   map[stack.TransportEndpointID]*userFlow
	port   uint16
	closed bool
}

func newUserFlows() *userFlows {
	return &userFlows{
		open: map[stack.TransportEndpointID]*userFlow{}, timeout: flowTimeout, port: firstFlowPort,
		buffers: sync.Pool{New: func() any { return new([maxDatagram]byte) }},
	}
}

// userFlow is one pair of addresses and ports on each side.
type userFlow struct {
	id    stack.TransportEndpointID
	route *stack.Route
	// used is when a datagram last passed, on the clock of start.
	used  atomic.Int64
	start time.Time
	end   func()

	// mu guards what follows: the socket, where to on it if it is not connected, and the datagram that write is sending, and its outcome.
	mu    sync.Mutex
	raw   syscall.RawConn
	to    unix.Sockaddr
	data  []byte
	err   error
	write func(fd uintptr) bool
}

// newFlow is a flow over the socket raw, to `to` if it is not connected; end gives up what it holds on the host.
func (u *user) newFlow(id stack.TransportEndpointID, raw syscall.RawConn, to unix.Sockaddr, end func()) (*userFlow, error) {
	r, e := u.stack.FindRoute(userNIC, id.LocalAddress, id.RemoteAddress, ipv4.ProtocolNumber, false)
	if e != nil { // a source address that is not of this network
		return nil, userError("flow", e)
	}
	f := &userFlow{id: id, route: r, start: time.Now(), end: end, raw: raw, to: to}
	f.write = func(fd uintptr) bool {
		f.err = unix.Sendto(int(fd), f.data, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, f.to)
		return true
	}
	return f, nil
}

// add counts f in; false: it is over, or there is one already.
func (s *userFlows) add(f *userFlow) bool {
	s.mu.Lock()
	if s.closed || s.open[f.id] != nil {
		s.mu.Unlock()
		return false
	}
	var idlest *userFlow
	if len(s.open) >= maxFlows {
		for _, g := range s.open {
			if idlest == nil || g.idle() > idlest.idle() {
				idlest = g
			}
		}
		s.evicted.Add(1)
		delete(s.open, idlest.id)
	}
	s.open[f.id] = f
	s.total.Add(1)
	s.mu.Unlock()
	if idlest != nil {
		idlest.close()
	}
	return true
}

// find is the flow of id; nil: there is none.
func (s *userFlows) find(id stack.TransportEndpointID) *userFlow {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[id]
}

// remove ends f.
func (s *userFlows) remove(f *userFlow) {
	s.mu.Lock()
	mine := s.open[f.id] == f
	if mine {
		delete(s.open, f.id)
	}
	s.mu.Unlock()
	if mine {
		f.close()
	}
}

// sweep ends the flows that have been idle for long.
func (s *userFlows) sweep() {
	var idle []*userFlow
	s.mu.Lock()
	for _, f := range s.open {
		if f.idle() >= s.timeout {
			idle = append(idle, f)
		}
	}
	s.mu.Unlock()
	for _, f := range idle {
		s.remove(f)
	}
}

// close ends all of them.
func (s *userFlows) close() {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for _, f := range open {
		f.close()
	}
}

// close frees what f holds. Whoever took f out of the open ones calls it.
func (f *userFlow) close() {
	f.end()
	f.route.Release()
}

func (f *userFlow) touch()              { f.used.Store(int64(time.Since(f.start))) }
func (f *userFlow) idle() time.Duration { return time.Since(f.start) - time.Duration(f.used.Load()) }

// fromGuest passes a datagram of the guest on.
func (s *userFlows) fromGuest(f *userFlow, b []byte) {
	f.touch()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data = b
	// The first error may be that of an earlier datagram (ECONNREFUSED).
	for range 2 {
		if err := f.raw.Write(f.write); err != nil { // closed
			f.err = err
		}
		if f.err == nil || errors.Is(f.err, unix.EAGAIN) {
			break
		}
	}
	if f.err != nil {
		s.full.Add(1)
	}
	f.data = nil
}

// toGuest passes a datagram to the guest.
func (f *userFlow) toGuest(b []byte) {
	f.touch()
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: netheader.UDPMinimumSize + int(f.route.MaxHeaderLength()), Payload: buffer.MakeWithData(b),
	})
	defer p.DecRef()
	size := uint16(netheader.UDPMinimumSize + len(b)) //nolint:gosec // G115: at most maxDatagram
	h := netheader.UDP(p.TransportHeader().Push(netheader.UDPMinimumSize))
	p.TransportProtocolNumber = udp.ProtocolNumber
	h.Encode(&netheader.UDPFields{SrcPort: f.id.LocalPort, DstPort: f.id.RemotePort, Length: size})
	sum := ^h.CalculateChecksum(checksum.Checksum(b, f.route.PseudoHeaderChecksum(udp.ProtocolNumber, size)))
	if sum == 0 {
		sum = 0xffff // 0 says that there is none
	}
	h.SetChecksum(sum)
	_ = f.route.WritePacket(stack.NetworkHeaderParams{Protocol: udp.ProtocolNumber, TTL: 64}, p) // it may get lost, as any datagram
}

// forwardFlowsOut takes the guest's datagrams, but for those to the stack's own servers.
func (u *user) forwardFlowsOut() {
	u.stack.SetTransportProtocolHandler(udp.ProtocolNumber, u.datagram)
	u.spawn(func() {
		for pause(u.ctx, sweepTime) == nil {
			u.flows.sweep()
		}
	})
}

// datagram takes one datagram of the guest, in the sender's goroutine; false: the stack is to answer that the port is unreachable.
func (u *user) datagram(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
	f := u.flows.find(id)
	if f == nil {
		if _, ok := u.outward(id.LocalAddress); !ok {
			return false
		}
		if f = u.flowOut(id); f == nil {
			u.flows.refused.Add(1)
			return true
		}
	}
	n := int(netheader.UDP(p.TransportHeader().Slice()).Length()) - netheader.UDPMinimumSize
	if n < 0 || n > p.Data().Size() {
		u.flows.malformed.Add(1)
		return true
	}
	b, ok := p.Data().PullUp(n)
	if !ok && n > 0 {
		u.flows.malformed.Add(1)
		return true
	}
	u.flows.fromGuest(f, b)
	return true
}

// flowOut begins a flow of the guest; nil: there can be none.
func (u *user) flowOut(id stack.TransportEndpointID) *userFlow {
	to, _ := u.outward(id.LocalAddress)
	host, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, id.LocalPort)))
	if err != nil {
		return nil
	}
	raw, err := host.SyscallConn()
	if err != nil {
		_ = host.Close() // nothing was sent
		return nil
	}
	f, err := u.newFlow(id, raw, nil, func() { _ = host.Close() })
	if err != nil {
		_ = host.Close() // likewise
		return nil
	}
	if !u.flows.add(f) {
		f.close()
		return u.flows.find(id) // another queue pair was first, or it is over
	}
	if !u.spawn(func() { u.fromHost(f, raw) }) {
		u.flows.remove(f)
		return nil
	}
	return f
}

// fromHost passes what raw receives to the guest until it is closed.
func (u *user) fromHost(f *userFlow, raw syscall.RawConn) {
	defer u.flows.remove(f)
	var err error
	for err == nil {
		err = raw.Read(func(fd uintptr) bool {
			buf, _ := u.flows.buffers.Get().(*[maxDatagram]byte)
			defer u.flows.buffers.Put(buf)
			n, err := unix.Read(int(fd), buf[:])
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case err == nil:
				f.toGuest(buf[:n])
			}
			return true // an error is that of an earlier datagram (ECONNREFUSED, EHOSTUNREACH): the flow goes on
		})
	}
}

// userUDPForward is a UDP port of the host that leads to the guest.
type userUDPForward struct {
	u         *user
	conn      *net.UDPConn
	raw       syscall.RawConn
	guestPort uint16

	mu sync.Mutex
	// clients are the flows by who sends on the host's side.
	clients map[netip.AddrPort]*userFlow
}

// forwardFlowsIn opens the host's port of f and serves who sends to it.
func (u *user) forwardFlowsIn(f *userForward) (netip.AddrPort, error) {
	conn, err := net.ListenUDP(f.family(), net.UDPAddrFromAddrPort(f.host))
	if err != nil {
		return netip.AddrPort{}, err
	}
	u.closers = append(u.closers, conn.Close)
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	w := &userUDPForward{u: u, conn: conn, raw: raw, guestPort: f.guest, clients: map[netip.AddrPort]*userFlow{}}
	u.spawn(w.run)
	return netip.ParseAddrPort(conn.LocalAddr().String())
}

func (w *userUDPForward) run() {
	buf := make([]byte, maxDatagram)
	for w.u.ctx.Err() == nil {
		n, from, err := w.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			_ = pause(w.u.ctx, 10*time.Millisecond) // an earlier answer's error, or it is over
			continue
		}
		if f := w.flow(from); f != nil {
			f.toGuest(buf[:n])
		} else {
			w.u.flows.refused.Add(1)
		}
	}
}

// flow is the flow of a sender on the host; nil: there can be none.
func (w *userUDPForward) flow(from netip.AddrPort) *userFlow {
	w.mu.Lock()
	f := w.clients[from]
	w.mu.Unlock()
	if f != nil {
		return f
	}
	id, ok := w.u.flows.freeID(&w.u.plan, w.guestPort)
	if !ok {
		return nil
	}
	f, err := w.u.newFlow(id, w.raw, sockaddr(from), func() {
		w.mu.Lock()
		delete(w.clients, from)
		w.mu.Unlock()
	})
	if err != nil {
		return nil
	}
	w.mu.Lock()
	w.clients[from] = f // before anybody can end it
	w.mu.Unlock()
	if !w.u.flows.add(f) {
		f.close()
		return nil
	}
	return f
}

// freeID is an address pair for a flow from the gateway to a port of the guest that no flow has.
func (s *userFlows) freeID(plan *userPlan, guestPort uint16) (stack.TransportEndpointID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := stack.TransportEndpointID{LocalAddress: tcpAddress(plan.gateway), RemoteAddress: tcpAddress(plan.guest), RemotePort: guestPort}
	for range maxFlows + 1 {
		id.LocalPort = s.port
		if s.port++; s.port == 0 {
			s.port = firstFlowPort
		}
		if s.open[id] == nil {
			return id, true
		}
	}
	return id, false
}

// sockaddr is a as the kernel has it.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	s := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if zone := a.Addr().Zone(); zone != "" {
		if i, err := net.InterfaceByName(zone); err == nil {
			s.ZoneId = uint32(i.Index) //nolint:gosec // G115: an interface's number
		}
	}
	return s
}
