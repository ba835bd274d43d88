package guest_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/tests/session"
)

// Lengths in bytes: of an Ethernet header, of a ping's headers.
const (
	etherHeader = 14
	pingHeaders = 20 + 8
)

// leases makes the configuration of busybox's DHCP server for an interface.
func leases(t *testing.T, device, first, router string, mtu int) string {
	t.Helper()
	return file(t, "udhcpd.conf", fmt.Sprintf(`start %s
end %s
interface %s
lease_file %s
pidfile %s
opt subnet 255.255.255.0
opt router %s
opt dns %s
opt domain example.test
opt mtu %d
`, first, first, device, file(t, "leases", ""), file(t, "pid", ""), router, router, mtu))
}

// Back-end tap, with each way to get the interface: ping up to the MTU, the bulk both ways, frames longer than the MTU.
func TestGuestNetworkOfTapBackEnd(t *testing.T) {
	t.Parallel()
	needNetwork(t, "busybox")
	for _, c := range []struct {
		name, settings string
		mtu            int
		existing       bool
	}{
		{"an existing interface", "", 1500, true},
		{"a new interface, large MTU", ",address=10.77.0.1/24,mtu=9000", 9000, false},
		// The guest has one processor and uses one pair of them.
		{"several queue pairs, no indirect descriptors, no event index", ",address=10.77.0.1/24,queue_pairs=4,ring.indirect=false,ring.event_idx=false", 1500, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := session.NewNetwork(t, nil)
			if c.existing {
				n.Run("ip", "tuntap", "add", "dev", "vp0", "mode", "tap")
				n.Run("ip", "address", "add", "10.77.0.1/24", "dev", "vp0")
				n.Run("ip", "link", "set", "vp0", "up")
			}
			serveBulk(n)
			serveEcho(n)
			v := withNet(t, n)
			v.Boot("--net", "tap:vp0"+c.settings)
			// The shell was there before the server is: the guest goes on asking.
			n.Start("busybox", "udhcpd", "-f", leases(t, "vp0", "10.77.0.20", "10.77.0.1", c.mtu))
			addressed(t, v, "eth0", "10.77.0.20/24")
			if got := v.Must("cat /sys/class/net/eth0/mtu; cat /etc/resolv.conf; ip route show default"); !strings.HasPrefix(got, strconv.Itoa(c.mtu)+"\nsearch example.test\nnameserver 10.77.0.1\ndefault via 10.77.0.1 dev eth0") {
				t.Errorf("MTU, name server and route: %q", got)
			}
			seen := n.Watch(t, "vp0")
			for _, size := range []int{0, 1, 56, c.mtu - pingHeaders - 1, c.mtu - pingHeaders} {
				v.Must(fmt.Sprintf("ping -c 1 -s %d 10.77.0.1", size))
			}
			full := func(in, out session.FrameCount) bool {
				return in.Longest == c.mtu+etherHeader && out.Longest == c.mtu+etherHeader
			}
			seen.Until(t, "frame as long as the MTU, both ways", full)
			v.Must("ping -c 1 -s 20000 10.77.0.1") // in fragments
			if in, out := seen.Counts(); !full(in, out) {
				t.Errorf("frames longer than the MTU without TCP: received %+v, sent %+v", in, out)
			}
			v.Must("/test/talk ask 10.77.0.1:" + echoPort + " 1 1400 9000 60000")
			bulkUp(t, v, "10.77.0.1")
			bulkDown(t, v, "10.77.0.1")
			// Segmentation offload: more than one packet's bytes in one frame.
			if in, out := seen.Counts(); in.Longest < 2*c.mtu || out.Longest < 2*c.mtu {
				t.Errorf("no frames longer than the MTU: received from the guest %+v, sent to it %+v", in, out)
			} else {
				t.Logf("received from the guest %+v, sent to it %+v", in, out)
			}
			v.PowerOff()
			if _, err := v.Network.Try("ip", "link", "show", "vp0"); (err == nil) != c.existing {
				t.Errorf("afterwards: ip link show vp0: %v", err)
			}
		})
	}
}

// Without offloads every frame fits the MTU, and everything arrives all the same.
func TestGuestNetworkOfTapBackEndWithoutOffloads(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	n := session.NewNetwork(t, nil)
	serveBulk(n)
	v := withNet(t, n)
	v.Boot("--device", "net=eth0,backend=tap,tap=vp%d,address=10.77.0.1/24,offload=false")
	v.Must("ip address add 10.77.0.2/24 dev eth0")
	seen := n.Watch(t, "vp0")
	bulkUp(t, v, "10.77.0.1")
	bulkDown(t, v, "10.77.0.1")
	if in, out := seen.Counts(); in.Longest > 1500+etherHeader || in.Bytes < 50<<20 || out.Bytes < 50<<20 { // the watcher may miss some
		t.Errorf("received from the guest %+v, sent to it %+v", in, out)
	}
	v.PowerOff()
}

var linkLocal = regexp.MustCompile(`fe80::[0-9a-f:]*`)

