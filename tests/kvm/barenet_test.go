package kvm_test

import (
	"bufio"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/session"
)

// loopback is a network device that gives every frame back.
const loopback = "net=net0,backend=loopback"

// All frames of an MTU of 1500, from the shortest to the longest, hundreds under way, in each way in which buffers and rings are
// used: headers of 10 and 12 bytes, frames in one buffer and in several, one queue pair and two. The guest compares the contents.
func TestBareNet(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			r := longBare(t, "test=netconfig,echo frames=1501 inflight=200", "--bus", bus, "--device", loopback+",queue_pairs=2,mac=52:54:00:0a:0b:0c")
			r.good(t, "net0.config", "net0.echo")
			if facts, _ := r.facts("PASS", "net0.config"); !strings.Contains(facts, "mac=52:54:0:a:b:c mtu=1500 pairs=2 queues=5 status=1 header=12") {
				t.Errorf("the guest reads another configuration: %s", facts)
			}
			// A legacy driver's header has 10 bytes, if frames are not merged.
			plain := map[string]string{"mmio": "12", "lguest": "10"}[bus]
			for way, want := range map[string][]string{
				"plain": {"frames=1501", "from=14 to=1514", "header=" + plain}, "ring": {"frames=256", "header=" + plain},
				"merged": {"frames=256", "header=12"}, "pairs": {"pairs=2 frames=512", "header=12"},
			} {
				facts, _ := r.facts("INFO", "net0.echo way="+way)
				for _, f := range want {
					if !strings.Contains(facts+" ", f+" ") {
						t.Errorf("way %s: %q, want %s", way, facts, f)
					}
				}
			}
			if n := infoNumber(t, r, "net0.echo way=ring", "inflight"); n < 100 {
				t.Errorf("%d frames were under way at a time, want hundreds", n)
			}
		})
	}
}

// A driver that gives no receive buffers, or short ones, that resets in the middle, that wants only certain frames, that is forgotten.
func TestBareNetDrivers(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			r := longBare(t, "test=starve,netreset,netfilter,reinit,takeover reinit=8", "--bus", bus, "--device", loopback+",queue_pairs=2")
			r.good(t, "net0.starve", "net0.reset", "net0.filter", "net0.reinit", "net0.takeover")
			if n := infoNumber(t, r, "net0.starve", "lost"); n == 0 {
				t.Error("no frame was lost for want of receive buffers: where were they?")
			}
		})
	}
}

// longBare runs a guest that may take longer than one that has nothing left to do.
func longBare(t *testing.T, cmdline string, args ...string) report {
	t.Helper()
	v := newBare(t)
	startBare(v, cmdline+" timeout=120", args...)
	r := waitDone(t, v)
	v.Ended(0)
	return r
}

// infoNumber reads "key=N" of the last line "INFO name …".
func infoNumber(t *testing.T, r report, name, key string) uint64 {
	t.Helper()
	facts, _ := r.facts("INFO", name)
	return report("PASS x "+facts).number(t, "x", key)
}

// Frames as long as virtio-net has them without segmentation, also in small queues.
func TestBareNetLargeFrames(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		for _, c := range []struct{ mtu, size string }{{"65520", "256"}, {"9000", "16"}, {"68", "2"}} {
			t.Run(bus+", MTU "+c.mtu+", queues of "+c.size, func(t *testing.T) {
				t.Parallel()
				r := longBare(t, "test=netconfig,echo frames=12", "--bus", bus, "--device", loopback+",mtu="+c.mtu+",queue_size="+c.size)
				r.good(t, "net0.config", "net0.echo")
				if n := r.number(t, "net0.config", "mtu"); fmt.Sprint(n) != c.mtu {
					t.Errorf("the guest reads an MTU of %d, want %s", n, c.mtu)
				}
			})
		}
	}
}

// The link goes down and up again by a command: the guest sees it, by virtio-mmio with an interrupt for each change.
func TestBareNetLink(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			startBare(v, "test=link end=halt timeout=120", "--bus", bus, "--device", loopback)
			waitReport(t, v, "waits: up=1")
			link(t, v, "up=false")
			waitReport(t, v, "waits: up=0")
			link(t, v, "up=true")
			waitDone(t, v).good(t, "net0.link")
			stop(t, v)
		})
	}
}

// link sets the link of a device of the only VM, net0 if none is named.
func link(t *testing.T, v *session.VM, state string, device ...string) {
	t.Helper()
	if out, err := v.Virtplug("command", describe(t, v).Name, append(device, "net0")[0], "link", state).CombinedOutput(); err != nil {
		t.Fatalf("virtplug command … link %s: %v\n%s", state, err, out)
	}
}

