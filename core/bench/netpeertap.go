package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// tapPeer is the host's end of a tap interface: what the driver sends is counted by the interface, what it gets is made by a
// packet socket on it, and another one sends back.
type tapPeer struct {
	name   string
	index  int
	fd     int
	loop   peerLoop
	before interfaceCounts
	sink   bool
	frozen *netCounts
}

// NewTapPeer is the other end of the tap interface of that name, which exists. It needs CAP_NET_RAW in the network namespace.
func NewTapPeer(name string) (NetPeer, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return &tapPeer{name: name, index: i.Index, fd: -1}, nil
}

func (p *tapPeer) address(*netEnds) error { return nil }

func (p *tapPeer) start(pattern NetPattern, e netEnds, _ func() uint64) (err error) {
	p.frozen = nil
	if p.before, err = readInterface(p.name); err != nil {
		return err
	}
	if p.sink = pattern == NetSend; p.sink {
		return nil
	}
	if err := p.open(); err != nil {
		return fmt.Errorf("tap %s: packet socket: %w", p.name, err)
	}
	if pattern == NetReceive {
		p.loop.run(p.generate(e))
	} else {
		p.loop.run(p.echo(e))
	}
	return nil
}

// open makes a packet socket on the interface, with a header that tells of offloads.
func (p *tapPeer) open() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return call("socket", err)
	}
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8 // network byte order
	err = errors.Join(
		call("PACKET_VNET_HDR", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)),
		call("PACKET_QDISC_BYPASS", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)),
		call("PACKET_IGNORE_OUTGOING", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)),
		call("SO_RCVBUF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)),
		limit(fd),
		call("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: p.index})),
	)
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	p.fd = fd
	return nil
}

// generate sends frames; when the interface's queue is full it waits a moment and tries again.
func (p *tapPeer) generate(e netEnds) func() error {
	h := e.header()
	b := append(h[:virtio.NetHeaderLegacySize:virtio.NetHeaderLegacySize], e.frame(true, 0)...)
	mark := b[virtio.NetHeaderLegacySize+e.markOffset():]
	seq := uint32(0)
	return func() error {
		for n := range 64 {
			binary.BigEndian.PutUint32(mark[4:], seq)
			_, err := unix.Write(p.fd, b)
			switch {
			case errors.Is(err, unix.ENOBUFS) || nothing(err):
				p.loop.sent.Add(int64(n))
				time.Sleep(20 * time.Microsecond)
				return nil
			case err != nil:
				return fmt.Errorf("tap %s: send a frame: %w", p.name, err)
			}
			seq++
		}
		p.loop.sent.Add(64)
		return nil
	}
}

// echo returns the bench's frames.
func (p *tapPeer) echo(e netEnds) func() error {
	b := make([]byte, virtio.NetHeaderLegacySize+MaxFrame+64)
	var keep [6]byte
	return func() error {
		n, err := unix.Read(p.fd, b)
		if nothing(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("tap %s: receive a frame: %w", p.name, err)
		}
		f := b[min(n, virtio.NetHeaderLegacySize):n]
		if _, _, own, _ := e.kind(f); !own {
			return nil
		}
		copy(keep[:], f)
		copy(f, f[6:12])
		copy(f[6:], keep[:])
		p.loop.received.Add(1)
		for {
			_, err := unix.Write(p.fd, b[:n])
			if err == nil {
				p.loop.sent.Add(1)
				return nil
			}
			if p.loop.quit.Load() || !errors.Is(err, unix.ENOBUFS) && !nothing(err) {
				return fmt.Errorf("tap %s: send a frame back: %w", p.name, err)
			}
			time.Sleep(20 * time.Microsecond)
		}
	}
}

func (p *tapPeer) stop() error {
	if p.frozen != nil || p.fd < 0 {
		return nil
	}
	err := p.loop.stop()
	c := p.counts()
	p.frozen = &c
	err = errors.Join(err, unix.Close(p.fd))
	p.fd = -1
	return err
}

func (p *tapPeer) counts() netCounts {
	if p.frozen != nil {
		return *p.frozen
	}
	if !p.sink {
		return p.loop.counts()
	}
	now, err := readInterface(p.name)
	if err != nil {
		return netCounts{}
	}
	return netCounts{received: now.received - p.before.received}
}

func (p *tapPeer) Close() error { return p.stop() }

// interfaceCounts are what the kernel counts for an interface, from the interface's view.
type interfaceCounts struct{ received uint64 }

// readInterface reads them from /proc/self/net/dev, which is of the process's own network namespace.
func readInterface(name string) (interfaceCounts, error) {
	b, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return interfaceCounts{}, err
	}
	for line := range strings.Lines(string(b)) {
		label, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || strings.TrimSpace(label) != name || len(f) < 2 {
			continue
		}
		n, err := strconv.ParseUint(f[1], 10, 64)
		return interfaceCounts{n}, err
	}
	return interfaceCounts{}, fmt.Errorf("/proc/self/net/dev: no interface %s", name)
}
