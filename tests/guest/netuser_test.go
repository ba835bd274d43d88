package guest_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/tests/session"
)

// A namespace whose name server knows one name: another computer, as the guest sees it, that answers at otherAddress.
const (
	otherName    = "other.example.test"
	otherAddress = "198.51.100.7"
)

// outside makes a network with servers: on the host's loopback, and on the address of otherName.
func outside(t *testing.T) *session.Network {
	t.Helper()
	n := session.NewNetwork(t, map[string]string{"/etc/resolv.conf": "nameserver 127.0.0.1\n"})
	n.Run("ip", "address", "add", otherAddress+"/32", "dev", "lo")
	go resolve(n.ListenPacket("127.0.0.1:53"), otherName, [4]byte(net.ParseIP(otherAddress).To4()))
	go resolve(n.ListenPacket(otherAddress+":53"), otherName, [4]byte(net.ParseIP(otherAddress).To4()))
	serveBulk(n)
	serveEcho(n)
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // G112: the client is the test's
		_, _ = io.WriteString(w, "a page for "+r.Host) //nolint:gosec // G705: nobody shows it
	})}
	l := n.Listen("[::]:" + webPort)
	go func() { _ = web.Serve(l) }()
	t.Cleanup(func() { _ = web.Close() })
	return n
}

// Back-end user, as it comes: the guest has an address, finds names, reaches the host and others, by TCP and UDP, both ways.
func TestGuestNetworkOfUserBackEnd(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	n := outside(t)
	v := withNet(t, n)
	v.Boot("--net", "user,forward=tcp:8080:80,forward=udp:127.0.0.1:5353:53")
	addressed(t, v, "eth0", "192.168.127.2/24")

	if got := v.Must("ip route show default"); !strings.Contains(got, "via 192.168.127.1 dev eth0") {
		t.Errorf("default route: %q", got)
	}
	if got := v.Must("cat /sys/class/net/eth0/mtu"); got != "65520" {
		t.Errorf("MTU %s", got)
	}
	v.Must("ping -c 3 -i 0.2 192.168.127.1 && ping -c 1 -s 60000 192.168.127.1")
	checkNames(t, v)
	checkPages(t, v)
	bulkUp(t, v, "host.virtplug.internal")
	bulkDown(t, v, otherName)
	for _, to := range []string{"192.168.127.254", otherAddress} {
		v.Must("/test/talk ask " + to + ":" + echoPort + " 1 1400 9000 60000")
	}

	// From outside into the guest.
	v.Must("httpd -p 80 -h /test")
	get(t, n, "127.0.0.1:8080")
	v.Type("/test/talk echo :53 &\r")
	v.Expect("ready\r\n", session.CommandLimit)
	askFrom(t, n, "127.0.0.1:5353")
	v.PowerOff()
}

// checkNames looks up names in the guest: those of the network itself, and what the host's name server knows.
func checkNames(t *testing.T, v *session.VM) {
	t.Helper()
	for name, want := range map[string]string{
		"host.virtplug.internal": "192.168.127.254", "gateway.virtplug.internal": "192.168.127.1", otherName: otherAddress,
		otherName + " " + otherAddress: otherAddress, // by another server, somewhere outside
	} {
		if got := v.Must("nslookup " + name + " | grep -A 1 ^Name"); !strings.Contains(got, want) {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if out, status := v.Shell("nslookup nothing.example.test"); status == "0" {
		t.Errorf("a name that nobody knows: %s", out)
	}
}

// checkPages gets pages in the guest.
func checkPages(t *testing.T, v *session.VM) {
	t.Helper()
	for _, name := range []string{"host.virtplug.internal", otherName} {
		if got, want := v.Must("wget -qO- http://"+name+":"+webPort+"/"), pageFor(name); got != want {
			t.Errorf("page %q, want %q", got, want)
		}
	}
	if out, status := v.Shell("wget -qO- http://host.virtplug.internal:9/"); status == "0" || !strings.Contains(out, "refused") {
		t.Errorf("a port where nobody listens: %s, %s", status, out)
	}
}

// pageFor is what the test's web server says to who asks for it by name.
func pageFor(name string) string { return "a page for " + name + ":" + webPort }

// get fetches /test/data from the guest's web server.
func get(t *testing.T, n *session.Network, address string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return n.Dial("tcp", address) },
		DisableKeepAlives: true,
	}}
	r, err := c.Get("http://guest/data") //nolint:noctx // the guest ends with the test
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close() //nolint:errcheck // read only
	if b, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(b, session.Pattern(1, 3<<20)) {
		t.Errorf("the guest's server sent %d bytes that are not /test/data (%v, %s)", len(b), err, r.Status)
	}
}

// A crash of the plugin ends the connections that lived in it; new ones work, and the guest keeps its address.
func TestGuestNetworkOfUserBackEndAfterACrash(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	v := withNet(t, outside(t))
	v.Boot("--device", "net=eth0")
	addressed(t, v, "eth0", "192.168.127.2/24")
	page := "wget -qO- http://192.168.127.254:" + webPort + "/"
	v.Must(page)
	for range 3 {
		v.KillPlugin("net")
		until(t, v, page)
	}
	bulkDown(t, v, "192.168.127.254")
	v.PowerOff()
}

// Nothing of the user back-end needs privileges.
func TestGuestNetworkAsNobody(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	v := withNet(t, outside(t))
	v.UID = 65534
	v.Boot("--net", "user,subnet=10.9.8.0/24")
	addressed(t, v, "eth0", "10.9.8.2/24")
	if got := v.Must("wget -qO- http://host.virtplug.internal:" + webPort + "/"); got != pageFor("host.virtplug.internal") {
		t.Errorf("page %q", got)
	}
	v.PowerOff()
}
