package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"
)

// waitFor waits until ok.
func waitFor(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("%s: not in 30 s", what)
		}
	}
}

func TestUserGoesOnSendingWhenTheDriverTakesNothing(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	p := u.Port(0)
	sendFrame(t, p, arpRequest(u.plan.guest, u.plan.gateway), header{})
	receiveFrame(t, p)
	// Echo requests whose answers nobody receives.
	const size, count = 60000, 3 * userQueueBytes / 60000
	e := echoRequest(size)
	e[2], e[3] = checksumBytes(e)
	f := ethernet([]byte(userGatewayMAC), testGuestMAC[:], 0x0800, ipv4Packet(u.plan.guest, u.plan.gateway, 1, e))
	for range count {
		if n := sendFrame(t, p, f, header{}); n != 0 {
			t.Fatalf("%d frames dropped", n)
		}
	}
	s := u.Statistics()
	waiting := uint64(len(u.link.ports[0].packets) - u.link.ports[0].head) //nolint:gosec // G115: a length
	// The stack's ARP requests come on top.
	if s["user_rx_dropped_full"] == 0 || s["user_rx_dropped_full"]+waiting < count || u.link.ports[0].bytes > userQueueBytes {
		t.Errorf("%d wait, %v", waiting, s)
	}
	for range waiting { // what waited is still good, and makes room again
		if b, _ := receiveFrame(t, p); len(b) != 42+size && len(b) != 42 {
			t.Errorf("a frame of %d bytes", len(b))
		}
	}
	full := u.Statistics()["user_rx_dropped_full"]
	for range 100 {
		sendFrame(t, p, f, header{})
		receiveFrame(t, p)
	}
	if n := u.Statistics()["user_rx_dropped_full"]; n != full {
		t.Errorf("%d frames dropped with an empty queue", n-full)
	}
}

//nolint:paralleltest // the goroutines of others would count
func TestUserClosesWhateverGoesOn(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	for range 3 {
		t.Run("life", closeUnderLoad)
	}
	goleak.VerifyNone(t, ignore)
}

// closeUnderLoad closes a back-end that has connections of all kinds.
func closeUnderLoad(t *testing.T) {
	p := freePort(t, "tcp")
	u := newTestUser(t, &settings{Forward: []string{"tcp:" + p + ":80", "udp:0:53"}})
	l, addr := hostListener(t, u)
	g := newGuest(t, u, guestOptions{})
	hosts := make(chan net.Conn, 10)
	go func() {
		defer close(hosts)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			hosts <- c
		}
	}()
	var conns []net.Conn
	for range 5 { // with data on the way that nobody reads
		c, err := g.dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = c.Write(make([]byte, 4<<20))
		conns = append(conns, c)
	}
	c, err := g.udp(0, hostUDP(t, u))
	if err != nil {
		t.Fatal(err)
	}
	echoed(t, c, 10)
	g.stop()
	// The guest is gone: what connects to it waits for an answer, and what it began is never completed.
	var d net.Dialer
	in, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:"+p)
	if err != nil {
		t.Fatal(err)
	}
	sendFrame(t, g.port, synFrame(u, addr), header{})
	waitFor(t, "the half-open connection", func() bool { return len(hosts) == 6 })

	if err := u.Close(); err != nil {
		t.Error(err)
	}
	if err := u.Close(); err != nil {
		t.Error("second close:", err)
	}
	_ = l.Close()
	for h := range hosts {
		_ = h.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, h); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a connection of the closed network ended with %v: want a reset", err)
		}
		_ = h.Close()
	}
	for _, c := range append(conns, in, c) {
		_ = c.Close()
	}
	q, err := net.Listen("tcp", "127.0.0.1:"+p) //nolint:noctx // closed at once
	if err != nil {
		t.Fatalf("the port is still taken: %v", err)
	}
	_ = q.Close()
}

// synFrame opens a TCP connection to addr.
func synFrame(u *user, addr netip.AddrPort) []byte {
	b := make([]byte, netheader.TCPMinimumSize)
	h := netheader.TCP(b)
	h.Encode(&netheader.TCPFields{SrcPort: 999, DstPort: addr.Port(), SeqNum: 1, DataOffset: netheader.TCPMinimumSize, Flags: netheader.TCPFlagSyn, WindowSize: 1000})
	return ethernet([]byte(userGatewayMAC), testGuestMAC[:], 0x0800, ipv4Packet(u.plan.guest, addr.Addr(), 6, b))
}
