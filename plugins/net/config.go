package main

import (
	"math/bits"

	"github.com/virtplug/virtplug/sdk"
)

// settings are the device's settings. Those of one back-end are refused by the others.
type settings struct {
	Backend    string   `config:"backend" default:"user" oneof:"user|tap|socket|loopback|null" help:"What the device is connected to: a network of its own behind the host's (user), an interface of the host (tap), another program (socket), itself (loopback), nothing (null)."`
	MAC        string   `config:"mac" help:"The device's address, such as 52:54:00:12:34:56. Default: one of its own, the same in every run on this host of a VM that has a name."`
	MTU        int      `config:"mtu" default:"0" min:"0" max:"65520" help:"The largest IP packet in bytes, which the driver is told (VIRTIO_NET_F_MTU); 0: what the back-end takes."`
	QueuePairs int      `config:"queue_pairs" default:"1" min:"1" max:"16" help:"How many pairs of virtqueues, each served by threads of its own (VIRTIO_NET_F_MQ). Linux uses as many as it has processors."`
	QueueSize  int      `config:"queue_size" default:"256" min:"2" max:"1024" help:"Entries of a virtqueue, a power of two."`
	Offload    bool     `config:"offload" default:"true" help:"Offer checksum and segmentation offloads as far as the back-end has them."`
	Link       bool     `config:"link" default:"true" help:"Whether the link is up when the VM starts; the command link changes it."`
	Speed      int      `config:"speed" default:"0" min:"0" max:"2147483647" help:"The link's speed in Mbit/s that the driver is told; 0: none. It limits nothing."`
	Capture    sdk.File `config:"capture" file:"write,create" help:"A file for what the device sends and receives, in the format pcapng, which Wireshark opens; it is emptied at the start of the VM."`

	RxBandwidth sdk.Size `config:"rx_bandwidth" default:"0" help:"Bytes a second that the driver may receive; 0: no limit."`
	TxBandwidth sdk.Size `config:"tx_bandwidth" default:"0" help:"Bytes a second that the driver may send; 0: no limit."`
	RxPackets   int      `config:"rx_packets" default:"0" min:"0" help:"Packets a second that the driver may receive; 0: no limit."`
	TxPackets   int      `config:"tx_packets" default:"0" min:"0" help:"Packets a second that the driver may send; 0: no limit."`
	RxBurst     sdk.Size `config:"rx_burst" default:"0" help:"Bytes that rx_bandwidth lets pass at once after a pause; 0: a tenth of it, at least 64 KiB."`
	TxBurst     sdk.Size `config:"tx_burst" default:"0" help:"Bytes that tx_bandwidth lets pass at once after a pause; 0: a tenth of it, at least 64 KiB."`

	// Back-end user.
	Subnet   string   `config:"subnet" help:"The guest's network, for back-end user; 192.168.127.0/24 if none is given. The guest gets its address .2, the gateway is .1, and .254 is the host."`
	Forward  []string `config:"forward" help:"Ports of the host that lead to the guest, for back-end user: \"tcp:8080:80\", \"udp:127.0.0.1:5353:53\". Without an address it is 127.0.0.1; port 0 takes a free one and tells which."`
	Restrict bool     `config:"restrict" default:"false" help:"Back-end user: the guest reaches nothing but the gateway's own services and what is forwarded to it."`

	// Back-end tap.
	Tap     sdk.Tap  `config:"tap" tap:"queue_pairs=queue_pairs,bridge=bridge,addresses=address,mtu=mtu" help:"The interface of back-end tap, an existing one or a new one; \"vp%d\" takes the first free number."`
	Bridge  string   `config:"bridge" help:"The host's bridge that the interface of back-end tap is attached to."`
	Address []string `config:"address" help:"The host's addresses on the interface of back-end tap, such as \"192.168.19.1/24\"."`

	// Back-end socket.
	Listen  sdk.Listener `config:"listen" help:"Path of a unix stream socket to wait for a peer at, for back-end socket."`
	Connect string       `config:"connect" path:"unix:|unixgram:|seqpacket:" help:"The peer of back-end socket: \"unix:PATH\", \"tcp:HOST:PORT\" (streams framed as QEMU and passt do), \"udp:HOST:PORT\", \"unixgram:PATH\", \"seqpacket:PATH\" (a frame each datagram)."`
	Bind    string       `config:"bind" path:"unixgram:" help:"Where back-end socket waits for its peer, as connect: \"tcp:HOST:PORT\", or the own end of \"udp:…\" and \"unixgram:…\"."`
}

// check finds what is wrong whatever the back-end is, and settings of another back-end than the chosen one.
func (s *settings) check() error {
	if bits.OnesCount(uint(s.QueueSize)) != 1 {
		return sdk.SettingError("queue_size", "%d is not a power of two", s.QueueSize)
	}
	if s.MTU != 0 && s.MTU < mtuMin {
		return sdk.SettingError("mtu", "%d is less than the %d that IPv4 needs (0: what the back-end takes)", s.MTU, mtuMin)
	}
	for _, b := range []struct {
		given     bool
		attribute string
		backend   string
	}{
		{s.Subnet != "", "subnet", "user"},
		{len(s.Forward) > 0, "forward", "user"},
		{s.Restrict, "restrict", "user"},
		{s.Tap.Name != "", "tap", "tap"},
		{s.Bridge != "", "bridge", "tap"},
		{len(s.Address) > 0, "address", "tap"},
		{s.Listen.UnixListener != nil, "listen", "socket"},
		{s.Connect != "", "connect", "socket"},
		{s.Bind != "", "bind", "socket"},
	} {
		if b.given && b.backend != s.Backend {
			return sdk.SettingError(b.attribute, "%s is a setting of back-end %s, and the back-end is %s: set backend = %q, or leave it out",
				b.attribute, b.backend, s.Backend, b.backend)
		}
	}
	return nil
}
