package virtio

// Feature bits of network devices (5.1.3). "Guest" means the driver, "host" the device.
const (
	FNetCSum         Features = 1 << 0  // the driver may send packets with partial checksums
	FNetGuestCSum    Features = 1 << 1  // the driver takes packets with partial checksums
	FNetCtrlOffloads Features = 1 << 2  // VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
	FNetMTU          Features = 1 << 3  // the largest MTU is in the configuration space
	FNetMAC          Features = 1 << 5  // the address is in the configuration space
	FNetGuestTSO4    Features = 1 << 7  // the driver takes TSO over IPv4
	FNetGuestTSO6    Features = 1 << 8  // … over IPv6
	FNetGuestECN     Features = 1 << 9  // … with ECN
	FNetGuestUFO     Features = 1 << 10 // the driver takes UFO
	FNetHostTSO4     Features = 1 << 11 // the device takes TSO over IPv4
	FNetHostTSO6     Features = 1 << 12 // … over IPv6
	FNetHostECN      Features = 1 << 13 // … with ECN
	FNetHostUFO      Features = 1 << 14 // the device takes UFO
	FNetMrgRxBuf     Features = 1 << 15 // the driver can merge receive buffers
	FNetStatus       Features = 1 << 16 // the status is in the configuration space
	FNetCtrlVQ       Features = 1 << 17 // there is a control queue
	FNetCtrlRx       Features = 1 << 18 // control of the receive mode
	FNetCtrlVLAN     Features = 1 << 19 // VLAN filter
	FNetCtrlRxExtra  Features = 1 << 20 // more receive modes; Linux's name, reserved in the specification
	FNetAnnounce     Features = 1 << 21 // VIRTIO_NET_F_GUEST_ANNOUNCE
	FNetMQ           Features = 1 << 22 // several queue pairs
	FNetCtrlMACAddr  Features = 1 << 23 // the driver may set the address by a command
	FNetGuestUSO4    Features = 1 << 54 // the driver takes USO over IPv4 (1.3)
	FNetGuestUSO6    Features = 1 << 55 // … over IPv6
	FNetHostUSO      Features = 1 << 56 // the device takes USO
	FNetGuestHdrLen  Features = 1 << 59 // the driver gives an exact hdr_len
	FNetSpeedDuplex  Features = 1 << 63 // speed and duplex are in the configuration space
)

// Layout of the configuration space of network devices (5.1.4): offsets in bytes.
const (
	NetConfigMAC      = 0
	NetConfigStatus   = 6
	NetConfigMaxPairs = 8
	NetConfigMTU      = 10
	NetConfigSpeed    = 12
	NetConfigDuplex   = 16
	NetConfigSize     = 17
)

// Bits of the configuration space's status.
const (
	NetStatusLinkUp   = 1
	NetStatusAnnounce = 2
)

// Values of the configuration space's speed and duplex.
const (
	NetSpeedUnknown  = 0xffffffff
	NetDuplexFull    = 1
	NetDuplexUnknown = 0xff
)

// The packet header, virtio_net_hdr (5.1.6): offsets and sizes in bytes.
const (
	NetHeaderFlags      = 0
	NetHeaderGSOType    = 1
	NetHeaderHdrLen     = 2
	NetHeaderGSOSize    = 4
	NetHeaderCSumStart  = 6
	NetHeaderCSumOffset = 8
	NetHeaderNumBuffers = 10
	// NetHeaderSize is the header's size with VIRTIO_F_VERSION_1 or VIRTIO_NET_F_MRG_RXBUF, NetHeaderLegacySize without both (5.1.6.1).
	NetHeaderSize       = 12
	NetHeaderLegacySize = 10
)

// Flags of the packet header.
const (
	NetHeaderNeedsCSum = 1
	NetHeaderDataValid = 2
)

// Kinds of segmentation offload of the packet header.
const (
	NetGSONone  = 0
	NetGSOTCPv4 = 1
	NetGSOUDP   = 3 // UFO
	NetGSOTCPv6 = 4
	NetGSOUDPL4 = 5 // USO
	NetGSOECN   = 0x80
)

// Classes and commands of the control queue (5.1.6.5).
const (
	NetCtrlRx         = 0
	NetCtrlRxPromisc  = 0
	NetCtrlRxAllMulti = 1
	NetCtrlRxAllUni   = 2
	NetCtrlRxNoMulti  = 3
	NetCtrlRxNoUni    = 4
	NetCtrlRxNoBcast  = 5

	NetCtrlMAC         = 1
	NetCtrlMACTableSet = 0
	NetCtrlMACAddrSet  = 1

	NetCtrlVLAN    = 2
	NetCtrlVLANAdd = 0
	NetCtrlVLANDel = 1

	NetCtrlAnnounce    = 3
	NetCtrlAnnounceAck = 0

	NetCtrlMQ         = 4
	NetCtrlMQPairsSet = 0

	NetCtrlOffloads    = 5
	NetCtrlOffloadsSet = 0
)

// Answers of the control queue.
const (
	NetCtrlOK  = 0
	NetCtrlErr = 1
)
