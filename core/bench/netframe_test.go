package bench

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

func testEnds(frameBytes int, segment bool) netEnds {
	return netEnds{
		driver: [6]byte{2, 0, 0, 0, 0, 2}, peer: [6]byte{2, 0, 0, 0, 0, 1}, driverPort: 40000, peerPort: 9, mark: 0xfeed_beef,
		driverIP: netip.MustParseAddr("10.0.0.2"), peerIP: netip.MustParseAddr("10.0.0.1"), frameBytes: frameBytes, segment: segment,
	}
}

// The frames are what a host's network takes: lengths and checksums are right, and the mark is where it is looked for.
func TestFramesAreGoodPacketsAndAreKnownAgain(t *testing.T) {
	t.Parallel()
	for _, segment := range []bool{false, true} {
		for _, n := range []int{MinFrame, 1514, MaxFrame} {
			for _, toDriver := range []bool{false, true} {
				e := testEnds(n, segment)
				b := e.frame(toDriver, 3)
				ip := b[ethernetHeader:]
				if got := int(binary.BigEndian.Uint16(ip[2:])); len(b) != n || got != n-ethernetHeader {
					t.Errorf("%d bytes: frame of %d, packet of %d", n, len(b), got)
				}
				if sum := sum16(ip[:ipv4Header], 0); sum != 0xffff {
					t.Errorf("%d bytes: IP checksum: sum %#x", n, sum)
				}
				if [6]byte(b) != map[bool][6]byte{false: e.peer, true: e.driver}[toDriver] {
					t.Errorf("%d bytes: to % x", n, b[:6])
				}
				binary.BigEndian.PutUint32(b[e.markOffset()+4:], 77)
				if seq, pair, own, arp := e.kind(b); seq != 77 || pair != 3 || !own || arp {
					t.Errorf("%d bytes, segment %v: number %d, pair %d, own %v, ARP %v", n, segment, seq, pair, own, arp)
				}
				e.mark++
				if _, _, own, _ := e.kind(b); own {
					t.Errorf("%d bytes: another run's frame is its own", n)
				}
				for cut := range MinFrame { // whatever is received
					e.kind(b[:cut])
				}
			}
		}
	}
	h := testEndsHeader(true)
	if h[0] != 1 || h[1] != 1 || h[2] != 54 {
		t.Errorf("header % x", h)
	}
	if plain := testEndsHeader(false); plain != [12]byte{} {
		t.Errorf("header % x", plain)
	}
}

func testEndsHeader(segment bool) [12]byte {
	e := testEnds(9000, segment)
	return e.header()
}

func TestThePeersAddressIsLearnedFromItsOwnAnswerOnly(t *testing.T) {
	t.Parallel()
	asking, peer := testEnds(MinFrame, false), testEnds(MinFrame, false)
	peer.driver, peer.peer = [6]byte{2, 9, 9, 9, 9, 9}, asking.driver
	peer.driverIP, peer.peerIP = asking.peerIP, asking.driverIP
	if request := asking.arpFrame(arpRequest); !isARPRequest(request) || asking.learn(request) {
		t.Error("an own request is taken for an answer")
	}
	other := peer
	other.driverIP = netip.MustParseAddr("10.0.0.9")
	if asking.learn(other.arpFrame(arpReply)) {
		t.Error("somebody else's answer is taken")
	}
	reply := peer.arpFrame(arpReply)
	if _, _, own, arp := asking.kind(reply[:arpBytes]); own || !arp {
		t.Error("an ARP frame is not known")
	}
	if !asking.learn(reply) || asking.peer != peer.driver {
		t.Errorf("learned % x", asking.peer)
	}
}
