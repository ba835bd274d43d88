package main

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// FuzzUserFrame sends the network what a driver could send. data is a virtio_net_hdr, how the frame is divided into buffers, and
// frames, each with its length before it.
func FuzzUserFrame(f *testing.F) {
	u := newTestUser(f, &settings{Restrict: true})
	add := func(frames ...[]byte) {
		data := make([]byte, virtio.NetHeaderSize+1)
		data[virtio.NetHeaderFlags], data[virtio.NetHeaderCSumStart], data[virtio.NetHeaderCSumOffset] = virtio.NetHeaderNeedsCSum, 34, 2
		for _, b := range frames {
			data = append(binary.LittleEndian.AppendUint16(data, uint16(len(b))), b...) //nolint:gosec // G115: short
		}
		f.Add(data)
	}
	ip := func(protocol uint8, to netip.Addr, payload []byte) []byte {
		return ethernet([]byte(userGatewayMAC), testGuestMAC[:], 0x0800, ipv4Packet(u.plan.guest, to, protocol, payload))
	}
	out := netip.MustParseAddr("192.0.2.1")
	arp := arpRequest(u.plan.guest, u.plan.gateway)
	add(arp)
	add(arp, ip(1, u.plan.gateway, echoRequest(56)), ip(1, out, echoRequest(56)))
	add(arp, ip(17, u.plan.gateway, udpPacket(1000, 53, []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x08virtplug\x08internal\x00\x00\x01\x00\x01"))))
	add(arp, ip(17, out, udpPacket(1000, 5353, []byte("hello"))))
	add(arp, synFrame(u, netip.AddrPortFrom(u.plan.gateway, 53)), synFrame(u, netip.AddrPortFrom(out, 80)))
	add(ip(17, netip.MustParseAddr("255.255.255.255"), udpPacket(68, 67, make([]byte, 300))))
	if d, err := dhcpv4.NewDiscovery(testGuestMAC[:]); err == nil {
		add(ethernet(broadcastMAC, testGuestMAC[:], 0x0800, ipv4Packet(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), 17, udpPacket(68, 67, d.ToBytes()))))
	}
	add(make([]byte, 13), make([]byte, 14), nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < virtio.NetHeaderSize+1 {
			return
		}
		h, cut := header(data[:virtio.NetHeaderSize]), int(data[virtio.NetHeaderSize])
		p := u.Port(0)
		for data = data[virtio.NetHeaderSize+1:]; len(data) >= 2; {
			n := int(binary.LittleEndian.Uint16(data))
			b := data[2:min(2+n, len(data))]
			data = data[2+len(b):]
			fr := []frame{{hdr: h, bufs: [][]byte{b[:min(cut, len(b))], b[min(cut, len(b)):]}, n: n}}
			if _, err := p.Send(t.Context(), fr); err != nil {
				t.Fatal(err)
			}
		}
		out := []frame{{bufs: [][]byte{make([]byte, 9), make([]byte, 65535+18)}}}
		for {
			n, err := p.Receive(out)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			if out[0].n < 14 || out[0].n > 9+65535+18 {
				t.Fatalf("a frame of %d bytes", out[0].n)
			}
		}
	})
}
