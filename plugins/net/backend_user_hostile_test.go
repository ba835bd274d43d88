package main

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	waitqueue "gvisor.dev/gvisor/pkg/waiter"
)

// keptPackets is a stack that keeps what the link delivers.
type keptPackets struct{ packets []*stack.PacketBuffer }

func (k *keptPackets) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, p *stack.PacketBuffer) {
	k.packets = append(k.packets, p.Clone())
}
func (k *keptPackets) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// udpFrame is a frame with a datagram from the guest to the network's gateway.
func udpFrame(source macAddress, from netip.Addr, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, netheader.EthernetMinimumSize+netheader.IPv4MinimumSize+netheader.UDPMinimumSize+len(payload))
	netheader.Ethernet(b).Encode(&netheader.EthernetFields{
		SrcAddr: tcpip.LinkAddress(source[:]), DstAddr: userGatewayMAC, Type: netheader.IPv4ProtocolNumber,
	})
	ip := netheader.IPv4(b[netheader.EthernetMinimumSize:])
	ip.Encode(&netheader.IPv4Fields{
		TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(netheader.UDPProtocolNumber), //nolint:gosec // G115: a test's
		SrcAddr: tcpAddress(from), DstAddr: tcpAddress(to.Addr()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	udp := netheader.UDP(ip[netheader.IPv4MinimumSize:])
	udp.Encode(&netheader.UDPFields{SrcPort: 68, DstPort: to.Port(), Length: uint16(len(udp))}) //nolint:gosec // G115: a test's
	copy(udp[netheader.UDPMinimumSize:], payload)
	return b
}

// What the stack keeps of a frame is as much memory as its packet, which it accounts for, and not as the frame.
func TestUserKeepsNoPaddingOfFrames(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	kept := &keptPackets{}
	link := newUserLink(1, userMTU, &u.plan)
	link.pings = u.link.pings
	link.dispatcher = kept
	for _, n := range []int{1, 100, 1460, 40000} {
		b := udpFrame(testGuestMAC, u.plan.guest, netip.AddrPortFrom(u.plan.gateway, 9), make([]byte, n))
		whole := len(b)
		b = append(b, make([]byte, 65000-whole)...)
		kept.packets = nil
		if dropped, err := link.ports[0].Send(t.Context(), []frame{{bufs: [][]byte{b[:33], b[33:]}, n: len(b)}}); dropped != 0 || err != nil {
			t.Fatal(dropped, err)
		}
		if len(kept.packets) != 1 {
			t.Fatalf("%d packets", len(kept.packets))
		}
		p := kept.packets[0]
		memory := 0
		for _, s := range p.AsSlices() {
			memory += cap(s)
		}
		if got := p.Size(); got != whole-netheader.EthernetMinimumSize || memory > 2*got+64 {
			t.Errorf("%d bytes of payload: %d bytes in %d of memory", n, got, memory)
		}
		p.DecRef()
	}
}

// flood sends frames until there are n; it returns the largest number of goroutines beyond those before.
func flood(t *testing.T, u *user, n int, next func(i int) []byte) int {
	t.Helper()
	before, most := runtime.NumGoroutine(), 0
	for i := range n {
		b := next(i)
		if _, err := u.Port(0).Send(context.Background(), []frame{{bufs: [][]byte{b}, n: len(b)}}); err != nil {
			t.Fatal(err)
		}
		if i%64 == 0 {
			most = max(most, runtime.NumGoroutine()-before)
		}
	}
	return most
}

// A guest that asks for leases faster than they are given takes no memory by it.
func TestUserServesNoMoreLeasesAtOnceThanItCan(t *testing.T) { //nolint:paralleltest // it counts goroutines
	u := newTestUser(t, &settings{Subnet: "10.9.0.0/16"})
	message := make([]byte, 244)
	message[0], message[1], message[2] = 1, 1, 6
	copy(message[236:], []byte{0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255})
	most := flood(t, u, 60000, func(i int) []byte {
		binary.BigEndian.PutUint32(message[30:], uint32(i)) //nolint:gosec // G115: a test's
		return udpFrame(testGuestMAC, netip.AddrFrom4([4]byte{}), netip.AddrPortFrom(u.plan.gateway, 67), message)
	})
	t.Logf("%d goroutines", most)
	if most > 4000 { // it would be many thousands
		t.Errorf("%d goroutines at once", most)
	}
}

// A guest that leaves closed connections' last bytes where they are has no more of these connections than open ones.
func TestUserCountsAConnectionUntilTheGuestHasAllOfIt(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	g := newGuest(t, u, guestOptions{})
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	at, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := g.dial(netip.AddrPortFrom(u.plan.host, at.Port()))
	if err != nil {
		t.Fatal(err)
	}
	host, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	open := func() int {
		u.streams.mu.Lock()
		defer u.streams.mu.Unlock()
		return len(u.streams.open)
	}
	// More than the guest's buffer has room for, as long as it does not read, and all of it in the stack when the host closes.
	const bytes = 1500 << 10
	if _, err := host.Write(make([]byte, bytes)); err != nil {
		t.Fatal(err)
	}
	_ = host.Close()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // a false one would be gone by now
	if n := open(); n != 1 {
		t.Errorf("%d connections open while the guest has not read", n)
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 64<<10)
	total := 0
	for {
		n, err := c.Read(buf)
		if total += n; err != nil {
			break
		}
	}
	if total != bytes {
		t.Errorf("the guest read %d bytes of %d", total, bytes)
	}
	socketUntil(t, "the connection is gone", func() bool { return open() == 0 })
}

// However many connections a guest has, their buffers are bounded together.
func TestUserStreamsShareTheirMemory(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	s := newUserStreams()
	total := int64(0)
	for i := range maxStreams {
		ep, e := u.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &waitqueue.Queue{})
		if e != nil {
			t.Fatal(e)
		}
		defer ep.Close()
		st := &userStream{ep: ep}
		if !s.add(st) {
			t.Fatalf("connection %d was refused", i)
		}
		o := ep.SocketOptions()
		total += o.GetReceiveBufferSize() + o.GetSendBufferSize() + 2*int64(st.buffer)
	}
	if total > 2<<30 {
		t.Errorf("%d connections take %d MiB", maxStreams, total>>20)
	}
	t.Logf("%d MiB", total>>20)
	if s.add(&userStream{}) {
		t.Error("one more was taken")
	}
}

// The stack's queues count payload, so that what has none would never fill them.
func TestUserTakesNoEmptyRequests(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	at := hostUDP(t, u)
	for _, c := range []struct {
		to      netip.AddrPort
		payload int
		length  byte
		more    byte
		dropped int
	}{
		{netip.AddrPortFrom(u.plan.gateway, 53), 0, 8, 0, 1},
		{netip.AddrPortFrom(u.plan.gateway, 67), 0, 8, 0, 1},
		{netip.MustParseAddrPort("198.51.100.1:67"), 0, 8, 0, 1}, // the DHCP server takes any address
		{netip.AddrPortFrom(u.plan.gateway, 67), 8, 8, 0, 1},     // longer than it says
		{netip.AddrPortFrom(u.plan.gateway, 67), 8, 8, 0x20, 1},  // the beginning of one
		{netip.AddrPortFrom(u.plan.gateway, 67), 1, 9, 0, 0},
		{at, 0, 8, 0, 0},
	} {
		b := udpFrame(testGuestMAC, u.plan.guest, c.to, make([]byte, c.payload))
		b[20], b[39] = c.more, c.length
		if n := sendFrame(t, u.Port(0), b, header{}); n != c.dropped {
			t.Errorf("%+v: %d dropped", c, n)
		}
	}
}

// Connections that are over take no memory for long, however many a guest has had.
func TestUserForgetsClosedConnections(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	g := newGuest(t, u, guestOptions{})
	l, at := hostListener(t, u)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close() // first: TIME-WAIT is the stack's
		}
	}()
	before := len(u.stack.RegisteredEndpoints())
	for range 20 {
		c, err := g.dial(at)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	for end := time.Now().Add(20 * time.Second); len(u.stack.RegisteredEndpoints()) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are still in the stack", len(u.stack.RegisteredEndpoints())-before)
		}
	}
}
