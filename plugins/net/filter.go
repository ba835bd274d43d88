package main

import (
	"encoding/binary"
	"net"

	"github.com/virtplug/virtplug/sdk/virtio"
)

const (
	// addressMax is how many addresses a table of the driver keeps (VIRTIO_NET_CTRL_MAC_TABLE_SET); arbitrary, what QEMU has. With
	// more, all addresses of the table's kind pass.
	addressMax = 64
	// filterBytes is how much of a frame the filter looks at: addresses, type, VLAN tag.
	filterBytes  = 18
	etherHeader  = 14
	etherTypeTag = 0x8100 // IEEE 802.1Q
	vlanIDs      = 4096
)

// macAddress is an Ethernet address.
type macAddress [6]byte

func (m macAddress) String() string { return net.HardwareAddr(m[:]).String() }

func (m macAddress) multicast() bool { return m[0]&1 != 0 }

// Receive modes (5.1.6.5.1), a bit for each command: 1 << VIRTIO_NET_CTRL_RX_*.
const (
	modePromisc  = 1 << virtio.NetCtrlRxPromisc
	modeAllMulti = 1 << virtio.NetCtrlRxAllMulti
	modeAllUni   = 1 << virtio.NetCtrlRxAllUni
	modeNoMulti  = 1 << virtio.NetCtrlRxNoMulti
	modeNoUni    = 1 << virtio.NetCtrlRxNoUni
	modeNoBcast  = 1 << virtio.NetCtrlRxNoBcast
	modesAll     = 1<<(virtio.NetCtrlRxNoBcast+1) - 1
)

// addressTable is one of the driver's tables of addresses.
type addressTable struct {
	// all: there were more than fit.
	all   bool
	count int
	addrs [addressMax]macAddress
}

func (t *addressTable) has(m macAddress) bool {
	if t.all {
		return true
	}
	for i := range t.count {
		if t.addrs[i] == m {
			return true
		}
	}
	return false
}

// vlanSet is a set of VLAN IDs.
type vlanSet [vlanIDs / 64]uint64

func (s *vlanSet) has(id uint16) bool { return s[id%vlanIDs/64]&(1<<(id%64)) != 0 }
func (s *vlanSet) add(id uint16)      { s[id%vlanIDs/64] |= 1 << (id % 64) }
func (s *vlanSet) remove(id uint16)   { s[id%vlanIDs/64] &^= 1 << (id % 64) }

// filter decides which frames the driver gets (5.1.6.5.1 to 5.1.6.5.3). As devices do, it lets everything pass until the driver
// turns the promiscuous mode off.
type filter struct {
	mac        macAddress
	modes      byte
	uni, multi addressTable
	vlans      vlanSet
	// vlanFilter: VIRTIO_NET_F_CTRL_VLAN was negotiated.
	vlanFilter bool
}

// wants takes the first bytes of a frame of n bytes.
func (f *filter) wants(b *[filterBytes]byte, n int) bool {
	if f.modes&modePromisc != 0 {
		return true
	}
	if f.vlanFilter && n >= filterBytes && binary.BigEndian.Uint16(b[12:]) == etherTypeTag {
		// ID 0 is a priority without a VLAN.
		if id := binary.BigEndian.Uint16(b[14:]) % vlanIDs; id != 0 && !f.vlans.has(id) {
			return false
		}
	}
	to := macAddress(b[:6])
	switch {
	case to == macAddress{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		return f.modes&modeNoBcast == 0
	case to.multicast():
		return f.modes&modeNoMulti == 0 && (f.modes&modeAllMulti != 0 || f.multi.has(to))
	default:
		return f.modes&modeNoUni == 0 && (f.modes&modeAllUni != 0 || to == f.mac || f.uni.has(to))
	}
}
