package main

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxPings bounds the pings under way; each takes a descriptor and a goroutine. One more ends the one that was idle longest. Arbitrary.
	maxPings = 64
	// pingTimeout ends one whose answers stay away.
	pingTimeout = 30 * time.Second
)

// userPings carries the guest's echo requests to hosts outside through ping sockets (icmp(7)), which the host must allow this
// process by net.ipv4.ping_group_range; otherwise they get no answer. Only whole packets are carried, and of what comes back only
// echo replies.
type userPings struct {
	u              *user
	sent, received atomic.Uint64
	// ignored are those that were not carried.
	ignored atomic.Uint64
	refusal sync.Once

	mu     sync.Mutex
	open   map[pingKey]*userPing
	closed bool
}

// userPing is one ping under way.
type userPing struct {
	conn *net.UDPConn
	used time.Time // the last request; guarded by userPings.mu
}

// pingKey is a ping of the guest.
type pingKey struct {
	mac      [6]byte
	from, to [4]byte
	id       uint16
}

func newUserPings(u *user) *userPings { return &userPings{u: u, open: map[pingKey]*userPing{}} }

// takes tells whether an IPv4 packet is (part of) an echo request for somebody outside, which the stack must not see: it would answer
// in their name.
func (p *userPings) takes(packet []byte) bool {
	ip := netheader.IPv4(packet)
	if len(packet) < netheader.IPv4MinimumSize || ip.Protocol() != uint8(netheader.ICMPv4ProtocolNumber) || p.u.link.ours(ip.DestinationAddress()) {
		return false
	}
	at := int(ip.HeaderLength())
	return ip.FragmentOffset() != 0 || at >= len(packet) || packet[at] == byte(netheader.ICMPv4Echo)
}

// send carries a packet that takes took, from the station mac.
func (p *userPings) send(mac [6]byte, packet []byte) {
	ip := netheader.IPv4(packet)
	to, ok := p.u.outward(ip.DestinationAddress())
	at, end := int(ip.HeaderLength()), int(ip.TotalLength())
	fragment := ip.More() || ip.FragmentOffset() != 0
	if !ok || fragment || at < netheader.IPv4MinimumSize || end > len(packet) || at+netheader.ICMPv4MinimumSize > end {
		p.ignored.Add(1)
		return
	}
	echo := packet[at:end]
	key := pingKey{mac: mac, from: ip.SourceAddress().As4(), to: to.As4(), id: netheader.ICMPv4(echo).Ident()}
	c := p.socket(key)
	if c == nil {
		p.ignored.Add(1)
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(pingTimeout))
	if _, err := c.Write(echo); err != nil { // no route, say
		p.ignored.Add(1)
		return
	}
	p.sent.Add(1)
}

// socket is the socket of one ping; nil: there can be none.
func (p *userPings) socket(key pingKey) *net.UDPConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.open[key]; o != nil {
		o.used = time.Now()
		return o.conn
	}
	if p.closed {
		return nil
	}
	c, err := newPingSocket(key.to)
	if err != nil {
		p.refusal.Do(func() {
			p.u.env.Log.Warn("user-mode network: the guest cannot ping: net.ipv4.ping_group_range must hold this process's group", "error", err)
		})
		return nil
	}
	if !p.u.spawn(func() { p.receive(key, c) }) {
		_ = c.Close() // it is over
		return nil
	}
	if len(p.open) >= maxPings {
		p.evict()
	}
	p.open[key] = &userPing{conn: c, used: time.Now()}
	return c
}

// evict ends the ping that was idle longest. Under mu.
func (p *userPings) evict() {
	var idlest pingKey
	var since time.Time
	for key, o := range p.open {
		if since.IsZero() || o.used.Before(since) {
			idlest, since = key, o.used
		}
	}
	_ = p.open[idlest].conn.Close() // its reader ends by that
	delete(p.open, idlest)
}

// newPingSocket is connected to an address; nothing has been sent yet.
func newPingSocket(to [4]byte) (*net.UDPConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer func() { _ = f.Close() }() // FileConn has one of its own
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to}); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(errors.New("ping socket: not taken as a datagram socket"), c.Close())
	}
	return u, nil
}

// receive passes the answers to one ping on until they stay away.
func (p *userPings) receive(key pingKey, c *net.UDPConn) {
	defer func() {
		_ = c.Close() // nothing of ours is in it
		p.mu.Lock()
		if o := p.open[key]; o != nil && o.conn == c {
			delete(p.open, key)
		}
		p.mu.Unlock()
	}()
	buf := make([]byte, gsoMaxSize)
	for {
		n, err := c.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
			return
		case err != nil, n < netheader.ICMPv4MinimumSize, buf[0] != byte(netheader.ICMPv4EchoReply):
			continue // somebody could not be reached: the guest sees that nothing comes
		}
		p.received.Add(1)
		p.u.link.ports[0].reply(key, buf[:n])
	}
}

// reply queues an echo reply for the guest.
func (u *userPort) reply(key pingKey, echo []byte) {
	const size = netheader.EthernetMinimumSize + netheader.IPv4MinimumSize
	if netheader.IPv4MinimumSize+len(echo) > int(u.link.mtu) {
		return
	}
	v := buffer.NewViewSize(size + len(echo))
	b := v.AsSlice()
	netheader.Ethernet(b).Encode(&netheader.EthernetFields{
		SrcAddr: userGatewayMAC, DstAddr: tcpip.LinkAddress(key.mac[:]), Type: netheader.IPv4ProtocolNumber,
	})
	ip := netheader.IPv4(b[netheader.EthernetMinimumSize:])
	ip.Encode(&netheader.IPv4Fields{
		TotalLength: uint16(netheader.IPv4MinimumSize + len(echo)), //nolint:gosec // G115: at most the MTU
		TTL:         64, Protocol: uint8(netheader.ICMPv4ProtocolNumber), SrcAddr: tcpip.AddrFrom4(key.to), DstAddr: tcpip.AddrFrom4(key.from),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	icmp := b[size:]
	copy(icmp, echo)
	binary.BigEndian.PutUint16(icmp[4:], key.id)
	binary.BigEndian.PutUint16(icmp[2:], 0)
	binary.BigEndian.PutUint16(icmp[2:], ^checksum.Checksum(icmp, 0))
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	u.push(p)
	p.DecRef()
}

// close ends all of them.
func (p *userPings) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, o := range p.open {
		_ = o.conn.Close() // its reader ends by that
	}
}
