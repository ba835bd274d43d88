package tap_test

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/tap"
	"github.com/virtplug/virtplug/core/tap/taptest"
)

// A plugin has the descriptors, and the kernel asks for no privilege of who changes an interface by one.
func TestWhatAPluginDoesToTheInterfaceIsUndone(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	persistent(t, "mine", netlink.TUNTAP_MODE_TAP, 0, 0)
	for name, persist := range map[string]int{"new": 1, "mine": 0} {
		a := open(t, tap.Config{Name: name})
		if err := unix.IoctlSetInt(a.Queues[0], unix.TUNSETPERSIST, persist); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	if exists("new") || !exists("mine") {
		t.Errorf("interfaces %v: want the persistent one and not the new one", names(t))
	}
}

// A plugin may detach all queues: what it did must be undone by those.
func TestWhatAPluginDoesIsUndoneThoughItDetachedTheQueues(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	persistent(t, "mine", netlink.TUNTAP_MODE_TAP, netlink.TUNTAP_MULTI_QUEUE, 0)
	for name, persist := range map[string]int{"new": 1, "mine": 0} {
		a := open(t, tap.Config{Name: name, Queues: 2})
		if err := unix.IoctlSetInt(a.Queues[0], unix.TUNSETPERSIST, persist); err != nil {
			t.Fatal(err)
		}
		for _, fd := range a.Queues {
			ifr, err := unix.NewIfreq("")
			if err != nil {
				t.Fatal(err)
			}
			ifr.SetUint16(unix.IFF_DETACH_QUEUE)
			if err := unix.IoctlIfreq(fd, unix.TUNSETQUEUE, ifr); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	if exists("new") || !exists("mine") {
		t.Errorf("interfaces %v: want the persistent one and not the new one", names(t))
	}
}

func TestAnInterfaceThatWasDownKeepsItsAddresses(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	persistent(t, "mine", netlink.TUNTAP_MODE_TAP, 0, 0)
	for _, text := range []string{"10.0.0.1/24", "fd00::5/64"} {
		a, err := netlink.ParseAddr(text)
		if err == nil {
			err = netlink.AddrAdd(link(t, "mine"), a)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a := open(t, tap.Config{Name: "mine", Addresses: []string{"fd00:19::1/64"}})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if got := addresses(t, "mine"); !slices.Equal(got, []string{"10.0.0.1/24", "fd00::5/64"}) {
		t.Errorf("addresses %v", got)
	}
}

// Some programs, User-Mode Linux among them, take an interface's header as 10 bytes long, as it is at first.
func TestAnExistingInterfaceKeepsItsHeader(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	for _, flags := range []netlink.TuntapFlag{0, netlink.TUNTAP_MULTI_QUEUE} {
		persistent(t, "mine", netlink.TUNTAP_MODE_TAP, flags, 0)
		a := open(t, tap.Config{Name: "mine"})
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ifr, err := unix.NewIfreq("mine")
		if err != nil {
			t.Fatal(err)
		}
		attach := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if flags&netlink.TUNTAP_MULTI_QUEUE != 0 {
			attach |= unix.IFF_MULTI_QUEUE
		}
		ifr.SetUint16(attach)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ); err != nil || n != 10 {
			t.Errorf("the next program finds headers of %d bytes, %v", n, err)
		}
		if err := errors.Join(unix.Close(fd), netlink.LinkDel(link(t, "mine"))); err != nil {
			t.Fatal(err)
		}
	}
}

// What the kernel will refuse is told by a check too, not only when the VM starts.
func TestProbeTellsWhatAnUnprivilegedUserMayNot(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	persistent(t, "mine", netlink.TUNTAP_MODE_TAP, 0, uint32(os.Getuid())) //nolint:gosec // G115: a user's number
	if os.Getuid() == 0 {
		persistent(t, "other", netlink.TUNTAP_MODE_TAP, 0, 1000)
	}
	if err := netlink.AddrAdd(link(t, "mine"), &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 0, 1).To4(), Mask: net.CIDRMask(24, 32)}}); err != nil {
		t.Fatal(err)
	}
	bridge(t, "br0")
	unprivileged(t, func() {
		for _, tc := range []struct {
			config tap.Config
			field  tap.Field
			want   string
		}{
			{tap.Config{Name: "mine", Addresses: []string{"10.0.0.1/24", "10.0.1.1/24"}}, tap.FieldAddresses, "`ip address add 10.0.1.1/24 dev mine`"},
			{tap.Config{Name: "mine", MTU: 4000}, tap.FieldMTU, "`ip link set mine mtu 4000`"},
			{tap.Config{Name: "mine", Bridge: "br0"}, tap.FieldBridge, "`ip link set mine master br0`"},
			{tap.Config{Name: "other"}, tap.FieldName, "it belongs to user"},
		} {
			if !exists(tc.config.Name) {
				continue
			}
			for what, f := range map[string]func() error{
				"Open":  func() error { _, err := tap.Open(tc.config); return err },
				"Probe": func() error { return tap.Probe(tc.config) },
			} {
				all := tap.Errors(f())
				if len(all) != 1 || all[0].Field != tc.field || !strings.Contains(all[0].Error(), tc.want) {
					t.Errorf("%s %+v: %v: want field %d, %q", what, tc.config, all, tc.field, tc.want)
				}
			}
		}
		if err := tap.Probe(tap.Config{Name: "mine", MTU: 1500, Addresses: []string{"10.0.0.1/24"}}); err != nil {
			t.Error(err)
		}
	})
}
