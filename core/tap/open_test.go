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

// open opens what must be possible; it is closed at the end.
func open(t *testing.T, c tap.Config) *tap.Tap {
	t.Helper()
	got, err := tap.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := got.Close(); err != nil {
			t.Error(err)
		}
	})
	return got
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	return l
}

func exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// addresses are the interface's, without IPv6's link-local ones.
func addresses(t *testing.T, name string) []string {
	t.Helper()
	list, err := netlink.AddrList(link(t, name), netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range list {
		if !a.IP.IsLinkLocalUnicast() {
			out = append(out, a.IPNet.String())
		}
	}
	slices.Sort(out)
	return out
}

func add(t *testing.T, l netlink.Link) {
	t.Helper()
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
}

func bridge(t *testing.T, name string) netlink.Link {
	t.Helper()
	add(t, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}})
	return link(t, name)
}

// persistent makes an interface as `ip tuntap add` does.
func persistent(t *testing.T, name string, mode netlink.TuntapMode, flags netlink.TuntapFlag, owner uint32) {
	t.Helper()
	l := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: mode, Flags: netlink.TUNTAP_NO_PI | flags, Owner: owner}
	if flags&netlink.TUNTAP_MULTI_QUEUE != 0 {
		l.Queues = 1
	}
	add(t, l)
	for _, f := range l.Fds {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestANewInterfaceIsAsConfiguredAndGoesAtTheEnd(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	first := open(t, tap.Config{Name: "vp%d", Queues: 2, MTU: 9000, Addresses: []string{"192.168.19.1/24", "fd00:19::1/64"}})
	second := open(t, tap.Config{Name: "vp%d"})
	if first.Name != "vp0" || second.Name != "vp1" || !first.Made || len(first.Queues) != 2 || len(second.Queues) != 1 {
		t.Fatalf("%+v, %+v", first, second)
	}
	l := link(t, "vp0").Attrs()
	if l.MTU != 9000 || first.MTU != 9000 || second.MTU != 1500 || l.Flags&net.FlagUp == 0 || l.Index != first.Index {
		t.Errorf("%+v", l)
	}
	if got := addresses(t, "vp0"); !slices.Equal(got, []string{"192.168.19.1/24", "fd00:19::1/64"}) {
		t.Errorf("addresses %v", got)
	}
	if l, err := net.Listen("tcp6", "[fd00:19::1]:0"); err != nil { //nolint:noctx // a test's own
		t.Errorf("the IPv6 address is not usable at once: %v", err)
	} else if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, fd := range first.Queues {
		if f, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || f&unix.O_NONBLOCK == 0 {
			t.Errorf("descriptor %d: flags %#x, %v: want O_NONBLOCK", fd, f, err)
		}
		if n, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ); err != nil || n != 12 {
			t.Errorf("header of %d bytes, %v", n, err)
		}
	}
	for range 2 {
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}
	if exists("vp0") || !exists("vp1") {
		t.Error("vp0 is still there, or vp1 went with it")
	}
}

func TestAnInterfaceLivesAsLongAsAnyDescriptor(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	a := open(t, tap.Config{Name: "vp0", Addresses: []string{"192.168.19.1/24"}})
	fd, err := unix.FcntlInt(uintptr(a.Queues[0]), unix.F_DUPFD_CLOEXEC, 0) // a plugin's
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if !exists("vp0") {
		t.Error("gone too early")
	}
	if err := unix.Close(fd); err != nil || exists("vp0") {
		t.Errorf("still there (%v)", err)
	}
}

func TestABridgeGetsTheInterface(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	br := bridge(t, "br0")
	a := open(t, tap.Config{Name: "vp0", Bridge: "br0"})
	l := link(t, "vp0").Attrs()
	if l.MasterIndex != br.Attrs().Index || l.HardwareAddr[0] != 0xfe {
		t.Errorf("%+v", l)
	}
	if err := a.Close(); err != nil || !exists("br0") {
		t.Errorf("%v", err)
	}
}

