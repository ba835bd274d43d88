package guest_test

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/virtplug/virtplug/core/initrd"
	"github.com/virtplug/virtplug/tests/session"
)

// A guest that takes nothing while much is sent to it: whoever sends is not held up, and afterwards everything works.
func TestGuestThatStandsStillHoldsUpNobody(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	n := outside(t)
	v := withNet(t, n)
	v.Boot("--net", "user,forward=udp:5353:7", "--net", "tap:vp0,address=10.77.0.1/24")
	addressed(t, v, "eth0", "192.168.127.2/24")
	v.Must("ip address add 10.77.0.2/24 dev eth1")
	until(t, v, "ping -c 1 -W 1 10.77.0.1")
	seen := n.Watch(t, "vp0")

	kernel, err := initrd.DefaultKernel()
	if err != nil {
		t.Fatal(err)
	}
	processes := v.Family.Running(filepath.Base(kernel))
	if len(processes) == 0 {
		t.Fatalf("no process runs %s", kernel)
	}
	signal := func(s syscall.Signal) {
		if err := syscall.Kill(processes[0], s); err != nil { // the first one is the guest's kernel, which started the others
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	const datagrams = 5000 // more than the rings, the tap's queue and a back-end's hold
	for _, address := range []string{"10.77.0.2:7", "127.0.0.1:5353"} {
		c, err := n.Dial("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		for range datagrams {
			_, _ = c.Write(make([]byte, 1400)) // an answer that nobody listens comes when it goes on
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	seen.Until(t, "flood", func(_, out session.FrameCount) bool { return out.Longest > 1400 })
	virtplug(t, v, "ps")
	signal(syscall.SIGCONT)

	until(t, v, "ping -c 1 -W 1 10.77.0.1")
	bulkDown(t, v, "10.77.0.1")
	bulkUp(t, v, "host.virtplug.internal")
	v.PowerOff()
}
