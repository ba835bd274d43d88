package main

import (
	"fmt"

	"github.com/virtplug/virtplug/sdk/virtio"
)

const (
	// hostOffloads and guestOffloads are those from and to the driver that the device knows (5.1.3).
	hostOffloads = virtio.FNetCSum | virtio.FNetHostTSO4 | virtio.FNetHostTSO6 | virtio.FNetHostECN | virtio.FNetHostUFO | virtio.FNetHostUSO
	// guestOffloads are also the bits of VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET (5.1.6.5.6).
	guestOffloads = virtio.FNetGuestCSum | guestSegmentation | virtio.FNetGuestECN
	// guestSegmentation are those with which a packet to the driver may be longer than its MTU.
	guestSegmentation = virtio.FNetGuestTSO4 | virtio.FNetGuestTSO6 | virtio.FNetGuestUFO | virtio.FNetGuestUSO4 | virtio.FNetGuestUSO6
	// guestSegmentationQueue is the shortest queue that guest segmentation offload is offered with: with Linux's mergeable buffers of
	// 1536 bytes, 64 of them hold the longest packet.
	guestSegmentationQueue = 64
)

// dependency says that a feature needs one of others (5.1.3.1).
type dependency struct {
	feature virtio.Features
	oneOf   virtio.Features
	name    string
}

// dependencies are in an order in which a removal shows in what follows.
func dependencies() []dependency {
	const tcp, guestTCP = virtio.FNetHostTSO4 | virtio.FNetHostTSO6, virtio.FNetGuestTSO4 | virtio.FNetGuestTSO6
	return []dependency{
		{virtio.FNetGuestTSO4, virtio.FNetGuestCSum, "GUEST_TSO4 needs GUEST_CSUM"},
		{virtio.FNetGuestTSO6, virtio.FNetGuestCSum, "GUEST_TSO6 needs GUEST_CSUM"},
		{virtio.FNetGuestECN, guestTCP, "GUEST_ECN needs GUEST_TSO4 or GUEST_TSO6"},
		{virtio.FNetGuestUFO, virtio.FNetGuestCSum, "GUEST_UFO needs GUEST_CSUM"},
		{virtio.FNetGuestUSO4, virtio.FNetGuestCSum, "GUEST_USO4 needs GUEST_CSUM"},
		{virtio.FNetGuestUSO6, virtio.FNetGuestCSum, "GUEST_USO6 needs GUEST_CSUM"},
		{virtio.FNetHostTSO4, virtio.FNetCSum, "HOST_TSO4 needs CSUM"},
		{virtio.FNetHostTSO6, virtio.FNetCSum, "HOST_TSO6 needs CSUM"},
		{virtio.FNetHostECN, tcp, "HOST_ECN needs HOST_TSO4 or HOST_TSO6"},
		{virtio.FNetHostUFO, virtio.FNetCSum, "HOST_UFO needs CSUM"},
		{virtio.FNetHostUSO, virtio.FNetCSum, "HOST_USO needs CSUM"},
		{virtio.FNetCtrlRx, virtio.FNetCtrlVQ, "CTRL_RX needs CTRL_VQ"},
		{virtio.FNetCtrlRxExtra, virtio.FNetCtrlVQ, "CTRL_RX_EXTRA needs CTRL_VQ"},
		{virtio.FNetCtrlVLAN, virtio.FNetCtrlVQ, "CTRL_VLAN needs CTRL_VQ"},
		{virtio.FNetAnnounce, virtio.FNetCtrlVQ, "GUEST_ANNOUNCE needs CTRL_VQ"},
		{virtio.FNetMQ, virtio.FNetCtrlVQ, "MQ needs CTRL_VQ"},
		{virtio.FNetCtrlMACAddr, virtio.FNetCtrlVQ, "CTRL_MAC_ADDR needs CTRL_VQ"},
		{virtio.FNetCtrlOffloads, virtio.FNetCtrlVQ, "CTRL_GUEST_OFFLOADS needs CTRL_VQ"},
	}
}

// consistent is f without what lacks what it needs; wrong says what was left out.
func consistent(f virtio.Features) (ok virtio.Features, wrong []string) {
	for _, d := range dependencies() {
		if f.Has(d.feature) && f&d.oneOf == 0 {
			f &^= d.feature
			wrong = append(wrong, "VIRTIO_NET_F_"+d.name)
		}
	}
	return f, wrong
}

// offered are the features of a device with these settings on a back-end that offers o.
func offered(cfg *settings, o offer, mtu int) virtio.Features {
	f := virtio.FNetMAC | virtio.FNetStatus | virtio.FNetMrgRxBuf | virtio.FNetCtrlVQ | virtio.FNetCtrlRx | virtio.FNetCtrlRxExtra |
		virtio.FNetCtrlVLAN | virtio.FNetCtrlMACAddr | virtio.FNetAnnounce | virtio.FNetGuestHdrLen
	if mtu > 0 {
		f |= virtio.FNetMTU
	}
	if cfg.QueuePairs > 1 {
		f |= virtio.FNetMQ
	}
	if cfg.Speed > 0 {
		f |= virtio.FNetSpeedDuplex
	}
	if cfg.Offload {
		f |= o.Host&hostOffloads | o.Guest&guestOffloads
	}
	if cfg.QueueSize < guestSegmentationQueue {
		f &^= guestSegmentation
	}
	f, _ = consistent(f) // a back-end may offer what needs what it lacks
	if f&guestOffloads != 0 {
		f |= virtio.FNetCtrlOffloads
	}
	return f
}

// accepted is what a driver's features mean. What a modern driver accepts against the rules is refused (2.2.2, 5.1.3.1); a legacy
// one cannot be told, so what lacks its ground does not count.
func accepted(f virtio.Features) (virtio.Features, error) {
	f, wrong := consistent(f)
	if len(wrong) > 0 && f.Has(virtio.FVersion1) {
		return 0, fmt.Errorf("the driver accepted features that do not go together: %v (VIRTIO 1.2, 5.1.3.1)", wrong)
	}
	return f, nil
}

// headerSize is the size of a packet's header (5.1.6.1).
func headerSize(f virtio.Features) int {
	if f&(virtio.FVersion1|virtio.FNetMrgRxBuf) == 0 {
		return virtio.NetHeaderLegacySize
	}
	return virtio.NetHeaderSize
}
