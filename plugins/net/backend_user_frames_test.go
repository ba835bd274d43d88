package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/virtplug/virtplug/sdk/virtio"
)

var broadcastMAC = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ethernet puts an Ethernet header before payload.
func ethernet(dst, src []byte, kind uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst...), src...)
	return append(binary.BigEndian.AppendUint16(b, kind), payload...)
}

// ipv4Packet puts an IPv4 header before payload.
func ipv4Packet(src, dst netip.Addr, protocol uint8, payload []byte) []byte {
	b := make([]byte, netheader.IPv4MinimumSize+len(payload))
	h := netheader.IPv4(b)
	h.Encode(&netheader.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: protocol, SrcAddr: tcpAddress(src), DstAddr: tcpAddress(dst), //nolint:gosec // G115: short
	})
	h.SetChecksum(^h.CalculateChecksum())
	copy(b[netheader.IPv4MinimumSize:], payload)
	return b
}

// udpPacket puts a UDP header before payload; it has no checksum.
func udpPacket(src, dst uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint16(b, uint16(netheader.UDPMinimumSize+len(payload))) //nolint:gosec // G115: short
	return append(append(b, 0, 0), payload...)
}

// sendFrame sends one frame and returns how many were dropped.
func sendFrame(tb testing.TB, p port, b []byte, h header) int {
	tb.Helper()
	dropped, err := p.Send(context.Background(), []frame{{hdr: h, bufs: [][]byte{b}, n: len(b)}})
	if err != nil {
		tb.Fatalf("send: %v", err)
	}
	return dropped
}

// receiveFrame waits for the next frame.
func receiveFrame(tb testing.TB, p port) ([]byte, header) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	f := []frame{{bufs: [][]byte{make([]byte, 65535+18)}}}
	for {
		n, err := p.Receive(f)
		if err != nil {
			tb.Fatalf("receive: %v", err)
		}
		if n == 1 {
			return f[0].bufs[0][:f[0].n], f[0].hdr
		}
		if err := p.Wait(ctx); err != nil {
			tb.Fatalf("wait: %v", err)
		}
	}
}

// nothingMore fails if a frame waits.
func nothingMore(tb testing.TB, p port) {
	tb.Helper()
	f := []frame{{bufs: [][]byte{make([]byte, 65535+18)}}}
	if n, _ := p.Receive(f); n != 0 {
		tb.Errorf("a frame that nobody asked for: %x", f[0].bufs[0][:min(f[0].n, 100)])
	}
}

// arpRequest asks for target.
func arpRequest(sender, target netip.Addr) []byte {
	b := make([]byte, netheader.ARPSize)
	h := netheader.ARP(b)
	h.SetIPv4OverEthernet()
	h.SetOp(netheader.ARPRequest)
	copy(h.HardwareAddressSender(), testGuestMAC[:])
	copy(h.ProtocolAddressSender(), sender.AsSlice())
	copy(h.ProtocolAddressTarget(), target.AsSlice())
	return ethernet(broadcastMAC, testGuestMAC[:], 0x0806, b)
}

func TestUserAnswersARPForItsOwnAddressesOnly(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	p := u.Port(0)
	for _, a := range []string{"192.168.127.2", "192.168.127.77", "8.8.8.8", "192.168.127.255"} { // the first is the guest's own: DAD
		sendFrame(t, p, arpRequest(netip.IPv4Unspecified(), netip.MustParseAddr(a)), header{})
		sendFrame(t, p, arpRequest(u.plan.guest, netip.MustParseAddr(a)), header{})
	}
	for _, a := range []netip.Addr{u.plan.gateway, u.plan.host} {
		sendFrame(t, p, arpRequest(u.plan.guest, a), header{})
		b, _ := receiveFrame(t, p)
		h := netheader.ARP(b[14:])
		if !bytes.Equal(b[:6], testGuestMAC[:]) || h.Op() != netheader.ARPReply || !bytes.Equal(h.ProtocolAddressSender(), a.AsSlice()) ||
			!bytes.Equal(h.HardwareAddressSender(), []byte(userGatewayMAC)) {
			t.Errorf("answer for %v: %x", a, b)
		}
	}
	nothingMore(t, p)
}

// dhcpExchange sends a DHCP message of the guest and returns the answer.
func dhcpExchange(t *testing.T, u *user, m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	t.Helper()
	b := ipv4Packet(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), 17, udpPacket(68, 67, m.ToBytes()))
	if n := sendFrame(t, u.Port(0), ethernet(broadcastMAC, m.ClientHWAddr, 0x0800, b), header{}); n != 0 {
		t.Fatalf("%d frames dropped", n)
	}
	r, _ := receiveFrame(t, u.Port(0))
	if len(r) < 42 || binary.BigEndian.Uint16(r[36:]) != 68 {
		t.Fatalf("no DHCP answer: %x", r)
	}
	a, err := dhcpv4.FromBytes(r[42:])
	if err != nil {
		t.Fatalf("answer %x: %v", r, err)
	}
	return a
}

