package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// userPeer is a program of the host with a UDP socket, that the driver reaches through the address translation of back-end
// user, at the address which stands for the host.
type userPeer struct {
	fd    int
	port  uint16
	loop  peerLoop
	from  unix.Sockaddr // whom the last datagram came from: the plugin's own socket
	drops uint64
}

// NewUserPeer makes a socket on 127.0.0.1.
func NewUserPeer() (NetPeer, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, call("socket", err)
	}
	err = errors.Join(
		limit(fd), call("bind", unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})),
		call("SO_RCVBUF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)),
	)
	name, err2 := unix.Getsockname(fd)
	if err := errors.Join(err, call("getsockname", err2)); err != nil {
		return nil, errors.Join(fmt.Errorf("UDP socket: %w", err), unix.Close(fd))
	}
	p := &userPeer{fd: fd}
	if a, ok := name.(*unix.SockaddrInet4); ok {
		p.port = uint16(a.Port) //nolint:gosec // G115: a port
	}
	return p, nil
}

// Addresses of back-end user's default network.
func (p *userPeer) address(e *netEnds) error {
	e.driverIP, e.peerIP = netip.AddrFrom4([4]byte{192, 168, 127, 2}), netip.AddrFrom4([4]byte{192, 168, 127, 254})
	e.peerPort, e.resolve = p.port, true
	return nil
}

func (p *userPeer) start(pattern NetPattern, e netEnds, received func() uint64) error {
	p.drops = p.socketDrops()
	b := make([]byte, MaxFrame)
	offset := ethernetHeader + ipv4Header + udpHeader
	switch pattern {
	case NetSend:
		p.loop.run(func() error {
			_, err := p.read(b)
			return err
		})
	case NetEcho:
		p.loop.run(func() error {
			n, err := p.read(b)
			if n == 0 || err != nil {
				return err
			}
			if err := unix.Sendto(p.fd, b[:n], 0, p.from); err != nil && !nothing(err) && !errors.Is(err, unix.ECONNREFUSED) {
				return call("sendto", err)
			}
			p.loop.sent.Add(1)
			return nil
		})
	case NetReceive:
		p.loop.run(p.generate(e.frame(true, 0)[offset:], received))
	}
	return nil
}

// read takes a datagram; 0: there was none.
func (p *userPeer) read(b []byte) (int, error) {
	n, from, err := unix.Recvfrom(p.fd, b, 0)
	if nothing(err) {
		return 0, nil
	} else if err != nil {
		return 0, call("recvfrom", err)
	}
	p.from = from
	p.loop.received.Add(1)
	return n, nil
}

// generate sends datagrams once it knows to whom. Nothing holds a sender of datagrams up, so it keeps only so many on their way as fit
// the buffer of a socket.
func (p *userPeer) generate(payload []byte, received func() uint64) func() error {
	const onTheWay = 64 << 10 // bytes; a third of a socket's usual buffer, which counts more than the payload
	window := int64(max(2, onTheWay/(len(payload)+512)))
	seq, gone, last, since := uint32(0), int64(0), int64(0), time.Now()
	b := make([]byte, MaxFrame)
	return func() error {
		if p.from == nil || seq == 0 {
			n, err := p.read(b)
			p.loop.received.Store(0)
			if n == 0 {
				return err
			}
		}
		got := int64(received()) //nolint:gosec // G115: a count
		if got != last {
			last, since = got, time.Now()
		}
		if p.loop.sent.Load()-gone-got >= window {
			if time.Since(since) > 10*time.Millisecond { // those are lost
				gone, since = p.loop.sent.Load()-got, time.Now()
			}
			time.Sleep(10 * time.Microsecond)
			return nil
		}
		for range min(window, 16) {
			binary.BigEndian.PutUint32(payload[4:], seq)
			if err := unix.Sendto(p.fd, payload, 0, p.from); err != nil {
				if nothing(err) || errors.Is(err, unix.ENOBUFS) {
					return nil
				}
				return call("sendto", err)
			}
			seq++
			p.loop.sent.Add(1)
		}
		return nil
	}
}

func (p *userPeer) stop() error { return p.loop.stop() }

func (p *userPeer) counts() netCounts {
	c := p.loop.counts()
	if d := p.socketDrops(); d > p.drops {
		c.dropped = d - p.drops
	}
	return c
}

// socketDrops is what the kernel has dropped because a socket's buffer was full: the peer's own, and the plugin's that
// leads to it.
func (p *userPeer) socketDrops() (sum uint64) {
	b, err := os.ReadFile("/proc/self/net/udp")
	if err != nil {
		return 0
	}
	ours := fmt.Sprintf(":%04X", p.port)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 13 || !strings.HasSuffix(f[1], ours) && !strings.HasSuffix(f[2], ours) {
			continue
		}
		n, err := strconv.ParseUint(f[12], 10, 64)
		if err == nil {
			sum += n
		}
	}
	return sum
}

func (p *userPeer) Close() error { return errors.Join(p.stop(), unix.Close(p.fd)) }
