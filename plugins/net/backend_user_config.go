package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
)

// userSubnet is the network of back-end user if the settings name none.
const userSubnet = "192.168.127.0/24"

// userPlan is who has which address of the network.
type userPlan struct {
	subnet netip.Prefix
	// gateway is the first address, guest the second one, host, which stands for the host's own 127.0.0.1, the last one.
	gateway, guest, host netip.Addr
	// broadcast is the one after host.
	broadcast netip.Addr
}

// newUserPlan divides the network that the setting subnet names.
func newUserPlan(subnet string) (userPlan, error) {
	if subnet == "" {
		subnet = userSubnet
	}
	fail := func(format string, args ...any) (userPlan, error) {
		return userPlan{}, sdk.SettingError("subnet", "subnet %q: "+format, append([]any{subnet}, args...)...)
	}
	p, err := netip.ParsePrefix(subnet)
	switch {
	case err != nil:
		return fail("want a network such as %q", userSubnet)
	case !p.Addr().Is4():
		return fail("the user-mode network is IPv4 only: want a network such as %q", userSubnet)
	case p.Bits() < 16 || p.Bits() > 29:
		return fail("want a prefix length of 16 to 29, as in %q", userSubnet)
	case p.Masked() != p:
		return fail("this is an address in the network %q", p.Masked())
	case !routable(p.Addr()):
		return fail("these addresses are reserved for other uses: want a private network such as %q", userSubnet)
	}
	first := p.Addr().As4()
	last := first
	for i := p.Bits(); i < 32; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	broadcast := netip.AddrFrom4(last)
	gateway := p.Addr().Next()
	return userPlan{subnet: p, gateway: gateway, guest: gateway.Next(), host: broadcast.Prev(), broadcast: broadcast}, nil
}

// routable tells whether a may be somebody's address beyond this link: neither this host's, nor the link's, nor a group's.
func routable(a netip.Addr) bool {
	b := a.As4()
	return b[0] != 0 && b[0] < 240 && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}

// overlap names the host's interface whose network overlaps p, which the guest then cannot reach; "" if there is none or it cannot be
// known.
func overlap(p netip.Prefix) string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for i := range interfaces {
		addrs, err := interfaces[i].Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			q, err := netip.ParsePrefix(a.String())
			if err == nil && q.Overlaps(p) {
				return fmt.Sprintf("%s (%v)", interfaces[i].Name, q)
			}
		}
	}
	return ""
}

// userForward is one port of the host that leads to the guest.
type userForward struct {
	// attribute is its place in the settings, text what is there.
	attribute, text string
	// network is "tcp" or "udp".
	network string
	// host is the host's address and port; port 0 takes a free one. guest is the guest's port.
	host  netip.AddrPort
	guest uint16
}

// family is network for the address's family only: package net takes 0.0.0.0 for IPv6 too.
func (f *userForward) family() string {
	if f.host.Addr().Is4() {
		return f.network + "4"
	}
	return f.network + "6"
}

const forwardForm = `want "tcp:8080:80", "udp:127.0.0.1:5353:53" or "tcp:[::1]:8080:80": protocol, the host's address (127.0.0.1 if there is none), its port, the guest's port`

// parseForwards reads the setting forward.
func parseForwards(list []string) ([]userForward, error) {
	forwards := make([]userForward, 0, len(list))
	for i, text := range list {
		f, err := parseForward(text)
		f.attribute = fmt.Sprintf("forward.%d", i)
		if err != nil {
			return nil, sdk.SettingError(f.attribute, "forward %q: %w", text, err)
		}
		for j := range forwards {
			if g := &forwards[j]; g.network == f.network && g.host == f.host && f.host.Port() != 0 {
				return nil, sdk.SettingError(f.attribute, "forward %q: %q has the host's %s port %v already", text, g.text, f.network, f.host)
			}
		}
		forwards = append(forwards, f)
	}
	return forwards, nil
}

func parseForward(text string) (userForward, error) {
	f := userForward{text: text}
	network, rest, ok := strings.Cut(text, ":")
	if !ok || network != "tcp" && network != "udp" {
		return f, errors.New(forwardForm)
	}
	f.network = network
	address := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	ports := rest
	if colon := hostEnd(rest); colon >= 0 {
		a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(rest[:colon], "["), "]"))
		if err != nil {
			return f, fmt.Errorf("%q is no address: %s", rest[:colon], forwardForm)
		}
		address, ports = a, rest[colon+1:]
	}
	hostPort, guestPort, ok := strings.Cut(ports, ":")
	if !ok {
		return f, errors.New(forwardForm)
	}
	h, err := strconv.ParseUint(hostPort, 10, 16)
	if err != nil {
		return f, fmt.Errorf("host's port %q: want 1 to 65535, or 0 for one that is free", hostPort)
	}
	g, err := strconv.ParseUint(guestPort, 10, 16)
	if err != nil || g == 0 {
		return f, fmt.Errorf("guest's port %q: want 1 to 65535", guestPort)
	}
	f.host, f.guest = netip.AddrPortFrom(address, uint16(h)), uint16(g)
	return f, nil
}

// hostEnd is the place of the colon behind the address that s begins with, -1 if it begins with a port.
func hostEnd(s string) int {
	if strings.HasPrefix(s, "[") {
		if i := strings.Index(s, "]:"); i >= 0 {
			return i + 1
		}
		return -1
	}
	if strings.Count(s, ":") < 2 {
		return -1
	}
	// Two ports follow an address without brackets.
	i := strings.LastIndexByte(s, ':')
	return strings.LastIndexByte(s[:i], ':')
}

// bindError says why the host's end of f cannot be had, and what to do.
func (f *userForward) bindError(err error) error {
	advice := "take another port"
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		advice = fmt.Sprintf("another program or VM has the host's %s port %v: end it, or take another port", f.network, f.host)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		advice = "ports below net.ipv4.ip_unprivileged_port_start (mostly 1024) need privileges: take a higher one"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		advice = fmt.Sprintf("%v is no address of this host: take one of those that `ip address` shows, or leave it out", f.host.Addr())
	case errors.Is(err, unix.EAFNOSUPPORT):
		advice = "this host has no IPv6: take an IPv4 address"
	}
	return sdk.SettingError(f.attribute, "forward %q: %s: %w", f.text, advice, err)
}
