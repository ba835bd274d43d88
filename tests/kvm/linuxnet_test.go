package kvm_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/kvm/parts"
	"github.com/virtplug/virtplug/tests/session"
)

// What goes over a network in one piece: /test/data, or where it must last a while bulkCopies of it. In an emulator in an emulator
// each takes seconds.
const (
	guestData  = "cat /test/data"
	guestBulk  = "(for i in 1 2; do cat /test/data; done)"
	bulkCopies = 2
	// guestDigest of what it reads.
	guestDigest = "sha256sum | cut -c -64"
	// frameBytes is the longest frame without segmentation offload.
	frameBytes = 1514
)

// digestOf copies of /test/data.
func digestOf(copies int) string {
	return fmt.Sprintf("%x", sha256.Sum256(bytes.Repeat(session.Pattern(parts.DataSeed, parts.DataBytes), copies)))
}

// transfer checks what a command line in the guest prints: the sum of /test/data, received by the guest or by a sink.
func transfer(t *testing.T, v *session.VM, what, command string) {
	t.Helper()
	if got, want := v.Must(command), digestOf(1); got != want {
		t.Errorf("%s: what arrived has the sum %s, want %s", what, got, want)
	}
}

// sink listens at an address of the namespace and answers each connection with the SHA-256 of what came; source sends /test/data. They
// return their ports.
func sink(t *testing.T, n *session.Network, address string) int {
	t.Helper()
	return serve(n.Listen(address+":0"), func(c net.Conn) {
		h := sha256.New()
		_, _ = io.Copy(h, c) // the sum tells
		_, _ = fmt.Fprintf(c, "%x\n", h.Sum(nil))
	})
}

func source(t *testing.T, n *session.Network, address string) int {
	t.Helper()
	return serve(n.Listen(address+":0"), func(c net.Conn) { _, _ = c.Write(session.Pattern(parts.DataSeed, parts.DataBytes)) })
}

func serve(l net.Listener, f func(net.Conn)) (port int) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				f(c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener
}

// counters are those of the only VM's device.
func counters(t *testing.T, v *session.VM, device string) map[string]number {
	t.Helper()
	for _, d := range describe(t, v).Devices {
		if d.Name == device {
			return d.Counters
		}
	}
	t.Fatalf("no device %s", device)
	return nil
}

// Two queue pairs on a tap, over virtio-mmio: Linux takes both, each processor sends by its own and is answered on it; segmentation
// offload both ways; a plugin that is killed while bytes flow costs none.
func TestLinuxNetTwoQueuePairs(t *testing.T) {
	t.Parallel()
	v := newLinux(t)
	n := session.NewNetwork(t, nil)
	v.Network = n
	v.Boot("--cpus", "2", "--console", "stdio", "--cmdline", "quiet ip=off",
		"--device", "net=eth0,backend=tap,tap=vp0,address=10.77.0.1/24,queue_pairs=2,mac=52:54:00:77:00:02")
	if got := v.Must("cd /sys/class/net/eth0; cat address mtu; ls queues | tr '\\n' ' '; cd"); got != "52:54:00:77:00:02\n1500\nrx-0 rx-1 tx-0 tx-1" {
		t.Errorf("address, MTU and queues: %q", got)
	}
	seen := n.Watch(t, "vp0")
	v.Must("ip address add 10.77.0.2/24 dev eth0; ip link set eth0 up; for i in $(seq 100); do ping -c 1 -W 1 10.77.0.1 && break; done")
	to, from := sink(t, n, "10.77.0.1"), source(t, n, "10.77.0.1")
	for cpu := range 2 {
		before := counters(t, v, "eth0")
		transfer(t, v, fmt.Sprintf("from CPU %d", cpu), fmt.Sprintf("%s | taskset -c %d nc 10.77.0.1 %d", guestData, cpu, to))
		after := counters(t, v, "eth0")
		moved := func(format string, pair int) number {
			name := fmt.Sprintf(format, pair)
			return after[name] - before[name]
		}
		t.Logf("CPU %d: sent %d and %d bytes, received %d and %d packets", cpu, moved("tx%d_bytes", 0), moved("tx%d_bytes", 1), moved("rx%d_packets", 0), moved("rx%d_packets", 1))
		// What an interrupt makes TCP send goes by the pair of the processor that has the interrupts.
		if moved("tx%d_bytes", cpu) < parts.DataBytes/20 || moved("rx%d_packets", cpu) < 5 {
			t.Errorf("CPU %d does not use its own queue pair: %v, then %v", cpu, before, after)
		}
	}
	transfer(t, v, "to the guest", fmt.Sprintf("nc 10.77.0.1 %d </dev/null | %s", from, guestDigest))
	v.Must("httpd -p 80 -h /test")
	fetch(t, n, "10.77.0.2:80")
	if in, out := seen.Counts(); in.Longest <= frameBytes || out.Longest <= frameBytes {
		t.Errorf("no frame is longer than the MTU: received from the guest %+v, sent to it %+v", in, out)
	} else {
		t.Logf("received from the guest %+v, sent to it %+v", in, out)
	}
	killedUnderWay(t, v, "eth0", seen, fmt.Sprintf("%s | nc 10.77.0.1 %d", guestBulk, to))
	seesLinkDown(t, v, "eth0")
	v.PowerOff()
}

// seesLinkDown takes the link of a device down and waits until the guest has seen it.
func seesLinkDown(t *testing.T, v *session.VM, device string) {
	t.Helper()
	link(t, v, "up=false", device)
	v.Must(fmt.Sprintf("for i in $(seq 1000); do [ $(cat /sys/class/net/%[1]s/carrier) = 0 ] && break; usleep 10000; done; [ $(cat /sys/class/net/%[1]s/carrier) = 0 ]", device))
}

