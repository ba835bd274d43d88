package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// userMTU is the largest IP packet of the user-mode network if the settings name none: the driver's per-packet costs count, not a wire.
const userMTU = 65520

// userMinMTU is the smallest: what every IPv4 host must take (RFC 791, 3.1), and DHCP relies on.
const userMinMTU = 576

// userTimeWait is how long the stack keeps a closed connection in TIME-WAIT, which takes memory: no packet lives longer between the
// driver and us. Arbitrary.
const userTimeWait = time.Second

// userNIC is the stack's only network card.
const userNIC = 1

// user is a network of the device's own behind the host's sockets: a TCP/IP stack (gVisor's) ends the guest's connections, and each
// goes on as a socket of this process. It needs no privileges and no set-up. Port i belongs to queue pair i; the guest's flows are
// divided among those in use.
//
//	first address    the gateway: DHCP, DNS, echo
//	second address   the guest: leased to the device's own MAC address, and where forwarded ports lead; others get the next ones
//	last address     the host: its 127.0.0.1, TCP and UDP
//	outside          TCP, UDP and echo, from the host's address; the networks 0/8, 127/8, 169.254/16, 224/4 and 240/4 are refused
//
// Who cannot be reached by TCP (refused, unreachable, no answer) resets the guest's connection. Names are resolved by the host's
// resolvers; gateway and host are in virtplug.internal. There is no IPv6: such frames are ignored; AAAA records are passed on.
//
// With the setting restrict nothing leads out, not even to the host's 127.0.0.1: connections are reset, datagrams refused, echo
// requests ignored, and DNS knows virtplug.internal only. DHCP, forwarded ports and echo of the gateway stay.
//
// An instance that takes over from another has the same addresses, the gateway's MAC address among them, so the guest's lease and ARP
// cache stay right. The stack's connections and flows are lost with the process: the guest sees resets.
type user struct {
	env   *sdk.Env
	plan  userPlan
	link  *userLink
	stack *stack.Stack
	// restrict: nothing leads out.
	restrict bool

	// ctx ends at Close, and with it what dials and serves; tasks are the goroutines.
	ctx   context.Context //nolint:containedctx // the back-end's life, which no caller has a context for
	stop  context.CancelFunc
	tasks sync.WaitGroup
	// closing guards closed, after which no task begins.
	closing sync.Mutex
	closed  bool
	// closers are the host's and the stack's listeners.
	closers []func() error

	names   *userNames
	streams *userStreams
	flows   *userFlows
}

// newUser makes back-end user for the device whose address is mac. Its link is always up: changed is never called.
func newUser(env *sdk.Env, cfg *settings, mac macAddress, _ func()) (backend, error) {
	plan, err := newUserPlan(cfg.Subnet)
	if err != nil {
		return nil, err
	}
	forwards, err := parseForwards(cfg.Forward)
	if err != nil {
		return nil, err
	}
	mtu := cfg.MTU
	switch {
	case mtu == 0:
		mtu = userMTU
	case mtu < userMinMTU:
		return nil, sdk.SettingError("mtu", "%d: the user-mode network needs at least %d, for DHCP's messages must come whole", mtu, userMinMTU)
	}
	if at := overlap(plan.subnet); at != "" {
		env.Notice(fmt.Sprintf("the guest's network %v hides the host's network at %s: set subnet to another one to reach it", plan.subnet, at), nil)
	}
	redirectLog(env.Log)
	u := &user{env: env, plan: plan, restrict: cfg.Restrict, link: newUserLink(max(1, cfg.QueuePairs), mtu, &plan)}
	u.ctx, u.stop = context.WithCancel(context.Background())
	u.names = newUserNames(u)
	u.link.pings = newUserPings(u)
	u.streams, u.flows = newUserStreams(), newUserFlows()
	if err := u.start(mac, mtu, forwards); err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return u, nil
}

// start makes the stack and everything that it serves.
func (u *user) start(mac macAddress, mtu int, forwards []userForward) error {
	if err := u.newStack(); err != nil {
		return err
	}
	if err := u.serveNames(); err != nil {
		return err
	}
	if err := u.serveLeases(mac, mtu); err != nil {
		return err
	}
	u.forwardStreamsOut()
	u.forwardFlowsOut()
	for i := range forwards {
		if err := u.forwardIn(&forwards[i]); err != nil {
			return err
		}
	}
	return nil
}

