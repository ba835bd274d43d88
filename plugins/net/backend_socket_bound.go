package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// boundSocket is the own end of a back-end that speaks by datagrams. It stays while peers come and go.
type boundSocket struct {
	fd int
	to endpoint
	// connect makes the peer the only one that is sent to and received from; it can be repeated.
	connect func(ctx context.Context) error
}

// open has a connection for as long as the peer is there.
func (b *boundSocket) open(ctx context.Context, counts *socketCounters, lasts lasting) (*conn, error) {
	if err := b.connect(ctx); err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(uintptr(b.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return newConn(fd, &datagramWire{counts: counts, lasts: lasts}, b.to.String())
}

// newUDP sends from bind to connect. Nobody can tell whether the peer is there: the link is up once its name is known.
func newUDP(bind, connect endpoint) (peerSource, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(context.Background(), "udp", bind.address)
	if err != nil {
		return nil, bindError(bind, err)
	}
	fd, err := takeOver(pc)
	if err != nil {
		return nil, fmt.Errorf("socket: %v: %w", bind, err)
	}
	enlarge(fd)
	b := &boundSocket{fd: fd, to: connect, connect: func(ctx context.Context) error { return connectUDP(ctx, fd, connect.address) }}
	return &dialer{
		to: connect.String(), limit: retryFar,
		open:    func(ctx context.Context, counts *socketCounters) (*conn, error) { return b.open(ctx, counts, forever) },
		probe:   func() error { return nil },
		release: func() error { return os.NewSyscallError("close", unix.Close(fd)) },
	}, nil
}

// connectUDP resolves address in the family of fd and connects fd to it.
func connectUDP(ctx context.Context, fd int, address string) error {
	own, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	_, v6 := own.(*unix.SockaddrInet6)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	number, err := net.DefaultResolver.LookupPort(ctx, "udp", port)
	if err != nil {
		return cause(err)
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return cause(err)
	}
	err = fmt.Errorf("%s has no IPv4 address, and bind is one", host)
	for _, ip := range ips {
		var sa unix.Sockaddr
		ip4 := ip.IP.To4()
		switch {
		case v6: // an IPv4 address as ::ffff:a.b.c.d
			sa = &unix.SockaddrInet6{Port: number, Addr: [16]byte(ip.IP.To16()), ZoneId: zone(ip.Zone)}
		case ip4 != nil:
			sa = &unix.SockaddrInet4{Port: number, Addr: [4]byte(ip4)}
		default:
			continue
		}
		if err = unix.Connect(fd, sa); err == nil {
			return nil
		}
		err = os.NewSyscallError("connect", err)
	}
	return err
}

// zone is the index of the interface that a link-local address belongs to.
func zone(name string) uint32 {
	if i, err := net.InterfaceByName(name); err == nil {
		return uint32(i.Index) //nolint:gosec // G115: an index
	}
	return 0
}

// newUnixgram sends from the path own to the path peer. A socket that a dead process left at own is replaced.
func newUnixgram(own, peer string) (peerSource, error) {
	bind, connect := endpoint{"unixgram", own}, endpoint{"unixgram", peer}
	fd, err := bindUnixgram(own)
	if errors.Is(err, unix.EADDRINUSE) {
		if err = removeStale(own); err == nil {
			fd, err = bindUnixgram(own)
		}
	}
	if err != nil {
		return nil, bindError(bind, err)
	}
	enlarge(fd)
	var ours unix.Stat_t
	statErr := unix.Lstat(own, &ours)
	b := &boundSocket{fd: fd, to: connect, connect: func(context.Context) error {
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: peer}); err != nil {
			return dialError(os.NewSyscallError("connect", err))
		}
		return nil
	}}
	return &dialer{
		to: connect.String(), limit: retryLocal,
		open: func(ctx context.Context, counts *socketCounters) (*conn, error) {
			return b.open(ctx, counts, bySending)
		},
		// Nothing tells that the peer has gone or another one has taken its place, but connecting once more does.
		probe: func() error { return b.connect(context.Background()) },
		release: func() error {
			var now unix.Stat_t
			var errs []error
			if statErr == nil && unix.Lstat(own, &now) == nil && now.Dev == ours.Dev && now.Ino == ours.Ino {
				errs = append(errs, os.Remove(own))
			}
			return errors.Join(append(errs, os.NewSyscallError("close", unix.Close(fd)))...)
		},
	}, nil
}

func bindUnixgram(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = unix.Fchmod(fd, 0o600); err == nil { // becomes the path's mode: no moment at which others may send to it
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// removeStale removes a socket at path that no process has.
func removeStale(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New("there is already a file that is no socket: choose another path, or remove it")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd) //nolint:errcheck // only asked
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(path)
	}
	return unix.EADDRINUSE
}
