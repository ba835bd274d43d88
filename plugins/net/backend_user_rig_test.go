package main

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// testGuestMAC is the device's address in these tests.
var testGuestMAC = macAddress{0x56, 1, 2, 3, 4, 5}

// newTestUser is back-end user with cfg, closed at the end of the test.
func newTestUser(tb testing.TB, cfg *settings) *user {
	tb.Helper()
	env := &sdk.Env{Name: "eth0", Log: hclog.NewNullLogger()}
	b, err := newUser(env, cfg, testGuestMAC, func() {})
	if err != nil {
		tb.Fatal(err)
	}
	u, ok := b.(*user)
	if !ok {
		tb.Fatalf("back-end is %T", b)
	}
	tb.Cleanup(func() {
		if err := u.Close(); err != nil {
			tb.Errorf("close: %v", err)
		}
	})
	return u
}

// guestOptions say what kind of driver a guest has.
type guestOptions struct {
	mtu uint32
	// offloads are those that frames to the driver may use.
	offloads virtio.Features
	// host: it uses VIRTIO_NET_F_CSUM and VIRTIO_NET_F_HOST_TSO4.
	host bool
	// trust: it does not verify checksums, for benchmarks.
	trust bool
	// address is its address, .2 if not given.
	address netip.Addr
}

// guest is a TCP/IP stack that uses back-end user as a driver would.
type guest struct {
	*stack.Stack
	tb   testing.TB
	user *user
	port port
	opt  guestOptions
	d    stack.NetworkDispatcher

	sendMu sync.Mutex
	frames [1]frame

	mu       sync.Mutex
	largest  int // the largest frame received
	tso      int // frames received for segmentation by the driver
	received int

	stop func() // ends it early
}

// newGuest starts a guest on port 0 of u. It stops at the end of the test.
func newGuest(tb testing.TB, u *user, opt guestOptions) *guest {
	tb.Helper()
	if opt.mtu == 0 {
		opt.mtu = u.link.mtu
	}
	if !opt.address.IsValid() {
		opt.address = u.plan.guest
	}
	g := &guest{tb: tb, user: u, port: u.Port(0), opt: opt}
	if err := u.SetOffloads(opt.offloads); err != nil {
		tb.Fatal(err)
	}
	g.Stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := g.CreateNIC(1, g); err != nil {
		tb.Fatal(err)
	}
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
		Address: tcpAddress(opt.address), PrefixLen: u.plan.subnet.Bits(),
	}}
	if err := g.AddProtocolAddress(1, address, stack.AddressProperties{}); err != nil {
		tb.Fatal(err)
	}
	g.SetRouteTable([]tcpip.Route{
		{Destination: address.AddressWithPrefix.Subnet(), NIC: 1},
		{Destination: netheader.IPv4EmptySubnet, Gateway: tcpAddress(u.plan.gateway), NIC: 1},
	})
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { g.receive(ctx) })
	g.stop = sync.OnceFunc(func() {
		stop()
		wg.Wait()
		g.Destroy()
	})
	tb.Cleanup(g.stop)
	return g
}

// receive is the guest's receive queue: its buffers have room for what the offloads make possible.
func (g *guest) receive(ctx context.Context) {
	room := int(g.opt.mtu) + 18
	if g.opt.offloads.Has(virtio.FNetGuestTSO4) {
		room = 65535 + 18
	}
	frames := make([]frame, 8)
	for i := range frames {
		// In pieces, as the guest's buffers are.
		b := make([]byte, room)
		frames[i].bufs = [][]byte{b[:7], b[7:min(1500, room)], b[min(1500, room):]}
	}
	flat := make([]byte, room)
	for ctx.Err() == nil {
		n, err := g.port.Receive(frames)
		if err != nil {
			g.tb.Errorf("receive: %v", err)
			return
		}
		if n == 0 {
			if g.port.Wait(ctx) != nil {
				return
			}
		}
		for i := range frames[:n] {
			f := &frames[i]
			c := userCursor{bufs: f.bufs}
			g.deliver(flat[:c.read(flat[:f.n])], &f.hdr)
		}
	}
}

// deliver does what a driver does with a frame and its header.
func (g *guest) deliver(b []byte, h *header) {
	flags, gso := h[virtio.NetHeaderFlags], h[virtio.NetHeaderGSOType]
	g.mu.Lock()
	g.received++
	g.largest = max(g.largest, len(b))
	if gso != virtio.NetGSONone {
		g.tso++
	}
	g.mu.Unlock()
	switch {
	case gso == virtio.NetGSOTCPv4 && !g.opt.offloads.Has(virtio.FNetGuestTSO4), gso != virtio.NetGSONone && gso != virtio.NetGSOTCPv4:
		g.tb.Errorf("gso_type %d was not accepted", gso)
	case gso != virtio.NetGSONone && flags&virtio.NetHeaderNeedsCSum == 0:
		g.tb.Errorf("gso_type %d without a partial checksum", gso)
	case flags != 0 && !g.opt.offloads.Has(virtio.FNetGuestCSum):
		g.tb.Errorf("flags %#x were not accepted", flags)
	case gso == virtio.NetGSONone && len(b) > int(g.opt.mtu)+14:
		g.tb.Errorf("frame of %d bytes", len(b))
	}
	if flags&virtio.NetHeaderNeedsCSum != 0 && !g.opt.trust {
		start := int(binary.LittleEndian.Uint16(h[virtio.NetHeaderCSumStart:]))
		at := start + int(binary.LittleEndian.Uint16(h[virtio.NetHeaderCSumOffset:]))
		binary.BigEndian.PutUint16(b[at:], ^checksum.Checksum(b[start:], 0))
	}
	eth := netheader.Ethernet(b)
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[netheader.EthernetMinimumSize:])})
	g.d.DeliverNetworkPacket(eth.Type(), p)
	p.DecRef()
}