func TestUserLeasesTheSameAddressInEveryLife(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		subnet, guest, gateway string
		mtu                    int
	}{
		{"", "192.168.127.2", "192.168.127.1", 0},
		{"10.0.16.0/20", "10.0.16.2", "10.0.16.1", 1400},
		{"192.168.5.8/29", "192.168.5.10", "192.168.5.9", 9000},
	} {
		for life := range 2 {
			u := newTestUser(t, &settings{Subnet: c.subnet, MTU: c.mtu})
			d, err := dhcpv4.NewDiscovery(testGuestMAC[:])
			if err != nil {
				t.Fatal(err)
			}
			o := dhcpExchange(t, u, d)
			r, err := dhcpv4.NewRequestFromOffer(o)
			if err != nil {
				t.Fatal(err)
			}
			if life == 1 { // a client that renews what the former instance gave it
				r, err = dhcpv4.New(dhcpv4.WithHwAddr(testGuestMAC[:]), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(net.ParseIP(c.guest)))
				if err != nil {
					t.Fatal(err)
				}
			}
			a := dhcpExchange(t, u, r)
			if a.MessageType() != dhcpv4.MessageTypeAck || a.YourIPAddr.String() != c.guest || len(a.Router()) != 1 || a.Router()[0].String() != c.gateway ||
				len(a.DNS()) != 1 || a.DNS()[0].String() != c.gateway {
				t.Errorf("%s: %v", c.subnet, a.Summary())
			}
			want := c.mtu
			if want == 0 {
				want = userMTU
			}
			if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, a.Options); err != nil || int(mtu) != want {
				t.Errorf("%s: MTU %d, %v: want %d", c.subnet, mtu, err, want)
			}
			if ones, _ := a.SubnetMask().Size(); ones != u.plan.subnet.Bits() {
				t.Errorf("%s: mask %v", c.subnet, a.SubnetMask())
			}
		}
	}
}

func TestUserLeasesOthersNeitherTheGuestsNorItsOwnAddresses(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{Subnet: "10.9.9.0/29"})
	got := map[string]bool{}
	for i := range byte(3) {
		d, err := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, i})
		if err != nil {
			t.Fatal(err)
		}
		got[dhcpExchange(t, u, d).YourIPAddr.String()] = true
	}
	if !got["10.9.9.3"] || !got["10.9.9.4"] || !got["10.9.9.5"] {
		t.Errorf("leases %v", got)
	}
	// There is no more: neither the host's address nor the network's own.
	late := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	d, err := dhcpv4.NewDiscovery(late)
	if err != nil {
		t.Fatal(err)
	}
	b := ipv4Packet(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), 17, udpPacket(68, 67, d.ToBytes()))
	sendFrame(t, u.Port(0), ethernet(broadcastMAC, late, 0x0800, b), header{})
	for range 50 { // each request has a goroutine of its own: an answer to the late one would be among these
		d, err := dhcpv4.NewDiscovery(testGuestMAC[:])
		if err != nil {
			t.Fatal(err)
		}
		if a := dhcpExchange(t, u, d).YourIPAddr.String(); a != "10.9.9.2" {
			t.Errorf("%s was offered", a)
		}
	}
	nothingMore(t, u.Port(0))
}

// echoRequest is an ICMP echo request without its checksum.
func echoRequest(size int) []byte {
	b := make([]byte, 8+size)
	b[0] = 8
	binary.BigEndian.PutUint16(b[4:], 0x1234)
	for i := range size {
		b[8+i] = byte(i)
	}
	return b
}

