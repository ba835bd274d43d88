package main

import (
	"context"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// Bounds of what waits for the driver on one queue pair. A sender's window is at most userWindow, so a few fast connections fit before
// anything is dropped; what waits are references to the segments that the stack keeps for retransmission anyway.
const (
	userQueuePackets = 4096
	userQueueBytes   = 16 << 20
)

// The ports of the network's servers.
const (
	dnsPort  = 53
	dhcpPort = 67
)

// gsoMaxSize is the largest IP packet that the stack makes for segmentation by us or the driver.
const gsoMaxSize = 65535

// userGatewayMAC is the gateway's address on every user-mode network, so that the guest's ARP cache stays right when the plugin is
// restarted. Locally administered.
var userGatewayMAC = tcpip.LinkAddress("\x5a\x94\xef\xe4\x0c\xee")

// userLink is the network card of the stack, whose cable ends at the driver.
type userLink struct {
	mtu        uint32
	dispatcher stack.NetworkDispatcher
	pings      *userPings
	// answers are the addresses that ARP requests are answered for.
	answers [2]tcpip.Address

	// guest are the offloads that frames to the driver may use.
	guest atomic.Uint64
	// pairs is how many ports get frames.
	pairs atomic.Int32
	ports []*userPort
}

func newUserLink(pairs, mtu int, plan *userPlan) *userLink {
	l := &userLink{
		mtu:     uint32(mtu), //nolint:gosec // G115: the setting is at most 65520
		answers: [2]tcpip.Address{tcpAddress(plan.gateway), tcpAddress(plan.host)},
		ports:   make([]*userPort, pairs),
	}
	for i := range l.ports {
		l.ports[i] = &userPort{link: l, ready: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	}
	l.pairs.Store(1)
	return l
}

// The following are stack.LinkEndpoint's and stack.GSOEndpoint's methods.

func (l *userLink) MTU() uint32                                { return l.mtu }
func (l *userLink) SetMTU(uint32)                              {}
func (l *userLink) MaxHeaderLength() uint16                    { return netheader.EthernetMinimumSize }
func (l *userLink) LinkAddress() tcpip.LinkAddress             { return userGatewayMAC }
func (l *userLink) SetLinkAddress(tcpip.LinkAddress)           {}
func (l *userLink) Attach(d stack.NetworkDispatcher)           { l.dispatcher = d }
func (l *userLink) IsAttached() bool                           { return l.dispatcher != nil }
func (l *userLink) Wait()                                      {}
func (l *userLink) ARPHardwareType() netheader.ARPHardwareType { return netheader.ARPHardwareEther }
func (l *userLink) ParseHeader(*stack.PacketBuffer) bool       { return true }
func (l *userLink) Close()                                     {}
func (l *userLink) SetOnCloseAction(func())                    {}
func (l *userLink) GSOMaxSize() uint32                         { return gsoMaxSize }

// Capabilities: nothing can have damaged a frame between the driver and us, so its checksums, which may be partial, are not looked at.
func (l *userLink) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

// SupportedGSO: always; Receive divides what a driver without VIRTIO_NET_F_GUEST_TSO4 cannot take. So the stack handles large segments
// even on links with a small MTU.
func (l *userLink) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

func (l *userLink) AddHeader(p *stack.PacketBuffer) {
	eth := netheader.Ethernet(p.LinkHeader().Push(netheader.EthernetMinimumSize))
	eth.Encode(&netheader.EthernetFields{SrcAddr: userGatewayMAC, DstAddr: p.EgressRoute.RemoteLinkAddress, Type: p.NetworkProtocolNumber})
}

// WritePackets queues packets for the driver. It never waits.
func (l *userLink) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	packets := list.AsSlice()
	for _, p := range packets {
		i := 0
		if n := uint32(l.pairs.Load()); n > 1 { //nolint:gosec // G115: SetPairs keeps it between 1 and 16
			i = int(p.Hash % n)
		}
		l.ports[i].push(p)
	}
	return len(packets), nil
}

// userPort is a queue pair's end of the link.
type userPort struct {
	link *userLink
	// ready and wake hold at most a token: there may be packets; Wake was called.
	ready, wake chan struct{}

	mu sync.Mutex
	// packets[head:] wait for the driver, bytes in all; guarded by mu. closed: none is taken any more.
	packets []*stack.PacketBuffer
	head    int
	bytes   int
	closed  bool

	// out is the packet that Receive is dividing; Receive's.
	out userSegmenter

	counts userCounts
}

// userCounts are the frames that did not go their way, by reason.
type userCounts struct {
	// rxFull, rxLong: to the driver; the others: from it.
	rxFull, rxLong, long, short, source, ignored atomic.Uint64
}

// push queues p for the driver; it is dropped if too much waits already.
func (u *userPort) push(p *stack.PacketBuffer) {
	n := p.Size()
	u.mu.Lock()
	if u.closed || len(u.packets)-u.head >= userQueuePackets || u.bytes+n > userQueueBytes {
		u.mu.Unlock()
		u.counts.rxFull.Add(1)
		return
	}
	if u.head > 0 && len(u.packets) == cap(u.packets) {
		k := copy(u.packets, u.packets[u.head:])
		clear(u.packets[k:])
		u.packets, u.head = u.packets[:k], 0
	}
	first := len(u.packets) == u.head
	u.packets = append(u.packets, p.IncRef())
	u.bytes += n
	u.mu.Unlock()
	if first {
		signal(u.ready)
	}
}

// pop takes the next packet, which is the caller's; nil: there is none.
func (u *userPort) pop() *stack.PacketBuffer {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.head == len(u.packets) {
		return nil
	}
	p := u.packets[u.head]
	u.packets[u.head] = nil
	u.head++
	if u.head == len(u.packets) {
		u.packets, u.head = u.packets[:0], 0
	}
	u.bytes -= p.Size()
	return p
}

// close drops what waits and everything to come.
func (u *userPort) close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	for p := u.pop(); p != nil; p = u.pop() {
		p.DecRef()
	}
}

