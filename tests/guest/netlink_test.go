package guest_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/session"
)

// The link goes down and up by command while traffic flows: the guest sees it, and afterwards it flows on.
func TestGuestSeesTheLinkGoDownAndUp(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	n := session.NewNetwork(t, nil)
	serveBulk(n)
	v := withNet(t, n)
	v.Boot("--device", "net=eth0,backend=tap,tap=vp0,address=10.77.0.1/24")
	v.Must("ip address add 10.77.0.2/24 dev eth0")
	until(t, v, "ping -c 1 -W 1 10.77.0.1")
	seen := n.Watch(t, "vp0")
	v.Type("echo ST''ART; /test/talk receive 10.77.0.1:" + sourcePort + "; echo EN''D\r")
	v.Expect("START\r\n", session.CommandLimit)
	seen.Until(t, "traffic", func(_, out session.FrameCount) bool { return out.Frames > 50 })
	link(t, v, "up=false")
	time.Sleep(100 * time.Millisecond) // long enough for a transfer that has not stopped to go on
	if out := v.Peek(); strings.Contains(out, "END") {
		t.Errorf("the transfer ended with the link down: %s", out)
	}
	link(t, v, "up=true")
	if out := v.Expect("END\r\n", session.CommandLimit); !strings.HasPrefix(out, built.bulkSum) {
		t.Errorf("the guest received %s, want %s", out, built.bulkSum)
	}
	for range 3 {
		link(t, v, "up=false")
		until(t, v, "[ $(cat /sys/class/net/eth0/carrier) = 0 ]")
		if out, status := v.Shell("ping -c 1 -W 1 10.77.0.1"); status == "0" {
			t.Errorf("a ping with the link down: %s", out)
		}
		link(t, v, "up=true")
		until(t, v, "[ $(cat /sys/class/net/eth0/carrier) = 1 ]")
		until(t, v, "ping -c 1 -W 1 10.77.0.1")
	}
	v.PowerOff()
}

// What a command has said about the link survives a crash of the plugin, whatever the configuration says.
func TestGuestLinkIsAsItWasWhenThePluginIsKilled(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	for _, c := range []struct {
		name, settings, up string
		carrier            string
	}{
		{"down", "", "up=false", "0"},
		{"up", ",link=false", "up=true", "1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := withNet(t, session.NewNetwork(t, nil))
			v.Boot("--device", "net=eth0,backend=null"+c.settings)
			is := "[ $(cat /sys/class/net/eth0/carrier) = " + c.carrier + " ]"
			until(t, v, "! "+is)
			link(t, v, c.up)
			until(t, v, is)
			changes := v.Must("cat /sys/class/net/eth0/carrier_changes")
			v.KillPlugin("net")
			serving(t, v, "eth0")
			// What a new instance says of itself reaches the guest within this time, if it says anything.
			if got := v.Must("usleep 300000; cat /sys/class/net/eth0/carrier_changes"); got != changes {
				t.Errorf("the link has changed %s times, before %s", got, changes)
			}
			v.Must(is)
			v.PowerOff()
		})
	}
}

// serving waits until a device's plugin serves.
func serving(t *testing.T, v *session.VM, device string) {
	t.Helper()
	var out []byte
	for end := time.Now().Add(session.EndLimit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		out, _ = v.Virtplug("ps").Output()
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == device && f[2] == "ready" {
				return
			}
		}
	}
	t.Fatalf("%s does not serve:\n%s", device, out)
}

// Ten interfaces: each has an address of its own and reaches its own network.
func TestGuestWithTenNetworkDevices(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	n := session.NewNetwork(t, nil)
	v := withNet(t, n)
	var args []string
	for i := range 10 {
		args = append(args, "--device", fmt.Sprintf("net=eth%d,backend=tap,tap=vp%d,address=10.77.%d.1/24", i, i, i))
	}
	v.Boot(args...)
	macs := map[string]bool{}
	for i := range 10 {
		v.Must(fmt.Sprintf("ip address add 10.77.%d.2/24 dev eth%d", i, i))
		macs[v.Must(fmt.Sprintf("cat /sys/class/net/eth%d/address", i))] = true
	}
	for i := range 10 {
		until(t, v, fmt.Sprintf("ping -c 1 -W 1 -I eth%d 10.77.%d.1", i, i))
	}
	if len(macs) != 10 {
		t.Errorf("addresses of ten interfaces: %v", macs)
	}
	if n := len(v.Plugin("net")); n != 10 {
		t.Errorf("%d processes of the plugin, want 10", n)
	}
	v.PowerOff()
}

// Nobody answers: the shell is there at once, and DHCP goes on in the background.
func TestGuestWithoutDHCPServerDoesNotWait(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	v := prepare(t)
	v.Boot("--console", "stdio", "--net", "null", "--net", "null,link=false")
	for _, device := range []string{"eth0", "eth1"} {
		v.Must("ps | grep -q '[u]dhcpc -f -i " + device + "'")
		if got := v.Must("ip -4 address show dev " + device); got != "" && strings.Contains(got, "inet") {
			t.Errorf("%s has an address: %s", device, got)
		}
	}
	v.PowerOff()
}

// Its own address is the same in the next run, and another one for another VM.
func TestGuestKeepsItsAddress(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	mac := func(name string) string {
		v := prepare(t)
		v.Boot("--name", name, "--console", "stdio", "--device", "net=eth0,backend=null")
		defer v.PowerOff()
		return v.Must("cat /sys/class/net/eth0/address")
	}
	first, again, other := mac("one"), mac("one"), mac("other")
	if first != again || first == other {
		t.Errorf("address %s, in the next run %s, of another VM %s", first, again, other)
	}
}

// A capture holds what the guest sends and receives, and other programs read it.
func TestGuestFramesAreCaptured(t *testing.T) {
	t.Parallel()
	needNetwork(t, "tshark")
	v := withNet(t, session.NewNetwork(t, nil))
	capture := v.Path("capture.pcapng")
	v.Boot("--device", "net=eth0,capture="+capture)
	addressed(t, v, "eth0", "192.168.127.2/24")
	v.Must("ping -c 3 -i 0.2 -s 777 192.168.127.1")
	v.PowerOff()
	for filter, want := range map[string]int{
		"icmp.type == 8 && data.len == 777 && ip.src == 192.168.127.2": 3,
		"icmp.type == 0 && data.len == 777 && ip.dst == 192.168.127.2": 3,
		"_ws.malformed": 0,
	} {
		if got := shown(t, capture, filter); got != want {
			t.Errorf("tshark shows %d frames for %s, want %d", got, filter, want)
		}
	}
	if shown(t, capture, "dhcp.option.dhcp == 5") == 0 {
		t.Error("tshark shows no lease")
	}
}

// shown tells how many frames of a capture tshark shows for a filter.
func shown(t *testing.T, capture, filter string) int {
	t.Helper()
	var stderr session.Output
	cmd := exec.CommandContext(t.Context(), "tshark", "-r", capture, "-Y", filter, "-T", "fields", "-e", "frame.number") //nolint:gosec // G204: a file of this test
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.String())
	}
	return strings.Count(string(out), "\n")
}