// IPv6: addresses that the kernel makes by itself and given ones, ping, TCP with offload, UDP.
func TestGuestNetworkHasIPv6(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	n := session.NewNetwork(t, nil)
	serveBulk(n)
	serveEcho(n)
	v := withNet(t, n)
	v.Boot("--device", "net=eth0,backend=tap,tap=vp0,address=fd77::1/64")
	until(t, v, "ip -6 -o address show dev eth0 scope link | grep fe80 | grep -qv tentative")
	host := linkLocal.FindString(n.Run("ip", "-6", "address", "show", "dev", "vp0"))
	guest := linkLocal.FindString(v.Must("ip -6 -o address show dev eth0"))
	until(t, v, "ping -6 -c 1 -W 1 "+host+"%eth0")
	n.Run("ping", "-6", "-c", "1", guest+"%vp0")
	v.Must("ip -6 address add fd77::2/64 dev eth0")
	until(t, v, "ip -6 -o address show dev eth0 | grep fd77::2 | grep -qv tentative") // until then others are used
	until(t, v, "ping -6 -c 1 -W 1 fd77::1")
	for _, size := range []int{0, 1452, 4000} {
		v.Must(fmt.Sprintf("ping -6 -c 1 -s %d fd77::1", size))
	}
	v.Must("/test/talk ask [fd77::1]:" + echoPort + " 1 1400 9000")
	seen := n.Watch(t, "vp0")
	bulkUp(t, v, "fd77::1")
	bulkDown(t, v, "fd77::1")
	if in, out := seen.Counts(); in.Longest < 3000 || out.Longest < 3000 {
		t.Errorf("no frames longer than the MTU: received from the guest %+v, sent to it %+v", in, out)
	}
	v.PowerOff()
}

// The plugin is killed again and again while the bulk goes both ways: the interface stays, TCP sends again, no byte is wrong.
func TestGuestNetworkOfTapBackEndWhenThePluginIsKilled(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	n := session.NewNetwork(t, nil)
	serveBulk(n)
	v := withNet(t, n)
	v.Boot("--device", "net=eth0,backend=tap,tap=vp0,address=10.77.0.1/24")
	v.Must("ip address add 10.77.0.2/24 dev eth0")
	index := n.Run("cat", "/proc/net/dev_snmp6/vp0")
	seen := n.Watch(t, "vp0")
	for _, line := range []string{
		"/test/talk send 10.77.0.1:" + sinkPort,
		"/test/talk receive 10.77.0.1:" + sourcePort,
	} {
		before, _ := seen.Counts()
		v.Type("echo ST''ART; " + line + "; echo EN''D\r")
		v.Expect("START\r\n", session.CommandLimit)
		for i := range 4 {
			// Each time while it runs: something has passed since.
			seen.Until(t, "traffic", func(in, _ session.FrameCount) bool { return in.Frames > before.Frames+50*(i+1) })
			before, _ = seen.Counts()
			if strings.Contains(v.Peek(), "END") {
				t.Errorf("the transfer ended after %d kills", i)
				break
			}
			v.KillPlugin("net")
		}
		if out := strings.TrimSpace(v.Expect("END\r\n", 2*session.CommandLimit)); !strings.HasPrefix(out, built.bulkSum) {
			t.Errorf("what arrived has the sum %s, want %s", out, built.bulkSum)
		}
	}
	if after := n.Run("cat", "/proc/net/dev_snmp6/vp0"); firstLine(after) != firstLine(index) {
		t.Errorf("the interface is another one: %s, was %s", firstLine(after), firstLine(index))
	}
	v.PowerOff()
}

func firstLine(s string) string { line, _, _ := strings.Cut(s, "\n"); return line }

// The flags of the lguest Launcher: a tap with the host's address, and one in a bridge.
func TestGuestNetworkByTheLguestLaunchersFlags(t *testing.T) {
	t.Parallel()
	needNetwork(t, "busybox")
	n := session.NewNetwork(t, nil)
	n.Run("ip", "link", "add", "br0", "type", "bridge")
	n.Run("ip", "address", "add", "10.79.0.1/24", "dev", "br0")
	n.Run("ip", "link", "set", "br0", "up")
	n.Start("busybox", "udhcpd", "-f", leases(t, "br0", "10.79.0.20", "10.79.0.1", 1500))
	v := withNet(t, n)
	v.Boot("--tunnet=192.168.19.1:02:00:00:00:00:01", "--tunnet=bridge:br0:02:00:00:00:00:02", "--tunnet=bridge:br0")
	v.Must("ip address add 192.168.19.2/24 dev eth0")
	until(t, v, "ping -c 1 -W 1 192.168.19.1")
	addressed(t, v, "eth1", "10.79.0.20/24")
	v.Must("ping -c 1 -I eth1 10.79.0.1")
	if got := v.Must("cat /sys/class/net/eth0/address /sys/class/net/eth1/address"); got != "02:00:00:00:00:01\n02:00:00:00:00:02" {
		t.Errorf("addresses %q", got)
	}
	if got := n.Run("ip", "-o", "-4", "address", "show", "dev", "tap0"); !strings.Contains(got, " 192.168.19.1/24 ") {
		t.Errorf("tap0: %s", got)
	}
	if got := n.Run("ip", "-o", "link", "show", "master", "br0"); !strings.Contains(got, "tap1:") || !strings.Contains(got, "tap2:") {
		t.Errorf("in the bridge: %s", got)
	}
	v.PowerOff()
}
