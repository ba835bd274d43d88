package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"
)

// pingNetwork puts this goroutine into a network of its own, in which everybody may ping, and the loopback interface has an address
// beside its own.
func pingNetwork(t *testing.T, address netip.Addr) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); errors.Is(err, unix.EPERM) {
		t.Skip("no network namespace of its own: run this test as root")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(s) }()
	up, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	up.SetUint16(unix.IFF_UP)
	alias, err := unix.NewIfreq("lo:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(alias.SetInet4Addr(address.AsSlice()), unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, up), unix.IoctlIfreq(s, unix.SIOCSIFADDR, alias)); err != nil {
		t.Fatal(err)
	}
}

func TestUserCarriesPingsOut(t *testing.T) {
	t.Parallel()
	to := netip.MustParseAddr("198.51.100.1")
	pingNetwork(t, to)
	u := newTestUser(t, &settings{})
	p := u.Port(0)
	for _, size := range []int{0, 56, 5000} {
		for range 2 {
			e := echoRequest(size)
			e[2], e[3] = checksumBytes(e)
			sendFrame(t, p, ethernet([]byte(userGatewayMAC), testGuestMAC[:], 0x0800, ipv4Packet(u.plan.guest, to, 1, e)), header{})
			b, _ := receiveFrame(t, p)
			want := echoRequest(size)
			want[0] = 0
			want[2], want[3] = checksumBytes(want)
			ip := netheader.IPv4(b[14:])
			if !bytes.Equal(b[34:], want) || !bytes.Equal(b[:6], testGuestMAC[:]) || ip.SourceAddress() != tcpAddress(to) ||
				ip.DestinationAddress() != tcpAddress(u.plan.guest) || !ip.IsChecksumValid() {
				t.Errorf("size %d: answer %x", size, b[:min(len(b), 64)])
			}
		}
	}
	// Fragments are not carried. Of too many at once the newest are.
	part := ipv4Packet(u.plan.guest, to, 1, echoRequest(56))
	part[6] = 0x20
	sendFrame(t, p, ethernet([]byte(userGatewayMAC), testGuestMAC[:], 0x0800, part), header{})
	for i := range 3 * maxPings {
		e := echoRequest(8)
		binary.BigEndian.PutUint16(e[4:], uint16(i))
		sendFrame(t, p, ethernet([]byte(userGatewayMAC), testGuestMAC[:], 0x0800, ipv4Packet(u.plan.guest, to, 1, e)), header{})
	}
	if s := u.Statistics(); s["user_pings_sent"] != 6+3*maxPings || s["user_pings_ignored"] != 1 {
		t.Errorf("%v", s)
	}
	u.link.pings.mu.Lock()
	defer u.link.pings.mu.Unlock()
	if n := len(u.link.pings.open); n > maxPings {
		t.Errorf("%d pings open", n)
	}
}
