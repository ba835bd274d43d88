package main

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/containers/gvisor-tap-vsock/pkg/services/dhcp"
	ippool "github.com/containers/gvisor-tap-vsock/pkg/tap"
	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// maxLeasing bounds the requests for a lease that are served at once. Arbitrary.
const maxLeasing = 16

// serveLeases starts the gateway's DHCP server.
func (u *user) serveLeases(mac macAddress, mtu int) error {
	subnet := &net.IPNet{IP: u.plan.subnet.Addr().AsSlice(), Mask: net.CIDRMask(u.plan.subnet.Bits(), 32)}
	pool := ippool.NewIPPool(subnet)
	for _, a := range []interface{ String() string }{u.plan.gateway, u.plan.host, u.plan.broadcast} {
		pool.Reserve(net.ParseIP(a.String()), net.HardwareAddr(userGatewayMAC).String())
	}
	pool.Reserve(u.plan.guest.AsSlice(), net.HardwareAddr(mac[:]).String())
	server, err := dhcp.New(&types.Configuration{
		Subnet: u.plan.subnet.String(), GatewayIP: u.plan.gateway.String(), MTU: mtu, DNSSearchDomains: []string{strings.TrimSuffix(userZone, ".")},
	}, u.stack, pool)
	if err != nil {
		return fmt.Errorf("user-mode network: DHCP: %w", err)
	}
	u.closers = append(u.closers, server.Underlying.Close)
	// The server makes a goroutine of each request, and they wait for one another.
	serving, handle := make(chan struct{}, maxLeasing), server.Underlying.Handler
	server.Underlying.Handler = func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		select {
		case serving <- struct{}{}:
			defer func() { <-serving }()
			handle(conn, peer, m)
		default: // the guest asks again
		}
	}
	u.serve("DHCP", server.Serve)
	return nil
}

// serve runs one of the network's servers until Close.
func (u *user) serve(name string, run func() error) {
	u.spawn(func() {
		if err := run(); err != nil && u.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
			u.env.Fail(fmt.Errorf("user-mode network: %s server: %w", name, err), false)
		}
	})
}
