package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

// ARP for Ethernet and IPv4 (RFC 826): operations and offsets in the frame.
const (
	arpRequest, arpReply        = 1, 2
	arpOperation                = 20
	arpSender, arpSenderIP      = 22, 28
	arpTarget, arpTargetIP      = 32, 38
	arpBytes, arpFrameBytes     = 42, 60
	noSlot                      = -1 // in byHead: the driver's own ARP frame
	hardwareEthernet, ipv4Bytes = 1, 4
)

func isARPRequest(b []byte) bool {
	return len(b) >= arpBytes && binary.BigEndian.Uint16(b[arpOperation:]) == arpRequest
}

// arpFrame asks or tells who has an address.
func (e *netEnds) arpFrame(operation uint16) []byte {
	b := make([]byte, arpFrameBytes)
	copy(b, bytes.Repeat([]byte{0xff}, 6))
	copy(b[6:], e.driver[:])
	binary.BigEndian.PutUint16(b[12:], etherTypeARP)
	binary.BigEndian.PutUint16(b[14:], hardwareEthernet)
	binary.BigEndian.PutUint16(b[16:], etherTypeIPv4)
	b[18], b[19] = 6, ipv4Bytes
	binary.BigEndian.PutUint16(b[arpOperation:], operation)
	copy(b[arpSender:], e.driver[:])
	from, to := e.driverIP.As4(), e.peerIP.As4()
	copy(b[arpSenderIP:], from[:])
	if operation == arpReply {
		copy(b[:6], e.peer[:])
		copy(b[arpTarget:], e.peer[:])
	}
	copy(b[arpTargetIP:], to[:])
	return b
}

// sendARP puts one frame into the transmit queue, unless the last one is still there.
func (p *netPair) sendARP(operation uint16) (added int) {
	if p.arpSending {
		return 0
	}
	b := p.run.m.Arena().Bytes(p.arp[0])
	clear(b)
	copy(b[p.headerBytes:], p.run.ends.arpFrame(operation))
	head, ok := p.tx.Add(p.arp, nil)
	if !ok {
		return 0
	}
	p.byHead[head], p.arpSending = noSlot, true
	return 1
}

// answer tells the peer the driver's address if it has asked. It returns how many frames it added.
func (p *netPair) answer() (added int) {
	if p.arpAsked.Load() {
		added = p.sendARP(arpReply)
		p.arpAsked.Store(added == 0)
	}
	return added
}

// resolve asks for the address of the peer until somebody answers.
func (p *netPair) resolve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for try := 0; ; try++ {
		if try%100 == 0 {
			p.sendARP(arpRequest)
			if err := p.kick(p.tx); err != nil {
				return err
			}
		}
		p.reapSent()
		for {
			head, written, ok := p.rx.Used()
			if !ok {
				break
			}
			i := p.byRxHead[head]
			b := p.buffers[i].b[:min(int(written), len(p.buffers[i].b))]
			found := len(b) >= p.headerBytes+arpBytes && p.run.ends.learn(b[p.headerBytes:])
			p.giveBack(i)
			if err := p.kick(p.rx); err != nil || found {
				return err
			}
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("nobody answers for %v on the device's network: %w", p.run.ends.peerIP, err)
		}
	}
}

// learn takes the peer's address from an ARP frame of its own.
func (e *netEnds) learn(b []byte) bool {
	ip := e.peerIP.As4()
	if binary.BigEndian.Uint16(b[12:]) != etherTypeARP || binary.BigEndian.Uint16(b[arpOperation:]) != arpReply || !bytes.Equal(b[arpSenderIP:arpSenderIP+4], ip[:]) {
		return false
	}
	copy(e.peer[:], b[arpSender:])
	return true
}

// rewrite gives the frames that were made before the peer's address was known their destination.
func (p *netPair) rewrite() {
	for _, s := range p.slots {
		copy(s.all[p.headerBytes:], p.run.ends.peer[:])
	}
}