func TestUserAnswersPingsInItsOwnNameOnly(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	p := u.Port(0)
	ping := func(to netip.Addr, size int, partial bool) {
		e := echoRequest(size)
		var h header
		if partial { // the driver leaves the checksum to us
			h[virtio.NetHeaderFlags] = virtio.NetHeaderNeedsCSum
			binary.LittleEndian.PutUint16(h[virtio.NetHeaderCSumStart:], 34)
			binary.LittleEndian.PutUint16(h[virtio.NetHeaderCSumOffset:], 2)
		} else {
			e[2], e[3] = checksumBytes(e)
		}
		sendFrame(t, p, ethernet([]byte(userGatewayMAC), testGuestMAC[:], 0x0800, ipv4Packet(u.plan.guest, to, 1, e)), h)
	}
	sendFrame(t, p, arpRequest(u.plan.guest, u.plan.gateway), header{})
	if _, h := receiveFrame(t, p); h != (header{}) {
		t.Errorf("header %x: the driver accepted nothing", h)
	}
	if err := u.SetOffloads(virtio.FNetGuestCSum); err != nil {
		t.Fatal(err)
	}
	ping(netip.MustParseAddr("240.0.0.1"), 56, false) // leads nowhere
	for _, size := range []int{0, 56, 1472, 1473, userMTU - 28} {
		for _, partial := range []bool{false, true} {
			ping(u.plan.gateway, size, partial)
			b, h := receiveFrame(t, p)
			if h != (header{virtio.NetHeaderFlags: virtio.NetHeaderDataValid}) {
				t.Errorf("header %x", h)
			}
			if len(b) != 42+size || b[34] != 0 || !bytes.Equal(b[42:], echoRequest(size)[8:]) {
				t.Errorf("size %d, partial %v: answer of %d bytes, %x", size, partial, len(b), b[:min(len(b), 64)])
			}
		}
	}
	nothingMore(t, p)
}

func TestUserCompletesChecksumsWithinThePacketOnly(t *testing.T) {
	t.Parallel()
	a := netip.MustParseAddr("10.0.0.1")
	packet := ipv4Packet(a, a, 1, echoRequest(9)) // 37 bytes, checksum at 22
	for _, c := range []struct{ start, offset, at int }{
		{34, 2, 22}, {34, 15, 35}, {34, 16, -1}, {34, 17, -1}, {34, 65535, -1}, {65535, 65535, -1}, {65535, 2, -1}, {51, 0, -1}, {49, 0, 35},
		{33, 2, -1}, {14, 2, -1}, {0, 0, -1}, {0, 30, -1},
	} {
		for _, flags := range []byte{0, virtio.NetHeaderNeedsCSum} {
			h := header{virtio.NetHeaderFlags: flags}
			binary.LittleEndian.PutUint16(h[virtio.NetHeaderCSumStart:], uint16(c.start))   //nolint:gosec // G115: the table's
			binary.LittleEndian.PutUint16(h[virtio.NetHeaderCSumOffset:], uint16(c.offset)) //nolint:gosec // G115: the table's
			got, want := bytes.Clone(packet), bytes.Clone(packet)
			if c.at >= 0 && flags != 0 {
				want[c.at], want[c.at+1] = checksumBytes(packet[c.start-14:])
			}
			if completeChecksum(got, &h); !bytes.Equal(got, want) {
				t.Errorf("%+v, flags %d: %x: want %x", c, flags, got, want)
			}
		}
	}
}

func TestUserDropsFramesThatAreNone(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	p := u.Port(0)
	good := arpRequest(u.plan.guest, netip.MustParseAddr("1.2.3.4"))
	group := bytes.Clone(good)
	group[6] |= 1
	long := make([]byte, 14+65536)
	copy(long, good)
	for name, c := range map[string]struct {
		frame   frame
		counter string
		dropped int
	}{
		"nothing":            {frame{}, "user_tx_dropped_short", 1},
		"13 bytes":           {frame{bufs: [][]byte{good[:13]}, n: 13}, "user_tx_dropped_short", 1},
		"fewer than it says": {frame{bufs: [][]byte{good[:20]}, n: 42}, "user_tx_dropped_short", 1},
		"a group's address":  {frame{bufs: [][]byte{group}, n: len(group)}, "user_tx_dropped_source", 1},
		"too long":           {frame{bufs: [][]byte{long}, n: len(long)}, "user_tx_dropped_long", 1},
		"for a neighbour":    {frame{bufs: [][]byte{testGuestMAC[:], good[6:]}, n: len(good)}, "user_tx_ignored", 0},
		"IPv6":               {frame{bufs: [][]byte{ethernet(broadcastMAC, testGuestMAC[:], 0x86dd, make([]byte, 40))}, n: 54}, "user_tx_ignored", 0},
	} {
		before := u.Statistics()[c.counter]
		dropped, err := p.Send(t.Context(), []frame{c.frame})
		if err != nil || dropped != c.dropped || u.Statistics()[c.counter] != before+1 {
			t.Errorf("%s: dropped %d, %v; %s %d → %d", name, dropped, err, c.counter, before, u.Statistics()[c.counter])
		}
	}
}

// checksumBytes is the internet checksum of b.
func checksumBytes(b []byte) (byte, byte) {
	c := ^checksum.Checksum(b, 0)
	return byte(c >> 8), byte(c) //nolint:gosec // G115: its two bytes
}
