package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
)

const (
	// maxSocketPath is the longest path of a unix socket: sun_path less its NUL.
	maxSocketPath = 107
	// maxUDPMTU is the longest packet that a datagram of UDP over IPv4 (65507 bytes) has with an Ethernet header and a VLAN tag.
	maxUDPMTU = 65507 - minFrame - 4
)

// endpoint is an address of the settings connect and bind: "NETWORK:ADDRESS".
type endpoint struct{ network, address string }

func (e endpoint) String() string { return e.network + ":" + e.address }

// datagram tells whether both ends have an address.
func (e endpoint) datagram() bool { return e.network == "udp" || e.network == "unixgram" }

// socketSource understands the settings of the back-end and opens the own end:
//
//	listen = PATH                                     waits for a peer at a unix stream socket
//	connect = "unix:PATH"                             … goes to a peer there
//	bind = "tcp:HOST:PORT", connect = "tcp:HOST:PORT" the same by TCP
//	connect = "seqpacket:PATH"                        … goes to a peer at a unix socket of this type
//	bind and connect = "udp:HOST:PORT"                from bind to connect, by datagrams
//	bind and connect = "unixgram:PATH"                the same
func socketSource(cfg *settings) (peerSource, error) {
	if cfg.QueuePairs > 1 {
		return nil, sdk.SettingError("queue_pairs", "%d: back-end socket has one connection, and so one pair of queues", cfg.QueuePairs)
	}
	connect, err := parseEndpoint("connect", cfg.Connect)
	if err != nil {
		return nil, err
	}
	bind, err := parseEndpoint("bind", cfg.Bind)
	if err != nil {
		return nil, err
	}
	if err := checkEnds(cfg, connect, bind); err != nil {
		return nil, err
	}
	switch {
	case cfg.Listen.UnixListener != nil:
		return &acceptor{l: cfg.Listen.UnixListener}, nil
	case connect.network == "":
		return listenTCP(bind)
	case connect.network == "udp":
		return newUDP(bind, connect)
	case connect.network == "unixgram":
		return newUnixgram(bind.address, connect.address)
	}
	return newDialer(connect), nil
}

// parseEndpoint understands one end; the zero endpoint if text is empty.
func parseEndpoint(setting, text string) (endpoint, error) {
	if text == "" {
		return endpoint{}, nil
	}
	network, address, _ := strings.Cut(text, ":")
	e := endpoint{network, address}
	var err error
	switch network {
	case "unix", "unixgram", "seqpacket":
		err = checkPath(address)
	case "tcp", "udp":
		err = checkHostPort(setting, e)
	default:
		err = errors.New(`want "unix:PATH", "tcp:HOST:PORT", "udp:HOST:PORT", "unixgram:PATH" or "seqpacket:PATH"`)
	}
	if err != nil {
		return endpoint{}, sdk.SettingError(setting, "%q: %w", text, err)
	}
	return e, nil
}

func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("the path is missing")
	case len(path) > maxSocketPath:
		return fmt.Errorf("the path has %d bytes, a socket's has at most %d: choose a shorter one", len(path), maxSocketPath)
	case strings.ContainsRune(path, 0):
		return errors.New("a path has no NUL")
	}
	return nil
}

