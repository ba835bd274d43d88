package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	netheader "gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// hostUDP is a UDP server on the host's 127.0.0.1 that returns every datagram, and the address under which the guest sees it.
func hostUDP(tb testing.TB, u *user) netip.AddrPort {
	tb.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	go echoUDP(c)
	a, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		tb.Fatal(err)
	}
	return netip.AddrPortFrom(u.plan.host, a.Port())
}

// echoUDP returns every datagram until c is closed.
func echoUDP(c net.PacketConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:n], from)
	}
}

// echoed sends datagrams of many sizes over c and expects each back.
func echoed(t *testing.T, c net.Conn, sizes ...int) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, maxDatagram)
	for _, size := range sizes {
		want := make([]byte, size)
		_, _ = rand.Read(want)
		if _, err := c.Write(want); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		n, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:n], want) {
			t.Fatalf("%d bytes came back as %d, %v", size, n, err)
		}
	}
}

func TestUserCarriesUDPBothWays(t *testing.T) {
	t.Parallel()
	for _, mtu := range []uint32{1500, userMTU} {
		u := newTestUser(t, &settings{MTU: int(mtu)})
		g := newGuest(t, u, guestOptions{offloads: virtio.FNetGuestCSum})
		c, err := g.udp(0, hostUDP(t, u))
		if err != nil {
			t.Fatal(err)
		}
		echoed(t, c, 0, 1, 100, 1472, 1473, 9000, maxDatagram)
		_ = c.Close()
		if n := u.Statistics()["user_flows"]; n != 1 {
			t.Errorf("%d flows", n)
		}
	}
}

func TestUserEndsAnIdleFlow(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	g := newGuest(t, u, guestOptions{})
	c, err := g.udp(0, hostUDP(t, u))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		u.flows.timeout = time.Hour
		echoed(t, c, 10)
		if u.flows.sweep(); u.openFlows() != 1 {
			t.Error("the flow was ended before its time")
		}
		u.flows.timeout = 0
		if u.flows.sweep(); u.openFlows() != 0 {
			t.Error("the flow was not ended")
		}
	}
}

func TestUserEvictsTheIdlestFlow(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	g := newGuest(t, u, guestOptions{})
	addr := hostUDP(t, u)
	busy, err := g.udp(1999, addr)
	if err != nil {
		t.Fatal(err)
	}
	var first, last net.Conn
	for i := range uint16(maxFlows + 9) {
		if i%100 == 0 {
			echoed(t, busy, 1)
		}
		c, err := g.udp(2000+i, addr)
		if err != nil {
			t.Fatal(err)
		}
		echoed(t, c, 1)
		if last = c; i == 0 {
			first = c
		}
	}
	if open, s := u.openFlows(), u.Statistics(); open != maxFlows || s["user_flows_evicted"] != 10 {
		t.Errorf("%d flows are open; %v", open, s)
	}
	echoed(t, busy, 1)
	echoed(t, last, 1)
	if s := u.Statistics(); s["user_flows"] != maxFlows+10 {
		t.Errorf("a flow in use was ended: %v", s)
	}
	echoed(t, first, 1)
	if s := u.Statistics(); s["user_flows"] != maxFlows+11 {
		t.Errorf("the idlest flow was not ended: %v", s)
	}
}

// openFlows is how many UDP flows there are.
func (u *user) openFlows() int {
	u.flows.mu.Lock()
	defer u.flows.mu.Unlock()
	return len(u.flows.open)
}

func TestUserRestrictedRefusesDatagrams(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{Restrict: true})
	p, to := u.Port(0), hostUDP(t, u)
	sendFrame(t, p, arpRequest(u.plan.guest, u.plan.gateway), header{})
	receiveFrame(t, p)
	sendFrame(t, p, ethernet([]byte(userGatewayMAC), testGuestMAC[:], 0x0800, ipv4Packet(u.plan.guest, to.Addr(), 17, udpPacket(1, to.Port(), nil))), header{})
	b, _ := receiveFrame(t, p)
	if ip := netheader.IPv4(b[14:]); ip.SourceAddress() != tcpAddress(to.Addr()) || ip.Protocol() != 1 || b[34] != 3 || b[35] != 3 {
		t.Errorf("answer to a datagram: %x: want that the port is unreachable", b)
	}
	if n := u.Statistics()["user_flows"]; n != 0 {
		t.Errorf("%d flows", n)
	}
}

func TestUserForwardsDatagramsOfManyClients(t *testing.T) {
	t.Parallel()
	p := freePort(t, "udp")
	u := newTestUser(t, &settings{Forward: []string{"udp:" + p + ":53"}})
	g := newGuest(t, u, guestOptions{})
	pc, err := g.udp(53, netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pc.Close() }()
	go echoUDP(pc)
	var clients []net.Conn
	for i := range 5 {
		u.flows.mu.Lock()
		u.flows.port = [...]uint16{2000, 2000, 2001, 65535, 65535}[i] // taken ones are passed over, and after the last comes the first
		u.flows.mu.Unlock()
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "udp", "127.0.0.1:"+p)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		clients = append(clients, c)
		for _, c := range clients {
			echoed(t, c, 100)
		}
	}
	if n := u.openFlows(); n != 5 {
		t.Errorf("%d flows", n)
	}
	u.flows.timeout = 0
	if u.flows.sweep(); u.openFlows() != 0 {
		t.Errorf("%d flows did not end", u.openFlows())
	}
	for _, c := range clients { // each begins anew
		echoed(t, c, 100)
	}
}

func TestUserDropsMalformedDatagrams(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	to := hostUDP(t, u)
	p := u.Port(0)
	sendFrame(t, p, arpRequest(u.plan.guest, u.plan.gateway), header{})
	receiveFrame(t, p)
	send := func(length uint16) {
		d := udpPacket(77, to.Port(), []byte("12345678"))
		binary.BigEndian.PutUint16(d[4:], length)
		sendFrame(t, p, ethernet([]byte(userGatewayMAC), testGuestMAC[:], 0x0800, ipv4Packet(u.plan.guest, to.Addr(), 17, d)), header{})
	}
	for _, bad := range []uint16{0, 7, 17, 65535} {
		send(bad)
	}
	if n := u.Statistics()["user_tx_dropped_udp_malformed"]; n != 4 {
		t.Errorf("%d were dropped", n)
	}
	send(12) // what follows the datagram is no part of it
	b, _ := receiveFrame(t, p)
	if udp := netheader.UDP(b[34:]); udp.Length() != 12 || string(b[42:]) != "1234" {
		t.Errorf("answer %x", b)
	}
}
