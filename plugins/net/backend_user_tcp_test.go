package main

import (
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// hostListener is a TCP server on the host's 127.0.0.1, and the address under which the guest sees it.
func hostListener(tb testing.TB, u *user) (net.Listener, netip.AddrPort) {
	tb.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	a, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	return l, netip.AddrPortFrom(u.plan.host, a.Port())
}

func TestUserCarriesTCPBothWays(t *testing.T) {
	t.Parallel()
	all := virtio.FNetGuestCSum | virtio.FNetGuestTSO4
	for name, opt := range map[string]guestOptions{
		"no offloads, small MTU":    {mtu: 1500},
		"no offloads, large MTU":    {},
		"all offloads, small MTU":   {mtu: 1500, host: true, offloads: all},
		"all offloads, large MTU":   {host: true, offloads: all},
		"checksums only, small MTU": {mtu: 1500, offloads: virtio.FNetGuestCSum},
		"all offloads, odd MTU":     {mtu: 577, host: true, offloads: all},
		"segmented by us, odd MTU":  {mtu: 777},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newTestUser(t, &settings{MTU: int(opt.mtu)})
			g := newGuest(t, u, opt)
			l, addr := hostListener(t, u)
			size := 2<<20 + 12345
			if opt.mtu == 0 {
				size = 12<<20 + 12345
			}
			data := make([]byte, size)
			_, _ = rand.Read(data)
			sums := make(chan [32]byte, 2)
			go func() { // the host's server: sends the data, and takes what comes
				c, err := l.Accept()
				if err != nil {
					t.Errorf("accept: %v", err)
					return
				}
				defer func() { _ = c.Close() }()
				done := make(chan struct{})
				go func() {
					defer close(done)
					_, _ = c.Write(data)
					if tc, ok := c.(*net.TCPConn); ok {
						_ = tc.CloseWrite()
					}
				}()
				h := sha256.New()
				if n, err := io.Copy(h, c); err != nil || n != int64(size) {
					t.Errorf("host: %d bytes, %v: want %d", n, err, size)
				}
				<-done
				sums <- [32]byte(h.Sum(nil))
			}()
			c, err := g.dial(addr)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = c.Write(data)
				_ = c.CloseWrite()
			}()
			h := sha256.New()
			if n, err := io.Copy(h, c); err != nil || n != int64(size) {
				t.Errorf("guest: %d bytes, %v: want %d", n, err, size)
			}
			sums <- [32]byte(h.Sum(nil))
			want := sha256.Sum256(data)
			for range 2 {
				if got := <-sums; got != want {
					t.Error("the bytes that arrived are not those that were sent")
				}
			}
			_ = c.Close()
			t.Logf("largest %d, tso %d, frames %d, %v", g.largest, g.tso, g.received, u.Statistics())
		})
	}
}
