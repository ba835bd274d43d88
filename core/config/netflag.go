package config

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/virtplug/virtplug/core/tap"
)

// NetFlag is `--net user|tap:NAME|socket:PATH|loopback|null[,KEY=VALUE…]`. socket:PATH waits for a peer there; to go to one,
// `socket,connect=unix:PATH`.
func NetFlag(value string) DeviceFlag {
	return DeviceFlag{Flag: "--net", Value: value, Type: "net", Prefix: "net", First: func(s string) []string {
		if name, ok := strings.CutPrefix(s, "tap:"); ok {
			return []string{"backend=tap", "tap=" + name}
		}
		if path, ok := strings.CutPrefix(s, "socket:"); ok {
			return []string{"backend=socket", "listen=" + path}
		}
		if s == "" || strings.Contains(s, "=") {
			return []string{s}
		}
		return []string{"backend=" + s}
	}}
}

// tunnetPrefix is the length of the prefix of --tunnet's network, if it is not written: that of most private networks.
const tunnetPrefix = "/24"

// TunnetFlag is the lguest Launcher's `--tunnet=IP[:MAC]` and `--tunnet=bridge:BRIDGE[:MAC]`: a new tap, tap0 or the next free one,
// with IP as the host's address on it or attached to BRIDGE; MAC is the guest's. IP is one of IPv4 and may have the length of
// its network's prefix, "/24" if not.
func TunnetFlag(value string) (DeviceFlag, error) {
	tokens := []string{"backend=tap", "tap=tap%d"}
	where, mac, hasMAC := strings.Cut(value, ":")
	if where == "bridge" {
		where, mac, hasMAC = strings.Cut(mac, ":")
		if where == "" {
			return DeviceFlag{}, tunnetError(value)
		}
		tokens = append(tokens, "bridge="+where)
	} else {
		if !strings.Contains(where, "/") {
			where += tunnetPrefix
		}
		if p, err := netip.ParsePrefix(where); err != nil || !p.Addr().Is4() {
			return DeviceFlag{}, tunnetError(value)
		}
		if _, err := tap.ParseAddress(where); err != nil {
			return DeviceFlag{}, err
		}
		tokens = append(tokens, "address="+where)
	}
	if hasMAC {
		if addr, err := net.ParseMAC(mac); err != nil || len(addr) != 6 {
			return DeviceFlag{}, fmt.Errorf("%q is no MAC address; write one such as 02:00:00:00:00:01", mac)
		}
		tokens = append(tokens, "mac="+mac)
	}
	return DeviceFlag{Flag: "--tunnet", Value: value, Type: "net", Prefix: "net", First: func(string) []string { return tokens }}, nil
}

func tunnetError(value string) error {
	return fmt.Errorf("%q: want the host's IPv4 address or a bridge, and perhaps the guest's MAC address: 192.168.19.1, 192.168.19.1:02:00:00:00:00:01, bridge:br0; others by --net tap:NAME,address=ADDRESS/LENGTH", value)
}