// The guest's network card.

func (g *guest) MTU() uint32                                { return g.opt.mtu }
func (g *guest) SetMTU(uint32)                              {}
func (g *guest) MaxHeaderLength() uint16                    { return netheader.EthernetMinimumSize }
func (g *guest) LinkAddress() tcpip.LinkAddress             { return tcpip.LinkAddress(testGuestMAC[:]) }
func (g *guest) SetLinkAddress(tcpip.LinkAddress)           {}
func (g *guest) Attach(d stack.NetworkDispatcher)           { g.d = d }
func (g *guest) IsAttached() bool                           { return g.d != nil }
func (g *guest) Wait()                                      {}
func (g *guest) ARPHardwareType() netheader.ARPHardwareType { return netheader.ARPHardwareEther }
func (g *guest) ParseHeader(*stack.PacketBuffer) bool       { return true }
func (g *guest) Close()                                     {}
func (g *guest) SetOnCloseAction(func())                    {}
func (g *guest) GSOMaxSize() uint32                         { return 65535 }

func (g *guest) SupportedGSO() stack.SupportedGSO {
	if g.opt.host {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

func (g *guest) Capabilities() stack.LinkEndpointCapabilities {
	c := stack.CapabilityResolutionRequired
	if g.opt.trust {
		c |= stack.CapabilityRXChecksumOffload
	}
	return c
}

func (g *guest) AddHeader(p *stack.PacketBuffer) {
	netheader.Ethernet(p.LinkHeader().Push(netheader.EthernetMinimumSize)).Encode(&netheader.EthernetFields{
		SrcAddr: g.LinkAddress(), DstAddr: p.EgressRoute.RemoteLinkAddress, Type: p.NetworkProtocolNumber,
	})
}

func (g *guest) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for _, p := range list.AsSlice() {
		g.write(p)
	}
	return list.Len(), nil
}

func (g *guest) write(p *stack.PacketBuffer) {
	g.sendMu.Lock()
	defer g.sendMu.Unlock()
	f := &g.frames[0]
	f.bufs, f.n, f.hdr = p.AsSlices(), p.Size(), header{}
	if o := p.GSOOptions; o.Type == stack.GSOTCPv4 && o.NeedsCsum {
		f.hdr[virtio.NetHeaderFlags] = virtio.NetHeaderNeedsCSum
		binary.LittleEndian.PutUint16(f.hdr[virtio.NetHeaderCSumStart:], netheader.EthernetMinimumSize+o.L3HdrLen)
		binary.LittleEndian.PutUint16(f.hdr[virtio.NetHeaderCSumOffset:], o.CsumOffset)
		if p.Data().Size() > int(o.MSS) {
			f.hdr[virtio.NetHeaderGSOType] = virtio.NetGSOTCPv4
			binary.LittleEndian.PutUint16(f.hdr[virtio.NetHeaderHdrLen:], uint16(p.HeaderSize())) //nolint:gosec // G115: below 200
			binary.LittleEndian.PutUint16(f.hdr[virtio.NetHeaderGSOSize:], o.MSS)
		}
	}
	if _, err := g.port.Send(context.Background(), g.frames[:]); err != nil {
		g.tb.Errorf("send: %v", err)
	}
}

// dial connects to an address over TCP from within the guest.
func (g *guest) dial(addr netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.Stack, tcpip.FullAddress{NIC: 1, Addr: tcpAddress(addr.Addr()), Port: addr.Port()}, ipv4.ProtocolNumber)
}

// listen waits for TCP connections in the guest.
func (g *guest) listen(p uint16) (net.Listener, error) {
	return gonet.ListenTCP(g.Stack, tcpip.FullAddress{NIC: 1, Addr: tcpAddress(g.opt.address), Port: p}, ipv4.ProtocolNumber)
}

// udp is a UDP socket of the guest, connected to addr if that is valid.
func (g *guest) udp(local uint16, addr netip.AddrPort) (*gonet.UDPConn, error) {
	laddr := &tcpip.FullAddress{NIC: 1, Addr: tcpAddress(g.opt.address), Port: local}
	var raddr *tcpip.FullAddress
	if addr.IsValid() {
		raddr = &tcpip.FullAddress{NIC: 1, Addr: tcpAddress(addr.Addr()), Port: addr.Port()}
	}
	return gonet.DialUDP(g.Stack, laddr, raddr, ipv4.ProtocolNumber)
}
