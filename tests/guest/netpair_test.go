package guest_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/session"
)

// Two guests on one unix socket: they ping each other, move the bulk, and when one is killed and started again the other sees its
// link go down and up.
func TestGuestsTalkOverASocket(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	a, b := prepare(t), prepare(t)
	path := a.Path("net")
	start := func(v *session.VM, setting, address string) {
		v.Args = append(v.Args, "--console", "stdio")
		v.Boot("--device", "net=eth0,backend=socket,"+setting)
		v.Must("ip address add " + address + "/24 dev eth0")
	}
	start(a, "listen="+path, "10.78.0.1")
	until(t, a, "[ $(cat /sys/class/net/eth0/carrier) = 0 ]")
	start(b, "connect=unix:"+path, "10.78.0.2")
	both := func(b *session.VM) {
		t.Helper()
		until(t, a, "[ $(cat /sys/class/net/eth0/carrier) = 1 ]")
		until(t, a, "ping -c 1 -W 1 10.78.0.2")
		until(t, b, "ping -c 1 -W 1 -s 1472 10.78.0.1")
	}
	both(b)
	transfer(t, a, b, "10.78.0.2")
	transfer(t, b, a, "10.78.0.1")

	b.Signal(syscall.SIGKILL)
	b.WaitExit()
	until(t, a, "[ $(cat /sys/class/net/eth0/carrier) = 0 ]")
	again := prepare(t)
	start(again, "connect=unix:"+path, "10.78.0.2")
	both(again)
	transfer(t, again, a, "10.78.0.1")

	// So does a crash of the plugin at either end, which the machine itself survives.
	for _, v := range []*session.VM{a, again} {
		v.KillPlugin("net")
		both(again)
	}
	again.PowerOff()
	a.PowerOff()
}

// The example's two machines, as its README starts them.
func TestGuestsOfTheExampleArePlugged(t *testing.T) {
	t.Parallel()
	needNetwork(t, "tshark")
	a, b := prepare(t), prepare(t)
	if err := errors.Join(os.CopyFS(a.Path("two-vms"), os.DirFS("../../examples/two-vms")),
		os.Symlink(built.initrd, a.Path("two-vms/initrd.gz"))); err != nil {
		t.Fatal(err)
	}
	for v, name := range map[*session.VM]string{a: "1", b: "2"} { // in any order
		v.Args = []string{"--machine", "uml"}
		v.Boot(a.Path(map[string]string{"1": "two-vms/a.hcl", "2": "two-vms/b.hcl"}[name]))
		v.Must("ip addr add 192.168.9." + name + "/24 dev eth0; ip link set eth0 up")
	}
	until(t, a, "ping -c 1 -W 1 192.168.9.2")
	b.Must("ping -c 3 -i 0.2 -s 777 192.168.9.1")
	if got := b.Must("ps | grep -c '[u]dhcpc' || true"); got != "0" {
		t.Errorf("%s DHCP clients in spite of ip=off", got)
	}
	b.PowerOff()
	until(t, a, "[ $(cat /sys/class/net/eth0/carrier) = 0 ]")
	a.PowerOff()
	if got := shown(t, a.Path("two-vms/b.pcapng"), "icmp && data.len == 777"); got != 6 {
		t.Errorf("the capture holds %d frames of the ping, want 6", got)
	}
}

// transfer sends the bulk from one guest to another.
func transfer(t *testing.T, from, to *session.VM, address string) {
	t.Helper()
	to.Type("/test/talk listen :" + sinkPort + "; echo EN''D\r")
	to.Expect("ready\r\n", session.CommandLimit)
	start := time.Now()
	defer func() { t.Logf("guest to guest: %v", time.Since(start).Round(time.Millisecond)) }()
	from.Must("/test/talk send " + address + ":" + sinkPort)
	if out := strings.TrimSpace(to.Expect("END\r\n", session.CommandLimit)); !strings.HasPrefix(out, built.bulkSum) {
		t.Errorf("the guest received %s, want %s", out, built.bulkSum)
	}
}
