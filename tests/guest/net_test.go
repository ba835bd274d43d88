package guest_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/session"
)

// The bulk that goes both ways in tests of the network: bulkCopies numbered copies of /test/data, a bit more than 100 MiB.
// `talk send` in the guest sends the same.
const bulkCopies = 34

// Ports of the test's servers.
const (
	sinkPort   = "7001" // answers what comes with its SHA-256
	sourcePort = "7002" // sends the bulk
	echoPort   = "7003" // sends back datagrams
	webPort    = "7004"
)

func writeBulk(w io.Writer) error {
	data := session.Pattern(1, 3<<20)
	for i := range bulkCopies {
		if _, err := fmt.Fprintln(w, i+1); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// bulkSum is the SHA-256 of the bulk, as sha256sum writes it.
func bulkSum() (string, error) {
	h := sha256.New()
	err := writeBulk(h)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// need more than busybox of the host and of the guest: iproute2.
func needNetwork(t *testing.T, programs ...string) {
	t.Helper()
	need(t)
	for _, p := range append(programs, "ip") {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("MISSING: no %s: install the Debian package %s", p, map[string]string{"ip": "iproute2", "busybox": "busybox-static"}[p]+p)
		}
	}
}

// accept serves connections until the listener is closed.
func accept(l net.Listener, serve func(net.Conn) error) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_ = errors.Join(serve(c), c.Close()) // the guest sees what is wrong
		}()
	}
}

// serveBulk starts the servers of bulkBothWays in a namespace, on all its addresses.
func serveBulk(n *session.Network) {
	go accept(n.Listen("[::]:"+sinkPort), func(c net.Conn) error {
		h := sha256.New()
		_, err := io.Copy(h, c)
		fmt.Fprintf(c, "%x\n", h.Sum(nil))
		return err
	})
	go accept(n.Listen("[::]:"+sourcePort), func(c net.Conn) error { return writeBulk(c) })
}

// serveEcho sends back datagrams.
func serveEcho(n *session.Network) {
	c := n.ListenPacket("[::]:" + echoPort)
	go func() {
		b := make([]byte, 64<<10)
		for {
			k, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:k], from) // the guest asks again
		}
	}()
}

// bulkUp sends the bulk from the guest to the namespace's servers at address; bulkDown the other way.
func bulkUp(t *testing.T, v *session.VM, address string) {
	t.Helper()
	start := time.Now()
	defer func() { t.Logf("guest to host: %v", time.Since(start).Round(time.Millisecond)) }()
	if got := v.Must("/test/talk send " + net.JoinHostPort(address, sinkPort)); got != built.bulkSum {
		t.Errorf("the host received %s from the guest, want %s", got, built.bulkSum)
	}
}

func bulkDown(t *testing.T, v *session.VM, address string) {
	t.Helper()
	start := time.Now()
	defer func() { t.Logf("host to guest: %v", time.Since(start).Round(time.Millisecond)) }()
	if got := v.Must("/test/talk receive " + net.JoinHostPort(address, sourcePort)); !strings.HasPrefix(got, built.bulkSum) {
		t.Errorf("the guest received %s, want %s", got, built.bulkSum)
	}
}

// askFrom sends datagrams to an address of the namespace and wants them back.
func askFrom(t *testing.T, n *session.Network, address string) {
	t.Helper()
	c, err := n.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // of this test
	b := make([]byte, 64<<10)
	for _, size := range []int{1, 1400, 9000} {
		want := session.Pattern(9, size)
		got := func() bool { // what is lost is sent again
			if _, err := c.Write(want); err != nil || c.SetReadDeadline(time.Now().Add(time.Second)) != nil {
				return false
			}
			n, err := c.Read(b)
			return err == nil && bytes.Equal(b[:n], want)
		}
		for end := time.Now().Add(session.CommandLimit); !got(); {
			if time.Now().After(end) {
				t.Fatalf("a datagram of %d bytes to %s did not come back", size, address)
			}
		}
	}
}

// until runs a condition in the guest's shell until it holds.
func until(t *testing.T, v *session.VM, condition string) {
	t.Helper()
	line := fmt.Sprintf("end=$(($(date +%%s)+%d)); until %s; do [ $(date +%%s) -lt $end ] || break; usleep 20000; done; %s",
		int(session.EndLimit.Seconds()), condition, condition)
	if out, status := v.Shell(line); status != "0" {
		t.Fatalf("guest: not within %v: %s: %s\n%s", session.EndLimit, condition, out, v.Must("ip address; ip route; ps | grep udhcpc"))
	}
}

// addressed waits until an interface has an IPv4 address by DHCP.
func addressed(t *testing.T, v *session.VM, device, address string) {
	t.Helper()
	until(t, v, fmt.Sprintf("ip -4 -o address show dev %s | grep -qF ' %s ' && [ -s /etc/resolv.conf ]", device, address))
}

// virtplug runs a command about the running VM.
func virtplug(t *testing.T, v *session.VM, args ...string) {
	t.Helper()
	if out, err := v.Virtplug(args...).CombinedOutput(); err != nil {
		t.Fatalf("virtplug %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// link switches the link of the VM's eth0.
func link(t *testing.T, v *session.VM, up string) {
	t.Helper()
	virtplug(t, v, "command", "test", "eth0", "link", up)
}

// withNet makes a run in a namespace with the test's programs in the guest, named "test".
func withNet(t *testing.T, n *session.Network) *session.VM {
	t.Helper()
	v := prepare(t)
	v.Network = n
	v.Args = append(v.Args, "--name", "test", "--console", "stdio")
	return v
}

// resolve answers questions for A with an address, as long as the socket is open, whatever the name (RFC 1035, 4).
func resolve(c net.PacketConn, name string, address [4]byte) {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if answer := answerTo(b[:n], name, address); answer != nil {
			_, _ = c.WriteTo(answer, from) // it asks again
		}
	}
}

// answerTo makes the answer to a query; nil: it is none.
func answerTo(query []byte, name string, address [4]byte) []byte {
	const header, noError, noName = 12, 0, 3
	end := bytes.IndexByte(query[min(header, len(query)):], 0) + header + 5 // QNAME's end, QTYPE, QCLASS
	if len(query) < header || end < header+5 || end > len(query) {
		return nil
	}
	question := query[header:end]
	var wire []byte
	for label := range strings.SplitSeq(name, ".") {
		wire = append(append(wire, byte(len(label)&63)), label...)
	}
	code, records := byte(noName), byte(0)
	known := bytes.EqualFold(question[:len(question)-5], wire)
	if known {
		code = noError
	}
	if known && question[len(question)-3] == 1 { // A
		records = 1
	}
	out := append([]byte{query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, records, 0, 0, 0, 0}, question...)
	if records == 1 {
		out = append(out, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
		out = append(out, address[:]...)
	}
	return out
}

// file writes a file of the test, outside of any run's directory.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