func (u *userPort) Send(_ context.Context, frames []frame) (int, error) {
	dropped := 0
	for i := range frames {
		if !u.send(&frames[i]) {
			frames[i].dropped = true
			dropped++
		}
	}
	return dropped, nil
}

// send hands one frame to the stack; false: it was dropped and counted.
func (u *userPort) send(f *frame) bool {
	switch {
	case f.n < netheader.EthernetMinimumSize:
		u.counts.short.Add(1)
		return false
	case f.n > netheader.EthernetMinimumSize+gsoMaxSize:
		u.counts.long.Add(1)
		return false
	}
	g := userCursor{bufs: f.bufs}
	var eth [netheader.EthernetMinimumSize]byte
	if g.read(eth[:]) != len(eth) {
		u.counts.short.Add(1)
		return false
	}
	if eth[6]&1 != 0 { // a group is nobody's source address
		u.counts.source.Add(1)
		return false
	}
	if string(eth[:6]) != string(userGatewayMAC) && eth[0]&1 == 0 {
		u.counts.ignored.Add(1) // for a neighbour, and there is none
		return true
	}
	protocol := tcpip.NetworkProtocolNumber(uint16(eth[12])<<8 | uint16(eth[13]))
	if protocol != netheader.IPv4ProtocolNumber && protocol != netheader.ARPProtocolNumber {
		u.counts.ignored.Add(1)
		return true
	}
	v := readPacket(&g, protocol, f.n-len(eth))
	if v == nil {
		u.counts.short.Add(1)
		return false
	}
	if protocol == netheader.IPv4ProtocolNumber && emptyRequest(v.AsSlice()) {
		v.Release()
		u.counts.short.Add(1)
		return false
	}
	if protocol == netheader.ARPProtocolNumber && !u.link.arpForUs(v.AsSlice()) {
		v.Release()
		u.counts.ignored.Add(1)
		return true
	}
	if protocol == netheader.IPv4ProtocolNumber {
		completeChecksum(v.AsSlice(), &f.hdr)
		if pings := u.link.pings; pings.takes(v.AsSlice()) {
			pings.send([6]byte(eth[6:12]), v.AsSlice())
			v.Release()
			return true
		}
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	u.link.dispatcher.DeliverNetworkPacket(protocol, p)
	p.DecRef()
	return true
}

// readPacket reads the packet of a frame that has n bytes yet, without what the frame is padded with: the stack would keep that, and
// account for the packet only. nil: it is shorter. Without the Ethernet header it fits the largest of the stack's pooled chunks.
func readPacket(g *userCursor, protocol tcpip.NetworkProtocolNumber, n int) *buffer.View {
	var head [netheader.IPv4MinimumSize]byte
	k := g.read(head[:min(n, len(head))])
	switch total := int(netheader.IPv4(head[:]).TotalLength()); {
	case protocol == netheader.ARPProtocolNumber:
		n = min(n, netheader.ARPSize)
	case total >= len(head):
		n = min(n, total)
	}
	v := buffer.NewViewSize(n)
	b := v.AsSlice()
	copy(b, head[:k])
	if k < min(n, len(head)) || g.read(b[k:]) != n-k {
		v.Release()
		return nil
	}
	return v
}

// emptyRequest tells whether an IPv4 packet is (the beginning of) a datagram without payload to one of the network's servers: the stack
// would queue any number of them, for it counts payload only.
func emptyRequest(b []byte) bool {
	ip := netheader.IPv4(b)
	if len(b) < netheader.IPv4MinimumSize || ip.Protocol() != uint8(netheader.UDPProtocolNumber) || ip.FragmentOffset() != 0 {
		return false
	}
	at := int(ip.HeaderLength())
	if len(b) < at+netheader.UDPMinimumSize {
		return false
	}
	udp := netheader.UDP(b[at:])
	return udp.Length() <= netheader.UDPMinimumSize && (udp.DestinationPort() == dnsPort || udp.DestinationPort() == dhcpPort)
}

// arpForUs tells whether the stack may see an ARP packet: it would claim every address.
func (l *userLink) arpForUs(b []byte) bool {
	h := netheader.ARP(b)
	if !h.IsValid() {
		return false
	}
	if h.Op() == netheader.ARPReply {
		return true
	}
	return l.ours(tcpip.AddrFrom4Slice(h.ProtocolAddressTarget()))
}

// ours tells whether a is an address that the stack answers for.
func (l *userLink) ours(a tcpip.Address) bool { return a == l.answers[0] || a == l.answers[1] }

func (u *userPort) Receive(frames []frame) (int, error) {
	guest := virtio.Features(u.link.guest.Load())
	n := 0
	for n < len(frames) {
		if !u.out.busy() {
			p := u.pop()
			if p == nil {
				break
			}
			u.out.start(p, guest)
		}
		if !u.out.next(&frames[n]) {
			u.counts.rxLong.Add(1)
			continue
		}
		n++
	}
	return n, nil
}

func (u *userPort) Wait(ctx context.Context) error {
	select {
	case <-u.ready:
		return nil
	default:
	}
	u.mu.Lock()
	waiting := len(u.packets) > u.head
	u.mu.Unlock()
	if waiting || u.out.busy() {
		return nil
	}
	select {
	case <-u.ready:
	case <-u.wake:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (u *userPort) Wake() { signal(u.wake) }

// add adds the counters to m.
func (c *userCounts) add(m map[string]uint64) {
	m["user_rx_dropped_full"] += c.rxFull.Load()
	m["user_rx_dropped_long"] += c.rxLong.Load()
	m["user_tx_dropped_long"] += c.long.Load()
	m["user_tx_dropped_short"] += c.short.Load()
	m["user_tx_dropped_source"] += c.source.Load()
	m["user_tx_ignored"] += c.ignored.Load()
}