// killedUnderWay kills a device's plugin twice while a transfer runs that ends with the bulk's sum.
func killedUnderWay(t *testing.T, v *session.VM, device string, seen *session.Frames, transfer string) {
	t.Helper()
	v.Type("echo ST''ART; " + transfer + "; echo EN''D\r")
	v.Expect("START\r\n", session.CommandLimit)
	for i := range 2 {
		before, _ := seen.Counts()
		seen.Until(t, "traffic", func(in, _ session.FrameCount) bool { return in.Frames >= before.Frames+5 })
		if strings.Contains(v.Peek(), "END") {
			t.Errorf("the transfer ended after %d kills", i)
			break
		}
		kill(t, v, device)
	}
	if got := strings.TrimSpace(v.Expect("END\r\n", session.CommandLimit)); got != digestOf(bulkCopies) {
		t.Errorf("after kills the bulk's sum is %s, want %s", got, digestOf(bulkCopies))
	}
}

// Stock virtio_net as a legacy driver over the lguest bus: an address by DHCP from the user-mode network, TCP both ways and a port that
// leads to the guest; a tap with segmentation offload and a plugin that is killed; the commands that Linux gives.
func TestLinuxNetOnTheLguestBus(t *testing.T) {
	t.Parallel()
	v := newLinux(t)
	n := session.NewNetwork(t, nil)
	v.Network = n
	// The bus has no interrupt for changes of the configuration.
	v.Boot("--bus", "lguest", "--console", "stdio", "--cmdline", "quiet lguest_bus.poll_ms=100", "--device", "net=eth0,forward=tcp:127.0.0.1:8080:80",
		"--device", "net=eth1,backend=tap,tap=vp0,address=10.77.0.1/24")
	checkBus(t, v, "lguest", 3)
	v.Must("for i in $(seq 3000); do ip -4 -o address show dev eth0 | grep -qF ' 192.168.127.2/24 ' && break; usleep 20000; done; ip -4 -o address show dev eth0 | grep -F ' 192.168.127.2/24 '")
	// VIRTIO_NET_F_MRG_RXBUF 15, CTRL_VQ 17: the first character is bit 0.
	for i := range 2 {
		f := v.Must(fmt.Sprintf("cat /sys/class/net/eth%d/device/features", i))
		if len(f) != 64 || f[15] != '1' || f[17] != '1' || f[32] != '0' {
			t.Errorf("eth%d: features %s, want bits 15 and 17 and not 32", i, f)
		}
	}
	user, tap := sink(t, n, "127.0.0.1"), sink(t, n, "10.77.0.1")
	transfer(t, v, "user, from the guest", fmt.Sprintf("%s | nc 192.168.127.254 %d", guestData, user))
	transfer(t, v, "user, to the guest", fmt.Sprintf("nc 192.168.127.254 %d </dev/null | %s", source(t, n, "127.0.0.1"), guestDigest))
	v.Must("httpd -p 80 -h /test")
	fetch(t, n, "127.0.0.1:8080") // by the forward

	seen := n.Watch(t, "vp0")
	v.Must("ip address add 10.77.0.2/24 dev eth1; for i in $(seq 100); do ping -c 1 -W 1 10.77.0.1 && break; done")
	transfer(t, v, "tap, to the guest", fmt.Sprintf("nc 10.77.0.1 %d </dev/null | %s", source(t, n, "10.77.0.1"), guestDigest))
	fetch(t, n, "10.77.0.2:80")
	killedUnderWay(t, v, "eth1", seen, fmt.Sprintf("%s | nc 10.77.0.1 %d", guestBulk, tap))
	if in, out := seen.Counts(); in.Longest <= frameBytes || out.Longest <= frameBytes {
		t.Errorf("no frame is longer than the MTU: received from the guest %+v, sent to it %+v", in, out)
	}
	// By the control queue: another address, and the peer finds it.
	v.Must("ip link set eth1 address 52:54:00:77:00:03; ping -c 1 -W 10 10.77.0.1")
	if got := n.Run("ip", "neigh", "show", "dev", "vp0"); !strings.Contains(got, "52:54:00:77:00:03") {
		t.Errorf("the host does not know the guest's new address: %s", got)
	}
	if c := counters(t, v, "eth1"); c["control_ok"] == 0 || c["control_refused"] != 0 {
		t.Errorf("commands: %d done, %d refused", c["control_ok"], c["control_refused"])
	}
	seesLinkDown(t, v, "eth1")
	v.PowerOff()
}

// kill ends the plugin of a device and waits until another serves.
func kill(t *testing.T, v *session.VM, device string) {
	t.Helper()
	pid := func() int {
		for _, d := range describe(t, v).Devices {
			if d.Name == device && d.State == "ready" {
				return d.Pid
			}
		}
		return 0
	}
	old := pid()
	if old == 0 {
		t.Fatalf("%s has no plugin", device)
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(session.CommandLimit); pid() == old || pid() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the plugin of %s was not started again", device)
		}
	}
}

// fetch gets /test/data from the guest's web server, which the kernel sends in pieces as large as the network takes.
func fetch(t *testing.T, n *session.Network, address string) {
	t.Helper()
	c, err := n.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // of this test
	if _, err := io.WriteString(c, "GET /data HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.HasSuffix(got, session.Pattern(parts.DataSeed, parts.DataBytes)) {
		t.Errorf("the guest's server sent %d bytes that do not end with /test/data (%v)", len(got), err)
	}
}
