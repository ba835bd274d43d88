package session_test

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/tests/session"
)

// A namespace has sockets, programs and files of its own, and nobody else comes into it.
func TestANetworkIsByItself(t *testing.T) {
	t.Parallel()
	const file = "/etc/hosts"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := session.NewNetwork(t, map[string]string{file: "127.0.0.1 somewhere\n"})
	n.Run("ip", "address", "add", "192.0.2.1/24", "dev", "lo")
	l := n.Listen("192.0.2.1:7")
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.WriteString(c, "here")
			_ = c.Close()
		}
	}()
	c, err := n.Dial("tcp", "192.0.2.1:7")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); string(b) != "here" || err != nil {
		t.Errorf("the server said %q, %v", b, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if got := n.Run("cat", file); got != "127.0.0.1 somewhere\n" {
		t.Errorf("%s in the namespace: %q", file, got)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("%s of the host has changed: %q, %v", file, after, err)
	}
	if got := session.NewNetwork(t, nil).Run("ip", "address"); strings.Contains(got, "192.0.2.1") {
		t.Errorf("another namespace has the address too:\n%s", got)
	}
}

// Frames are counted by direction, with their length.
func TestFramesOfAnInterfaceAreCounted(t *testing.T) {
	t.Parallel()
	n := session.NewNetwork(t, nil)
	n.Run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
	f, g := n.Watch(t, "v0"), n.Watch(t, "v1")
	for _, i := range []string{"v0", "v1"} {
		n.Run("ip", "link", "set", i, "up", "mtu", "2000")
	}
	n.Run("ip", "address", "add", "192.0.2.1/24", "dev", "v0")
	n.Run("ip", "neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "v0")
	peer, err := n.Dial("udp", "192.0.2.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close() //nolint:errcheck // of this test
	if _, err := peer.Write(make([]byte, 1900)); err != nil {
		t.Fatal(err)
	}
	const want = 14 + 20 + 8 + 1900
	f.Until(t, "frame", func(_, out session.FrameCount) bool { return out.Longest == want })
	g.Until(t, "frame", func(in, _ session.FrameCount) bool { return in.Longest == want })
	if in, _ := f.Counts(); in.Longest >= want {
		t.Errorf("received on v0: %+v", in)
	}
}
