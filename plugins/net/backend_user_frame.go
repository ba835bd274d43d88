package main

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// userCursor reads bufs from their beginning, each byte once.
type userCursor struct {
	bufs [][]byte
	// i and off are the place of the next byte.
	i, off int
}

// read fills p as far as there are bytes.
func (g *userCursor) read(p []byte) int {
	n := 0
	for n < len(p) && g.i < len(g.bufs) {
		k := copy(p[n:], g.bufs[g.i][g.off:])
		n += k
		if g.off += k; g.off == len(g.bufs[g.i]) {
			g.i, g.off = g.i+1, 0
		}
	}
	return n
}

// write fills bufs with p as far as there is room.
func (g *userCursor) write(p []byte) {
	for len(p) > 0 && g.i < len(g.bufs) {
		k := copy(g.bufs[g.i][g.off:], p)
		p = p[k:]
		if g.off += k; g.off == len(g.bufs[g.i]) {
			g.i, g.off = g.i+1, 0
		}
	}
}

// completeChecksum makes up the checksum that the driver left to us in an IPv4 packet, as far as the stack looks at it: it takes TCP's
// and UDP's as they are (see Capabilities), but checks ICMP's.
func completeChecksum(packet []byte, h *header) {
	if h[virtio.NetHeaderFlags]&virtio.NetHeaderNeedsCSum == 0 {
		return
	}
	ip := netheader.IPv4(packet)
	if len(packet) < netheader.IPv4MinimumSize || ip.Protocol() == uint8(netheader.TCPProtocolNumber) || ip.Protocol() == uint8(netheader.UDPProtocolNumber) {
		return
	}
	start := int(binary.LittleEndian.Uint16(h[virtio.NetHeaderCSumStart:])) - netheader.EthernetMinimumSize
	at := start + int(binary.LittleEndian.Uint16(h[virtio.NetHeaderCSumOffset:]))
	if start < netheader.IPv4MinimumSize || at > len(packet)-2 {
		return
	}
	binary.BigEndian.PutUint16(packet[at:], ^checksum.Checksum(packet[start:], 0))
}

// userSegmenter makes frames for the driver out of one packet of the stack: the packet itself, or TCP segments of it (as
// VIRTIO_NET_F_GUEST_TSO4 would have the driver do) where the driver does not take it whole.
type userSegmenter struct {
	p     *stack.PacketBuffer
	guest virtio.Features

	// head are the packet's headers, tcp among them where it leaves work to us.
	head     [netheader.EthernetMinimumSize + netheader.IPv4MaximumHeaderSize + netheader.TCPHeaderMaximumSize]byte
	ip, tcp  int // where in head IP's and TCP's headers begin
	headSize int
	partial  bool // the packet leaves its checksum to us

	// view and at are the place of the next payload byte, size is how many there are yet, step how many a frame takes.
	view       *buffer.View
	at         int
	size, step int
	frames     int
}

// busy tells whether there is more of the present packet.
func (s *userSegmenter) busy() bool { return s.p != nil }

// start takes p over. guest are the offloads that the driver takes.
func (s *userSegmenter) start(p *stack.PacketBuffer, guest virtio.Features) {
	s.p, s.guest, s.frames = p, guest, 0
	list, at := p.AsViewList()
	s.view, s.at = list.Front(), at
	s.headSize = 0
	s.partial = p.GSOOptions.Type == stack.GSOTCPv4 && p.GSOOptions.NeedsCsum && p.HeaderSize() <= len(s.head)
	if s.partial {
		s.headSize = p.HeaderSize()
		s.copy(s.head[:s.headSize])
		s.ip = netheader.EthernetMinimumSize
		s.tcp = s.ip + len(p.NetworkHeader().Slice())
	}
	s.size = p.Size() - s.headSize
	s.step = s.size
	if mss := int(p.GSOOptions.MSS); s.partial && mss > 0 && s.size > mss && !guest.Has(virtio.FNetGuestTSO4) {
		s.step = mss
	}
}

// end gives the packet back.
func (s *userSegmenter) end() {
	s.p.DecRef()
	s.p, s.view = nil, nil
}

// copy fills p with the next payload bytes.
func (s *userSegmenter) copy(p []byte) {
	for n := 0; n < len(p) && s.view != nil; {
		k := copy(p[n:], s.skip())
		n += k
		s.at += k
	}
}

