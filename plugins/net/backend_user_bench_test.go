package main

import (
	"io"
	"net"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// BenchmarkUserTCP moves bytes between a guest's stack (gVisor's too, on the same processors) and a socket of the host.
func BenchmarkUserTCP(b *testing.B) {
	all := guestOptions{host: true, trust: true, offloads: virtio.FNetGuestCSum | virtio.FNetGuestTSO4}
	for _, c := range []struct {
		name string
		opt  guestOptions
		mtu  uint32
	}{
		{"mtu=65520,offloads=all", all, 65520},
		{"mtu=65520,offloads=none", guestOptions{}, 65520},
		{"mtu=1500,offloads=all", all, 1500},
		{"mtu=1500,offloads=none", guestOptions{}, 1500},
	} {
		for _, out := range []bool{true, false} {
			name := c.name + ",way=in"
			if out {
				name = c.name + ",way=out"
			}
			b.Run(name, func(b *testing.B) {
				u := newTestUser(b, &settings{MTU: int(c.mtu)})
				g := newGuest(b, u, c.opt)
				l, addr := hostListener(b, u)
				conns := make(chan net.Conn, 1)
				go func() {
					h, err := l.Accept()
					if err != nil {
						b.Errorf("accept: %v", err)
					}
					conns <- h
				}()
				guest, err := g.dial(addr)
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = guest.Close() }()
				host := <-conns
				defer func() { _ = host.Close() }()
				from, to := host, net.Conn(guest)
				if out {
					from, to = to, from
				}
				const size = 1 << 20
				b.SetBytes(size)
				b.ReportAllocs()
				b.ResetTimer()
				go func() {
					data := make([]byte, size)
					for range b.N {
						if _, err := from.Write(data); err != nil {
							b.Errorf("write: %v", err)
							return
						}
					}
				}()
				buf := make([]byte, size)
				for range b.N {
					if _, err := io.ReadFull(to, buf); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				if n := u.Statistics()["user_rx_dropped_full"]; n > 0 {
					b.ReportMetric(float64(n), "dropped")
				}
			})
		}
	}
}