// A driver that breaks all rules: the plugin is the same process afterwards, and serves.
func TestBareNetHostileDriver(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			startBare(v, "test=netconfig,netabuse,echo frames=10 end=halt timeout=120", "--bus", bus, "--device", loopback+",queue_pairs=2")
			waitReport(t, v, "PASS net0.config")
			before := v.Plugin("net")
			waitDone(t, v).good(t, "net0.netabuse", "net0.echo")
			if after := v.Plugin("net"); len(before) != 1 || len(after) != 1 || before[0] != after[0] {
				t.Errorf("plugin processes were %v, are %v: want one, the same", before, after)
			}
			stop(t, v)
		})
	}
}

// The plugin is killed again and again while frames go: they go on, none is wrong, and what the driver chose (address, receive mode) still
// holds.
func TestBareNetPluginIsKilled(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			startBare(v, "test=survive end=halt", "--bus", bus, "--device", loopback)
			came := func() uint64 {
				r := report(read(t, serial(v)))
				if facts, _ := r.facts("INFO", "net0.survive"); !strings.Contains(facts, "lost=") {
					return 0 // it comes byte by byte
				}
				return infoNumber(t, r, "net0.survive", "came")
			}
			more := func(than uint64) uint64 {
				t.Helper()
				for end := time.Now().Add(session.CommandLimit); ; time.Sleep(10 * time.Millisecond) {
					if n := came(); n > than {
						return n
					}
					if b := string(read(t, serial(v))); strings.Contains(b, "\nFAIL ") || time.Now().After(end) {
						t.Fatalf("no more frames than %d:\n%s", than, b)
					}
				}
			}
			waitReport(t, v, "INFO net0.survive came=")
			n := more(0)
			for range 3 {
				v.KillPlugin("net")
				// One line may be of before.
				n = more(more(more(n)))
			}
			link(t, v, "up=false")
			waitDone(t, v).good(t, "net0.survive")
			stop(t, v)
		})
	}
}

// The user-mode network, with no privileges: an address by DHCP, the gateway by ARP, a ping, a name, and a TCP connection to the host.
func TestBareNetUser(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			answer := session.Pattern(77, 20000)
			port, heard := greeter(t, answer)
			r := runBare(t, v, 0, fmt.Sprintf("test=network tcp=192.168.127.254:%d timeout=120", port), "--bus", bus, "--device", "net=net0,backend=user")
			r.good(t, "net0.dhcp", "net0.arp", "net0.ping", "net0.dns", "net0.tcp")
			if facts, _ := r.facts("PASS", "net0.dhcp"); !strings.HasPrefix(facts, "address=192.168.127.2 gateway=192.168.127.1 dns=192.168.127.1 mask=0xffffff00") {
				t.Errorf("DHCP gave %s", facts)
			}
			if facts, _ := r.facts("PASS", "net0.dns"); facts != "address=192.168.127.1" {
				t.Errorf("the gateway's name has %s", facts)
			}
			if n, want := r.number(t, "net0.tcp", "crc32c"), crc32.Checksum(answer, crc32.MakeTable(crc32.Castagnoli)); n != uint64(want) {
				t.Errorf("the guest got bytes with the sum %#x, want %#x: %d bytes", n, want, r.number(t, "net0.tcp", "bytes"))
			}
			// Once with mergeable buffers, and once without.
			for range 2 {
				select {
				case line := <-heard:
					if line != "hello from the freestanding guest\n" {
						t.Errorf("the host heard %q", line)
					}
				case <-time.After(session.CommandLimit):
					t.Fatal("the host heard nothing")
				}
			}
		})
	}
}

// greeter listens on the host's 127.0.0.1. To whoever says a line it answers, and ends the connection.
func greeter(t *testing.T, answer []byte) (port int, heard <-chan string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	lines := make(chan string, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(lines)
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // the peer sees the end
				line, err := bufio.NewReader(c).ReadString('\n')
				if err == nil {
					_, err = c.Write(answer)
				}
				if err == nil {
					// Until the guest has taken all.
					err = c.(*net.TCPConn).CloseWrite() //nolint:forcetypeassert // tcp4
					_, _ = io.Copy(io.Discard, c)
				}
				if err != nil {
					line = err.Error()
				}
				lines <- line
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port, lines //nolint:forcetypeassert // tcp4
}