// skip returns what is left of the present view, or of the next one that has something.
func (s *userSegmenter) skip() []byte {
	for s.view != nil {
		if b := s.view.AsSlice(); s.at < len(b) {
			return b[s.at:]
		}
		s.at -= s.view.Size()
		s.view = s.view.Next()
	}
	return nil
}

// next makes the next frame. false: it does not fit, and the packet is dropped.
func (s *userSegmenter) next(f *frame) bool {
	n := min(s.step, s.size)
	room := 0
	for _, b := range f.bufs {
		room += len(b)
	}
	if room < s.headSize+n {
		s.end()
		return false
	}
	f.n, f.hdr = s.headSize+n, header{}
	if s.partial {
		s.finishHead(f, n)
	} else if s.guest.Has(virtio.FNetGuestCSum) {
		f.hdr[virtio.NetHeaderFlags] = virtio.NetHeaderDataValid
	}
	g := userCursor{bufs: f.bufs}
	g.write(s.head[:s.headSize])
	for left := n; left > 0; {
		b := s.skip()
		if len(b) == 0 {
			break
		}
		b = b[:min(left, len(b))]
		g.write(b)
		s.at += len(b)
		left -= len(b)
	}
	s.size -= n
	s.frames++
	if s.size <= 0 {
		s.end()
	}
	return true
}

// finishHead makes the headers those of the frame with the next n bytes, and f's header what the driver has yet to do.
func (s *userSegmenter) finishHead(f *frame, n int) {
	ip, tcp := netheader.IPv4(s.head[s.ip:s.tcp]), netheader.TCP(s.head[s.tcp:s.headSize])
	tcpSize := uint16(s.headSize - s.tcp + n) //nolint:gosec // G115: below gsoMaxSize
	if s.step < s.size || s.frames > 0 {
		s.divide(ip, tcp, n)
	}
	pseudo := netheader.PseudoHeaderChecksum(netheader.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), tcpSize)
	if !s.guest.Has(virtio.FNetGuestCSum) {
		tcp.SetChecksum(0)
		tcp.SetChecksum(^tcp.CalculateChecksum(s.sum(pseudo, n)))
		return
	}
	tcp.SetChecksum(pseudo)
	f.hdr[virtio.NetHeaderFlags] = virtio.NetHeaderNeedsCSum
	put := func(at, v int) {
		binary.LittleEndian.PutUint16(f.hdr[at:], uint16(v)) //nolint:gosec // G115: offsets in the head and gVisor's own uint16
	}
	put(virtio.NetHeaderCSumStart, s.tcp)
	put(virtio.NetHeaderCSumOffset, netheader.TCPChecksumOffset)
	if mss := int(s.p.GSOOptions.MSS); mss > 0 && n > mss {
		f.hdr[virtio.NetHeaderGSOType] = virtio.NetGSOTCPv4
		put(virtio.NetHeaderHdrLen, s.headSize)
		put(virtio.NetHeaderGSOSize, mss)
	}
}

// divide makes the headers those of one segment: the first one's are adapted, each later one's are made of the former's.
func (s *userSegmenter) divide(ip netheader.IPv4, tcp netheader.TCP, n int) {
	flags := netheader.TCPFlags(s.p.TransportHeader().Slice()[netheader.TCPFlagsOffset])
	if n < s.size {
		flags &^= netheader.TCPFlagFin | netheader.TCPFlagPsh
	}
	tcp.SetFlags(uint8(flags))
	if s.frames > 0 {
		tcp.SetSequenceNumber(tcp.SequenceNumber() + uint32(s.step)) //nolint:gosec // G115: the MSS
		ip.SetID(ip.ID() + 1)
	}
	ip.SetTotalLength(uint16(s.headSize - s.ip + n)) //nolint:gosec // G115: below gsoMaxSize
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
}

// sum adds the next n payload bytes to a checksum without going on to them.
func (s *userSegmenter) sum(initial uint16, n int) uint16 {
	var c checksum.Checksumer
	view, at := s.view, s.at
	for n > 0 {
		b := s.skip()
		if len(b) == 0 {
			break
		}
		b = b[:min(n, len(b))]
		c.Add(b)
		s.at += len(b)
		n -= len(b)
	}
	s.view, s.at = view, at
	return checksum.Combine(initial, c.Checksum())
}

// tcpAddress is a as the stack has it.
func tcpAddress(a interface{ As4() [4]byte }) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }
