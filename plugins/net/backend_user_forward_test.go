package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
)

// freePort is a port of the host that nothing has at the moment.
func freePort(tb testing.TB, network string) string {
	tb.Helper()
	if network == "udp" {
		c, err := net.ListenPacket(network, "127.0.0.1:0") //nolint:noctx // closed at once
		if err != nil {
			tb.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return strconv.Itoa(c.LocalAddr().(*net.UDPAddr).Port) //nolint:forcetypeassert // UDP
	}
	l, err := net.Listen(network, "127.0.0.1:0") //nolint:noctx // closed at once
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port) //nolint:forcetypeassert // TCP
}

func TestUserForwardsPortsOfTheHost(t *testing.T) {
	t.Parallel()
	for _, restrict := range []bool{false, true} {
		tcpPort, udpPort := freePort(t, "tcp"), freePort(t, "udp")
		u := newTestUser(t, &settings{Restrict: restrict, Forward: []string{"tcp:" + tcpPort + ":80", "udp:127.0.0.1:" + udpPort + ":53"}})
		g := newGuest(t, u, guestOptions{})
		l, err := g.listen(80)
		if err != nil {
			t.Fatal(err)
		}
		go func() { // an echo server in the guest
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}()
			}
		}()
		pc, err := g.udp(53, netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		go echoUDP(pc)

		var d net.Dialer
		for range 3 {
			c, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:"+tcpPort)
			if err != nil {
				t.Fatal(err)
			}
			echoStream(t, c, 3<<20)
			k, err := d.DialContext(t.Context(), "udp", "127.0.0.1:"+udpPort)
			if err != nil {
				t.Fatal(err)
			}
			echoed(t, k, 0, 1, 1000, 20000)
			_ = k.Close()
		}
		_ = l.Close()
		_ = pc.Close()
	}
}

// echoStream sends size bytes over c, ends, and expects them back.
func echoStream(t *testing.T, c net.Conn, size int) {
	t.Helper()
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	_, _ = rand.Read(want)
	go func() {
		_, _ = c.Write(want)
		if h, ok := c.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back as %d, %v", size, len(got), err)
	}
}

func TestUserForwardsExactlyTheAddressNamed(t *testing.T) {
	t.Parallel()
	for address, reach := range map[string]map[string]bool{
		"0.0.0.0": {"127.0.0.1": true, "127.0.0.2": true, "::1": false},
		"::":      {"127.0.0.1": false, "::1": true},
		"::1":     {"127.0.0.1": false, "::1": true},
	} {
		for _, network := range []string{"tcp", "udp"} {
			p := freePort(t, network)
			b, err := newUser(&sdk.Env{Log: hclog.NewNullLogger()}, &settings{Forward: []string{network + ":[" + address + "]:" + p + ":7"}}, testGuestMAC, nil)
			if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Logf("%s: no IPv6 here: %v", address, err)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for to, want := range reach {
				var lc net.ListenConfig // what is free can be taken
				var c io.Closer
				if network == "tcp" {
					c, err = lc.Listen(t.Context(), network, net.JoinHostPort(to, p))
				} else {
					c, err = lc.ListenPacket(t.Context(), network, net.JoinHostPort(to, p))
				}
				if taken := errors.Is(err, unix.EADDRINUSE); taken != want && !errors.Is(err, unix.EADDRNOTAVAIL) {
					t.Errorf("%s:%s: %s is taken: %v (%v), want %v", network, address, to, taken, err, want)
				}
				if err == nil {
					_ = c.Close()
				}
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestUserResetsWhatTheGuestDoesNotAccept(t *testing.T) {
	t.Parallel()
	p := freePort(t, "tcp")
	u := newTestUser(t, &settings{Forward: []string{"tcp:" + p + ":80"}})
	newGuest(t, u, guestOptions{}) // nothing listens there
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:"+p)
	if errors.Is(err, unix.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v: want a reset", err)
	}
}

func TestUserRestrictedLetsNothingOut(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{Restrict: true})
	u.names.servers = func() (*dns.ClientConfig, error) {
		t.Error("a name was looked up")
		return nil, errors.New("none")
	}
	g := newGuest(t, u, guestOptions{})
	l, addr := hostListener(t, u)
	go func() {
		if c, err := l.Accept(); err == nil {
			t.Error("the guest came out")
			_ = c.Close()
		}
	}()
	if c, err := g.dial(addr); err == nil {
		t.Errorf("connected to %v", c.RemoteAddr())
	}
	if r := g.query(t, "tcp", "example.com.", dns.TypeA); r.Rcode != dns.RcodeRefused {
		t.Errorf("DNS: %v", r)
	}
	if r := g.query(t, "udp", "host.virtplug.internal.", dns.TypeA); len(r.Answer) != 1 {
		t.Errorf("DNS: %v", r)
	}
}

func TestUserRefusesWhatLeadsNowhere(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	g := newGuest(t, u, guestOptions{})
	l, addr := hostListener(t, u)
	_ = l.Close()
	for _, a := range []netip.AddrPort{
		addr, // nothing listens there any more
		netip.AddrPortFrom(u.plan.gateway, 80),
		netip.MustParseAddrPort("169.254.169.254:80"),
		netip.MustParseAddrPort("240.0.0.1:80"),
	} {
		if c, err := g.dial(a); err == nil {
			t.Errorf("%v: connected to %v", a, c.RemoteAddr())
		} else if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: no answer", a)
		}
	}
}
