package main

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// query asks the gateway.
func (g *guest) query(t *testing.T, network, name string, kind uint16) *dns.Msg {
	t.Helper()
	at := netip.AddrPortFrom(g.user.plan.gateway, 53)
	var c net.Conn
	var err error
	if network == "udp" {
		c, err = g.udp(0, at)
	} else {
		c, err = g.dial(at)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	co := &dns.Conn{Conn: c, UDPSize: dns.MaxMsgSize}
	m := new(dns.Msg).SetQuestion(name, kind)
	if network == "udp" {
		c = &datagrams{c}
		co.Conn = c
	}
	if err := co.WriteMsg(m); err != nil {
		t.Fatal(err)
	}
	r, err := co.ReadMsg()
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return r
}

// datagrams makes a connection known as one of datagrams to package dns.
type datagrams struct{ net.Conn }

func (d *datagrams) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := d.Read(b)
	return n, d.RemoteAddr(), err
}
func (d *datagrams) WriteTo(b []byte, _ net.Addr) (int, error) { return d.Write(b) }

// testResolver is a resolver of the host that knows example.test and notvirtplug.internal.
func testResolver(tb testing.TB, u *user) {
	tb.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0") //nolint:noctx // the test's
	if err != nil {
		tb.Fatal(err)
	}
	_, p, _ := net.SplitHostPort(pc.LocalAddr().String())
	l, err := net.Listen("tcp4", "127.0.0.1:"+p) //nolint:noctx // the test's
	if err != nil {
		tb.Skipf("the TCP port %s is taken: %v", p, err)
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		q := r.Question[0]
		head := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 77}
		switch {
		case q.Name != "example.test." && q.Name != "notvirtplug.internal.":
			m.Rcode = dns.RcodeNameError
		case q.Qtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: head, A: net.IPv4(192, 0, 2, 7)}}
		case q.Qtype == dns.TypeAAAA:
			m.Answer = []dns.RR{&dns.AAAA{Hdr: head, AAAA: net.ParseIP("2001:db8::7")}}
		case q.Qtype == dns.TypeTXT: // too long for UDP
			for range 30 {
				m.Answer = append(m.Answer, &dns.TXT{Hdr: head, Txt: []string{string(bytes.Repeat([]byte("x"), 200))}})
			}
			if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
				m.Truncate(dns.MinMsgSize)
			}
		}
		_ = w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		tb.Cleanup(func() { _ = s.Shutdown() })
	}
	u.names.servers = func() (*dns.ClientConfig, error) {
		return &dns.ClientConfig{Servers: []string{"127.0.0.1"}, Port: p}, nil
	}
}

func TestUserResolvesNames(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	testResolver(t, u)
	g := newGuest(t, u, guestOptions{})
	for _, c := range []struct {
		name    string
		kind    uint16
		rcode   int
		answers int
		address string
	}{
		{"gateway.virtplug.internal.", dns.TypeA, dns.RcodeSuccess, 1, "192.168.127.1"},
		{"host.virtplug.internal.", dns.TypeA, dns.RcodeSuccess, 1, "192.168.127.254"},
		{"HOST.VirtPlug.internal.", dns.TypeA, dns.RcodeSuccess, 1, "192.168.127.254"},
		{"host.virtplug.internal.", dns.TypeAAAA, dns.RcodeSuccess, 0, ""},
		{"host.virtplug.internal.", dns.TypeMX, dns.RcodeSuccess, 0, ""},
		{"nobody.virtplug.internal.", dns.TypeA, dns.RcodeNameError, 0, ""},
		{"virtplug.internal.", dns.TypeA, dns.RcodeSuccess, 0, ""},
		{"notvirtplug.internal.", dns.TypeA, dns.RcodeSuccess, 1, "192.0.2.7"},
		{"localhost.", dns.TypeA, dns.RcodeSuccess, 1, "127.0.0.1"},
		{"example.test.", dns.TypeA, dns.RcodeSuccess, 1, "192.0.2.7"},
		{"example.test.", dns.TypeAAAA, dns.RcodeSuccess, 1, ""},
		{"other.test.", dns.TypeA, dns.RcodeNameError, 0, ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r := g.query(t, network, c.name, c.kind)
			if r.Rcode != c.rcode || len(r.Answer) != c.answers {
				t.Errorf("%s %s: %v", network, c.name, r)
			} else if a, ok := first(r).(*dns.A); c.address != "" && (!ok || a.A.String() != c.address) {
				t.Errorf("%s %s: %v", network, c.name, r)
			}
		}
	}
	if r := g.query(t, "udp", "example.test.", dns.TypeTXT); !r.Truncated {
		t.Errorf("a long answer over UDP: %v", r)
	}
	if r := g.query(t, "tcp", "example.test.", dns.TypeTXT); len(r.Answer) != 30 {
		t.Errorf("a long answer over TCP: %d records", len(r.Answer))
	}
}

// first is the first answer.
func first(r *dns.Msg) dns.RR {
	if len(r.Answer) == 0 {
		return nil
	}
	return r.Answer[0]
}

func TestUserTellsThatNoResolverAnswers(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	p := freePort(t, "udp")
	u.names.servers = func() (*dns.ClientConfig, error) {
		return &dns.ClientConfig{Servers: []string{"127.0.0.1"}, Port: p}, nil
	}
	g := newGuest(t, u, guestOptions{})
	if r := g.query(t, "udp", "example.test.", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer %v", r)
	}
}
