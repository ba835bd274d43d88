package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// netEnds are the addresses of driver and peer, and the form of the frames between them.
type netEnds struct {
	driver, peer         [6]byte
	driverIP, peerIP     netip.Addr
	driverPort, peerPort uint16
	frameBytes           int
	// mark tells the run's own frames from all others.
	mark uint32
	// segment: frames are TCP segments longer than the MTU, for somebody else to cut. Otherwise they are UDP datagrams.
	segment bool
	// resolve: the peer's Ethernet address is to be asked for on the network.
	resolve bool
}

// Places in a frame.
const (
	ethernetHeader = 14
	ipv4Header     = 20
	udpHeader      = 8
	tcpHeader      = 20
	netMarkBytes   = 10 // mark, sequence number, pair
	etherTypeIPv4  = 0x0800
	etherTypeARP   = 0x0806
	protocolTCP    = 6
	protocolUDP    = 17
	// segmentBytes is the payload of each segment that a frame is cut into: that of an MTU of 1500 without TCP options.
	segmentBytes = 1460
	defaultMTU   = 1500
)

// ErrFrameTooLong says that the device cannot carry frames of the load's length.
var ErrFrameTooLong = errors.New("too long for the device")

// findNetEnds reads the device's configuration.
func findNetEnds(m *loopback.Machine, l NetLoad) (netEnds, error) {
	e := netEnds{
		driverIP: netip.AddrFrom4([4]byte{10, 255, 255, 2}), peerIP: netip.AddrFrom4([4]byte{10, 255, 255, 1}),
		driverPort: 40000, peerPort: 9, frameBytes: l.FrameBytes, mark: rand.Uint32(), //nolint:gosec // G404: no secret
	}
	f := m.Features()
	if f.Has(virtio.FNetMAC) {
		m.Device().ReadConfigAt(e.driver[:], virtio.NetConfigMAC)
	}
	e.peer = [6]byte{0x02, 0, 0, 0, 0, 1} // nobody's: where the host has a stack, it has nothing to do with these frames
	mtu := defaultMTU
	if f.Has(virtio.FNetMTU) {
		var b [2]byte
		m.Device().ReadConfigAt(b[:], virtio.NetConfigMTU)
		mtu = int(binary.LittleEndian.Uint16(b[:]))
	}
	if l.FrameBytes > mtu+ethernetHeader {
		e.segment = true
		need := map[NetPattern]virtio.Features{
			NetSend: virtio.FNetHostTSO4, NetReceive: virtio.FNetGuestTSO4, NetEcho: virtio.FNetHostTSO4 | virtio.FNetGuestTSO4,
		}[l.Pattern]
		if l.Returns {
			need = virtio.FNetHostTSO4 | virtio.FNetGuestTSO4
		}
		if !f.Has(need) {
			return e, fmt.Errorf("frame of %d bytes: %w: the MTU is %d, and TSO is not negotiated for this direction; shorter frames or a larger mtu do", l.FrameBytes, ErrFrameTooLong, mtu)
		}
	}
	if l.Peer != nil {
		return e, l.Peer.address(&e)
	}
	return e, nil
}

// markOffset is where a frame's mark begins.
func (e *netEnds) markOffset() int {
	if e.segment {
		return ethernetHeader + ipv4Header + tcpHeader
	}
	return ethernetHeader + ipv4Header + udpHeader
}

// frame makes a frame from the driver to the peer, or the other way.
func (e *netEnds) frame(toDriver bool, pair int) []byte {
	b := make([]byte, e.frameBytes)
	src, dst, srcIP, dstIP, srcPort, dstPort := e.driver, e.peer, e.driverIP, e.peerIP, e.driverPort, e.peerPort
	if toDriver {
		src, dst, srcIP, dstIP, srcPort, dstPort = e.peer, e.driver, e.peerIP, e.driverIP, e.peerPort, e.driverPort
	}
	srcPort += uint16(pair) //nolint:gosec // G115: few pairs; another flow each, so that a tap spreads them
	copy(b, dst[:])
	copy(b[6:], src[:])
	binary.BigEndian.PutUint16(b[12:], etherTypeIPv4)
	ip := b[ethernetHeader:]
	ip[0], ip[8], ip[9] = 0x45, 64, protocolUDP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip))) //nolint:gosec // G115: at most MaxFrame
	from, to := srcIP.As4(), dstIP.As4()
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	if e.segment {
		ip[9] = protocolTCP
	}
	binary.BigEndian.PutUint16(ip[10:], ^sum16(ip[:ipv4Header], 0))
	t := ip[ipv4Header:]
	binary.BigEndian.PutUint16(t, srcPort)
	binary.BigEndian.PutUint16(t[2:], dstPort)
	if e.segment {
		t[12], t[13] = tcpHeader/4<<4, 0x10                    // ACK
		t[14], t[15] = 0xff, 0xff                              // window
		pseudo := sum16(ip[12:20], protocolTCP+uint32(len(t))) //nolint:gosec // G115: at most MaxFrame
		binary.BigEndian.PutUint16(t[16:], pseudo)             // the rest is whoever cuts it
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t))) //nolint:gosec // G115: at most MaxFrame; no checksum
	}
	mark := b[e.markOffset():]
	binary.BigEndian.PutUint32(mark, e.mark)
	binary.BigEndian.PutUint16(mark[8:], uint16(pair)) //nolint:gosec // G115: few pairs
	for i := netMarkBytes; i < len(mark); i++ {
		mark[i] = byte(i)
	}
	return b
}

// header is the virtio_net_hdr of frame's frames.
func (e *netEnds) header() (h [virtio.NetHeaderSize]byte) {
	if !e.segment {
		return h
	}
	h[virtio.NetHeaderFlags], h[virtio.NetHeaderGSOType] = virtio.NetHeaderNeedsCSum, virtio.NetGSOTCPv4
	binary.LittleEndian.PutUint16(h[virtio.NetHeaderHdrLen:], ethernetHeader+ipv4Header+tcpHeader)
	binary.LittleEndian.PutUint16(h[virtio.NetHeaderGSOSize:], segmentBytes)
	binary.LittleEndian.PutUint16(h[virtio.NetHeaderCSumStart:], ethernetHeader+ipv4Header)
	binary.LittleEndian.PutUint16(h[virtio.NetHeaderCSumOffset:], 16)
	return h
}

// sum16 is the Internet checksum's sum of b with a start, folded.
func sum16(b []byte, start uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(b[0])<<8 | uint32(b[1])
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

// kind is what a received frame is, with the sequence number and the pair of the run's own.
func (e *netEnds) kind(b []byte) (seq uint32, pair uint16, own, arp bool) {
	if len(b) < MinFrame {
		return 0, 0, false, len(b) >= 42 && binary.BigEndian.Uint16(b[12:]) == etherTypeARP
	}
	kind := binary.BigEndian.Uint16(b[12:])
	if kind != etherTypeIPv4 {
		return 0, 0, false, kind == etherTypeARP
	}
	at := ethernetHeader + ipv4Header + udpHeader
	if b[ethernetHeader+9] == protocolTCP {
		at = ethernetHeader + ipv4Header + tcpHeader
	}
	m := b[at : at+netMarkBytes]
	return binary.BigEndian.Uint32(m[4:]), binary.BigEndian.Uint16(m[8:]), binary.BigEndian.Uint32(m) == e.mark, false
}
