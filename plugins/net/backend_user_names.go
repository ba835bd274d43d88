package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	waitqueue "gvisor.dev/gvisor/pkg/waiter"
)

const (
	// userZone is the domain of the network's own names.
	userZone = "virtplug.internal."
	// dnsTimeout is how long one of the host's resolvers may take; resolvers of Linux ask again after 5 s.
	dnsTimeout = 5 * time.Second
	// maxQueries bounds what is asked at once; each takes a descriptor. Arbitrary.
	maxQueries = 64
)

// userNames is the gateway's DNS server. It knows the network's own names and those of the host's file of hosts; everything else goes
// to the host's resolvers as it is, and their answers come back as they are, AAAA records too.
type userNames struct {
	u *user
	// servers tells the host's resolvers, as in resolv.conf.
	servers func() (*dns.ClientConfig, error)
	// hosts knows the host's file of hosts only.
	hosts net.Resolver
	// asking has a token for each question under way.
	asking chan struct{}
}

func newUserNames(u *user) *userNames {
	return &userNames{
		u:       u,
		servers: func() (*dns.ClientConfig, error) { return dns.ClientConfigFromFile("/etc/resolv.conf") },
		hosts: net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("only the file of hosts is asked")
		}},
		asking: make(chan struct{}, maxQueries),
	}
}

// serveNames starts the gateway's DNS server.
func (u *user) serveNames() error {
	at := tcpip.FullAddress{NIC: userNIC, Addr: tcpAddress(u.plan.gateway), Port: dnsPort}
	conn, err := gonet.DialUDP(u.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("user-mode network: DNS: %w", err)
	}
	u.closers = append(u.closers, conn.Close)
	listener, err := u.listenNames(at)
	if err != nil {
		return err
	}
	limited := newLimitedListener(listener, maxQueries)
	u.closers = append(u.closers, limited.Close)
	u.serve("DNS", (&dns.Server{PacketConn: conn, Handler: u.names}).ActivateAndServe)
	u.serve("DNS", (&dns.Server{Listener: limited, Handler: u.names}).ActivateAndServe)
	return nil
}

// listenNames is gonet.ListenTCP, but what waits to be accepted is little: it takes memory too.
func (u *user) listenNames(at tcpip.FullAddress) (net.Listener, error) {
	wq := &waitqueue.Queue{}
	ep, e := u.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if e != nil {
		return nil, userError("DNS", e)
	}
	ep.SocketOptions().SetReceiveBufferSize(userStreamLeast, false)
	e = ep.Bind(at)
	if e == nil {
		e = ep.Listen(maxQueries)
	}
	if e != nil {
		ep.Close()
		return nil, userError("DNS", e)
	}
	return gonet.NewTCPListener(u.stack, wq, ep), nil
}

// limitedListener takes the next connection when there are few enough.
type limitedListener struct {
	net.Listener
	// taken has a token for each connection.
	taken  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newLimitedListener(l net.Listener, limit int) *limitedListener {
	return &limitedListener{Listener: l, taken: make(chan struct{}, limit), closed: make(chan struct{})}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.taken <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.taken
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.taken })}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// limitedConn is a connection of a limitedListener.
type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// ServeDNS is dns.Handler's.
func (n *userNames) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	_, stream := w.RemoteAddr().(*net.TCPAddr)
	m := n.answer(r, stream)
	if m == nil {
		return // no time for it: the guest asks again
	}
	if !stream {
		size := dns.MinMsgSize
		if o := r.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m) // the guest asks again
}

// answer answers r; stream: it came over TCP.
func (n *userNames) answer(r *dns.Msg, stream bool) *dns.Msg {
	if len(r.Question) != 1 || r.Opcode != dns.OpcodeQuery {
		return new(dns.Msg).SetRcode(r, dns.RcodeNotImplemented)
	}
	q := r.Question[0]
	if name, own := strings.CutSuffix(strings.ToLower(q.Name), userZone); own && (name == "" || strings.HasSuffix(name, ".")) {
		return n.own(r, strings.TrimSuffix(name, "."))
	}
	if n.u.restrict {
		return new(dns.Msg).SetRcode(r, dns.RcodeRefused)
	}
	if q.Qclass == dns.ClassINET && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA) {
		if addresses := n.host(q.Name); addresses != nil {
			return addressAnswer(r, addresses)
		}
	}
	select {
	case n.asking <- struct{}{}:
		defer func() { <-n.asking }()
	default:
		return nil
	}
	return n.ask(r, stream)
}

// own answers for the network's own names.
func (n *userNames) own(r *dns.Msg, name string) *dns.Msg {
	switch name {
	case "gateway":
		return addressAnswer(r, []netip.Addr{n.u.plan.gateway})
	case "host":
		return addressAnswer(r, []netip.Addr{n.u.plan.host})
	case "":
		return addressAnswer(r, nil)
	}
	return new(dns.Msg).SetRcode(r, dns.RcodeNameError)
}

// addressAnswer answers r with those of addresses that it asks for.
func addressAnswer(r *dns.Msg, addresses []netip.Addr) *dns.Msg {
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable = true
	q := r.Question[0]
	for _, a := range addresses {
		h := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}
		switch {
		case q.Qtype == dns.TypeA && a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: h, A: a.AsSlice()})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	return m
}

// host looks a name up in the host's file of hosts. What is the host's loopback there is the host's address on this network.
func (n *userNames) host(name string) []netip.Addr {
	name = strings.TrimSuffix(name, ".")
	if name == "" {
		return nil
	}
	addresses, err := n.hosts.LookupNetIP(n.u.ctx, "ip", name)
	if err != nil {
		return nil
	}
	for i, a := range addresses {
		if addresses[i] = a.Unmap(); a.IsLoopback() && !strings.EqualFold(name, "localhost") {
			addresses[i] = n.u.plan.host
		}
	}
	return addresses
}

// ask passes r on to the host's resolvers, one after the other.
func (n *userNames) ask(r *dns.Msg, stream bool) *dns.Msg {
	config, err := n.servers()
	if err != nil || len(config.Servers) == 0 {
		config = &dns.ClientConfig{Servers: []string{"127.0.0.1"}, Port: "53"} // as resolv.conf(5) has it
	}
	c := dns.Client{Net: "udp", Timeout: dnsTimeout, UDPSize: dns.MaxMsgSize}
	if stream {
		c.Net = "tcp"
	}
	for _, s := range config.Servers {
		m, _, err := c.ExchangeContext(n.u.ctx, r, net.JoinHostPort(s, config.Port))
		if err == nil && m.Rcode != dns.RcodeServerFailure && m.Rcode != dns.RcodeRefused {
			return m
		}
		if n.u.ctx.Err() != nil {
			break
		}
	}
	return new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
}