func TestAnExistingInterfaceIsLeftAsItWas(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	for _, flags := range []netlink.TuntapFlag{0, netlink.TUNTAP_MULTI_QUEUE} {
		persistent(t, "mine", netlink.TUNTAP_MODE_TAP, flags, 0)
		l := link(t, "mine")
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 0, 1).To4(), Mask: net.CIDRMask(24, 32)}}); err != nil {
			t.Fatal(err)
		}
		before := link(t, "mine").Attrs()
		a := open(t, tap.Config{Name: "mine", MTU: 4000, Addresses: []string{"10.0.0.1/24", "192.168.19.1/24"}})
		if a.Made || a.MTU != 4000 || a.Index != before.Index {
			t.Errorf("%+v", a)
		}
		if got := addresses(t, "mine"); !slices.Equal(got, []string{"10.0.0.1/24", "192.168.19.1/24"}) {
			t.Errorf("addresses %v", got)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		after := link(t, "mine").Attrs()
		if after.MTU != before.MTU || after.Flags&net.FlagUp != 0 || after.Index != before.Index {
			t.Errorf("before %+v, after %+v", before, after)
		}
		if got := addresses(t, "mine"); !slices.Equal(got, []string{"10.0.0.1/24"}) {
			t.Errorf("addresses %v", got)
		}
		bridge(t, "br0")
		b := open(t, tap.Config{Name: "mine", Bridge: "br0"})
		if link(t, "mine").Attrs().MasterIndex == 0 {
			t.Error("not attached")
		}
		if err := b.Close(); err != nil || link(t, "mine").Attrs().MasterIndex != 0 {
			t.Errorf("still attached (%v)", err)
		}
		for _, name := range []string{"mine", "br0"} {
			if err := netlink.LinkDel(link(t, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCloseStandsAnInterfaceThatSomebodyDeleted(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	persistent(t, "mine", netlink.TUNTAP_MODE_TAP, 0, 0)
	a := open(t, tap.Config{Name: "mine", MTU: 4000, Addresses: []string{"192.168.19.1/24"}})
	if err := netlink.LinkDel(link(t, "mine")); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeOpenedSaysWhatToDo(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	bridge(t, "br0")
	bridge(t, "br1")
	persistent(t, "single", netlink.TUNTAP_MODE_TAP, 0, 0)
	persistent(t, "multi", netlink.TUNTAP_MODE_TAP, netlink.TUNTAP_MULTI_QUEUE, 0)
	persistent(t, "layer3", netlink.TUNTAP_MODE_TUN, 0, 0)
	persistent(t, "port", netlink.TUNTAP_MODE_TAP, 0, 0)
	if err := netlink.LinkSetMaster(link(t, "port"), link(t, "br1")); err != nil {
		t.Fatal(err)
	}
	open(t, tap.Config{Name: "taken"})
	open(t, tap.Config{Name: "taken2", Queues: 2})
	open(t, tap.Config{Name: "other", Addresses: []string{"10.1.1.1/24"}})
	before := names(t)
	for _, tc := range []struct {
		config tap.Config
		field  tap.Field
		want   string
	}{
		{tap.Config{Name: "lo"}, tap.FieldName, "interface lo: is there already and is no tap"},
		{tap.Config{Name: "br0"}, tap.FieldName, "is no tap but a bridge: choose another name"},
		{tap.Config{Name: "layer3"}, tap.FieldName, "is a tun, which carries IP packets"},
		{tap.Config{Name: "taken"}, tap.FieldName, "it is open already"},
		{tap.Config{Name: "taken2", Queues: 2}, tap.FieldName, "it is open already"},
		{tap.Config{Name: "single", Queues: 2}, tap.FieldQueues, "has one queue, 2 are wanted: make it with several, `ip link delete single; ip tuntap add dev single mode tap user"},
		{tap.Config{Name: "new", Bridge: "nobr"}, tap.FieldBridge, "bridge nobr: there is no such interface: make it, `ip link add nobr type bridge"},
		{tap.Config{Name: "new", Bridge: "lo"}, tap.FieldBridge, "bridge lo: is no bridge"},
		{tap.Config{Name: "port", Bridge: "br0"}, tap.FieldBridge, "interface port is attached to br1: take it from there first, `ip link set port nomaster`"},
		{tap.Config{Name: "new", Addresses: []string{"10.1.1.1/24"}}, tap.FieldAddresses, "address 10.1.1.1/24: interface other has it already"},
		{tap.Config{Name: "new", Addresses: []string{"10.1.1.2/24"}}, tap.FieldAddresses, "address 10.1.1.2/24: interface other is in the same network"},
		{tap.Config{Name: "new", MTU: 70000}, tap.FieldMTU, "MTU 70000: want 68 to 65521"},
		{tap.Config{Name: "/dev/null"}, tap.FieldName, "/dev/null: inappropriate ioctl for device: want the device of a macvtap interface"},
		{tap.Config{Name: "/dev/net/tun"}, tap.FieldName, "want the device of a macvtap interface"},
		{tap.Config{Name: "/dev/net/tun", Queues: 2}, tap.FieldName, "want the device of a macvtap interface"},
		{tap.Config{Name: "/dev/tapnone"}, tap.FieldName, "make a macvtap interface"},
		{tap.Config{Name: "/dev/net"}, tap.FieldName, "want the device of a macvtap interface"},
	} {
		for what, f := range map[string]func() error{
			"Open": func() error {
				got, err := tap.Open(tc.config)
				if err == nil {
					err = errors.Join(errors.New("it was opened"), got.Close())
				}
				return err
			},
			"Probe": func() error { return tap.Probe(tc.config) },
		} {
			err := f()
			all := tap.Errors(err)
			if len(all) != 1 || all[0].Field != tc.field || !strings.Contains(all[0].Error(), tc.want) {
				t.Errorf("%s %+v: %v: want field %d, %q", what, tc.config, err, tc.field, tc.want)
			}
		}
	}
	if after := names(t); !slices.Equal(before, after) {
		t.Errorf("interfaces before %v, after %v", before, after)
	}
	for _, c := range []tap.Config{{Name: "multi", Queues: 2}, {Name: "multi"}, {Name: "single"}, {Name: "vp%d", Bridge: "br0"}, {Name: "vp%d", Addresses: []string{"10.1.1.2/32", "10.1.0.1/16"}}} {
		if err := tap.Probe(c); err != nil {
			t.Errorf("Probe %+v: %v", c, err)
		}
		if err := open(t, c).Close(); err != nil {
			t.Error(err)
		}
	}
}

// names are those of all interfaces.
func names(t *testing.T) []string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, i := range all {
		out = append(out, i.Name)
	}
	slices.Sort(out)
	return out
}

func TestAnUnprivilegedUserUsesWhatWasMadeForHim(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	persistent(t, "mine", netlink.TUNTAP_MODE_TAP, 0, uint32(os.Getuid())) //nolint:gosec // G115: a user's number
	bridge(t, "br0")
	unprivileged(t, func() {
		if err := tap.Probe(tap.Config{Name: "mine"}); err != nil {
			t.Error(err)
		}
		a, err := tap.Open(tap.Config{Name: "mine"})
		if err != nil {
			t.Errorf("an interface of the user's: %v", err)
			return
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if usable, err := tap.CanMake(); !usable || err == nil || !strings.Contains(err.Error(), "ip tuntap add dev tap0") {
			t.Errorf("CanMake = %t, %v", usable, err)
		}
		for _, tc := range []struct {
			config tap.Config
			field  tap.Field
			want   string
		}{
			{tap.Config{Name: "new%d", Queues: 2}, tap.FieldName, "that needs CAP_NET_ADMIN; let an administrator make one for you, `ip tuntap add dev new0 mode tap user"},
			{tap.Config{Name: "mine", MTU: 2000}, tap.FieldMTU, "`ip link set mine mtu 2000`"},
			{tap.Config{Name: "mine", Bridge: "br0"}, tap.FieldBridge, "`ip link set mine master br0`"},
			{tap.Config{Name: "mine", Addresses: []string{"10.0.0.1/24"}}, tap.FieldAddresses, "`ip address add 10.0.0.1/24 dev mine`"},
		} {
			_, err := tap.Open(tc.config)
			if all := tap.Errors(err); len(all) != 1 || all[0].Field != tc.field || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, unix.EPERM) {
				t.Errorf("%+v: %v: want field %d, %q", tc.config, err, tc.field, tc.want)
			}
		}
		if err := tap.Probe(tap.Config{Name: "new"}); !errors.Is(err, unix.EPERM) {
			t.Errorf("Probe of a new one: %v", err)
		}
	})
}

func TestAnInterfaceOfAnotherUser(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	if text, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.HasSuffix(strings.TrimSpace(string(text)), " 1") {
		t.Skip("MISSING: this needs root: else there is no other user in a namespace")
	}
	persistent(t, "theirs", netlink.TUNTAP_MODE_TAP, 0, 1000)
	unprivileged(t, func() {
		if _, err := tap.Open(tap.Config{Name: "theirs"}); err == nil || !strings.Contains(err.Error(), "it belongs to user ") || !strings.Contains(err.Error(), ": let an administrator make one") {
			t.Errorf("%v", err)
		}
	})
}