func checkHostPort(setting string, e endpoint) error {
	host, port, err := net.SplitHostPort(e.address)
	if err != nil {
		return fmt.Errorf(`want "%s:HOST:PORT", an IPv6 address in brackets: %w`, e.network, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q: want a number from 1 to 65535", port)
	}
	ip := net.ParseIP(host)
	switch {
	case host == "" && setting == "connect":
		return errors.New("the host is missing: 127.0.0.1 is this one")
	case ip.IsMulticast():
		return errors.New("groups are not supported: want the address of one peer")
	case ip.IsUnspecified() && setting == "connect":
		return errors.New("is no peer's address: 127.0.0.1 is this host")
	}
	return nil
}

// checkEnds refuses combinations that make no connection, and says which do.
func checkEnds(cfg *settings, connect, bind endpoint) error {
	listen := cfg.Listen.UnixListener != nil
	switch {
	case !listen && connect.network == "" && bind.network == "":
		return sdk.SettingError("backend", `socket: no peer: give listen = "PATH" to wait for one, connect = "unix:PATH" to go to it, or connect or bind = "tcp:HOST:PORT"; by datagrams both, connect = "udp:HOST:PORT" and bind = "udp:HOST:PORT" (or "unixgram:PATH")`)
	case listen && connect.network != "":
		return sdk.SettingError("connect", "there is listen too: one waits for the peer, the other goes to it: leave one of them out")
	case listen && bind.network != "":
		return sdk.SettingError("bind", "there is listen too, and one peer: leave one of them out")
	case bind.network == "unix":
		return sdk.SettingError("bind", "to wait at a unix stream socket write listen = %q", bind.address)
	case bind.network == "seqpacket":
		return sdk.SettingError("bind", "seqpacket can only connect: to wait at a unix socket write listen = %q, and connect = %q in the peer", bind.address, "unix:"+bind.address)
	case connect.datagram() && bind.network == "":
		return sdk.SettingError("connect", "a peer by %s sends to an address of ours: add bind = %q", connect.network, example(connect.network))
	case bind.datagram() && connect.network == "":
		return sdk.SettingError("bind", "by %s the peer's address must be known: add connect = %q", bind.network, example(bind.network))
	case connect.network != "" && bind.network != "" && connect.network != bind.network:
		return sdk.SettingError("bind", "%q, but connect = %q: both ends are of one kind", bind, connect)
	case connect.network == "tcp" && bind.network == "tcp":
		return sdk.SettingError("bind", "there is connect too: bind waits for the peer, connect goes to it: leave one of them out")
	case connect.network != "" && connect == bind:
		return sdk.SettingError("connect", "%q is the own end, bind, too: the peer has another address", connect)
	case connect.network == "udp" && cfg.MTU > maxUDPMTU:
		return sdk.SettingError("mtu", "%d: a datagram of UDP has room for packets up to %d", cfg.MTU, maxUDPMTU)
	}
	return nil
}

func example(network string) string {
	if network == "unixgram" {
		return "unixgram:PATH"
	}
	return network + ":HOST:PORT"
}

// listenTCP waits for peers by TCP.
func listenTCP(bind endpoint) (peerSource, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", bind.address)
	if err != nil {
		return nil, bindError(bind, err)
	}
	return &acceptor{l: l}, nil
}

// bindError says what to do about an own end that cannot be had.
func bindError(bind endpoint, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		hint = ": another program has it: stop that or choose another one"
	case errors.Is(err, unix.ENOENT):
		hint = ": make its folder first"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		hint = ": this host has no such address; without HOST it is any"
	case errors.Is(err, unix.EACCES):
		hint = ": choose one that this user may use (ports from 1024 on)"
	}
	return sdk.SettingError("bind", "%q: %w%s", bind, cause(err), hint)
}

// cause is what the system said, without Go's description of what was tried.
func cause(err error) error {
	if e := unix.Errno(0); errors.As(err, &e) {
		return e
	}
	if e := (*net.DNSError)(nil); errors.As(err, &e) {
		return e
	}
	return err
}

// newDialer goes to a peer that listens.
func newDialer(to endpoint) *dialer {
	network, limit := to.network, retryLocal
	switch network {
	case "tcp":
		limit = retryFar
	case "seqpacket":
		network = "unixpacket"
	}
	return &dialer{to: to.String(), limit: limit, open: func(ctx context.Context, counts *socketCounters) (*conn, error) {
		d := net.Dialer{Timeout: dialPatience}
		nc, err := d.DialContext(ctx, network, to.address)
		if err != nil {
			return nil, dialError(err)
		}
		return streamConn(nc, to.String(), counts)
	}}
}

// dialError says what may be wrong, where waiting does not help.
func dialError(err error) error {
	switch c := cause(err); {
	case errors.Is(c, unix.EPROTOTYPE):
		return fmt.Errorf("%w: that socket is of another type (unix, unixgram, seqpacket)", c)
	case errors.Is(c, unix.EACCES):
		return fmt.Errorf("%w: check who may use it", c)
	default:
		return c
	}
}