// forwardIn opens the host's port of f.
func (u *user) forwardIn(f *userForward) error {
	open := u.forwardStreamsIn
	if f.network == "udp" {
		open = u.forwardFlowsIn
	}
	at, err := open(f)
	if err != nil {
		return f.bindError(err)
	}
	if f.host.Port() == 0 {
		u.env.Notice(fmt.Sprintf("%s port %v leads to the guest's port %d", f.network, at, f.guest),
			map[string]string{"forward": f.text, "address": at.String()})
	}
	return nil
}

// enter begins a task, which ends by u.tasks.Done; false: it is over.
func (u *user) enter() bool {
	u.closing.Lock()
	defer u.closing.Unlock()
	if !u.closed {
		u.tasks.Add(1)
	}
	return !u.closed
}

// spawn runs f, which ends with u.ctx or what it serves; false: it is over.
func (u *user) spawn(f func()) bool {
	if !u.enter() {
		return false
	}
	go func() {
		defer u.tasks.Done()
		f()
	}()
	return true
}

func (u *user) newStack() error {
	u.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	subnet, err := tcpip.NewSubnet(tcpAddress(u.plan.subnet.Addr()), tcpip.MaskFromBytes(net.CIDRMask(u.plan.subnet.Bits(), 32)))
	if err != nil {
		return err
	}
	if err := u.stack.CreateNIC(userNIC, u.link); err != nil {
		return fmt.Errorf("user-mode network: %v", err)
	}
	address := tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpAddress(u.plan.gateway), PrefixLen: u.plan.subnet.Bits()},
	}
	if err := u.stack.AddProtocolAddress(userNIC, address, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("user-mode network: address %v: %v", u.plan.gateway, err)
	}
	u.stack.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: userNIC}})
	// The stack takes packets for every address, and answers as if from there.
	u.stack.SetSpoofing(userNIC, true)
	u.stack.SetPromiscuousMode(userNIC, true)
	return u.tune()
}

// tune sets the stack's TCP up.
func (u *user) tune() error {
	sack := tcpip.TCPSACKEnabled(true)
	if err := u.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return fmt.Errorf("user-mode network: SACK: %v", err)
	}
	closed := tcpip.TCPTimeWaitTimeoutOption(userTimeWait)
	if err := u.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &closed); err != nil {
		return fmt.Errorf("user-mode network: TIME-WAIT: %v", err)
	}
	return nil
}

func (u *user) Offer() offer {
	return offer{
		Host:  virtio.FNetCSum | virtio.FNetHostTSO4 | virtio.FNetHostECN,
		Guest: virtio.FNetGuestCSum | virtio.FNetGuestTSO4,
		Pairs: len(u.link.ports),
		MTU:   int(u.link.mtu),
	}
}

func (u *user) SetOffloads(guest virtio.Features) error {
	u.link.guest.Store(uint64(guest))
	return nil
}

func (u *user) SetPairs(n int) error {
	if n < 1 || n > len(u.link.ports) {
		return fmt.Errorf("user-mode network: %d queue pairs: want 1 to %d", n, len(u.link.ports))
	}
	u.link.pairs.Store(int32(n)) //nolint:gosec // G115: checked above
	return nil
}

func (u *user) Port(i int) port { return u.link.ports[i] }

func (u *user) Link() bool { return true }

func (u *user) Statistics() map[string]uint64 {
	m := map[string]uint64{
		"user_streams": u.streams.total.Load(), "user_streams_refused": u.streams.refused.Load(),
		"user_flows": u.flows.total.Load(), "user_flows_refused": u.flows.refused.Load(), "user_flows_evicted": u.flows.evicted.Load(),
		"user_tx_dropped_udp_full": u.flows.full.Load(), "user_tx_dropped_udp_malformed": u.flows.malformed.Load(),
	}
	m["user_pings_sent"], m["user_pings_received"], m["user_pings_ignored"] =
		u.link.pings.sent.Load(), u.link.pings.received.Load(), u.link.pings.ignored.Load()
	for _, p := range u.link.ports {
		p.counts.add(m)
	}
	return m
}

// Close ends every connection and goroutine of the network and frees the host's ports.
func (u *user) Close() error {
	u.closing.Lock()
	first := !u.closed
	u.closed = true
	u.closing.Unlock()
	u.stop()
	var errs []error
	for _, c := range u.closers {
		if err := c(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	u.closers = nil
	u.streams.close()
	u.flows.close()
	u.link.pings.close()
	for _, p := range u.link.ports {
		p.close()
	}
	if u.stack != nil && first {
		u.stack.Close()
		u.tasks.Wait()
		u.stack.Wait()
	}
	return errors.Join(errs...)
}
