package main

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

func TestUserSubnets(t *testing.T) {
	t.Parallel()
	for subnet, want := range map[string]string{
		"":                    "192.168.127.1 192.168.127.2 192.168.127.254",
		"10.0.2.0/24":         "10.0.2.1 10.0.2.2 10.0.2.254",
		"172.16.0.0/16":       "172.16.0.1 172.16.0.2 172.16.255.254",
		"192.168.1.248/29":    "192.168.1.249 192.168.1.250 192.168.1.254",
		"192.168.127.0":       "want a network",
		"home":                "want a network",
		"fd00::/64":           "IPv4 only",
		"10.0.0.0/8":          "prefix length of 16 to 29",
		"10.0.0.0/30":         "prefix length of 16 to 29",
		"10.0.0.5/24":         `in the network "10.0.0.0/24"`,
		"127.0.0.0/24":        "reserved",
		"169.254.0.0/16":      "reserved",
		"224.0.0.0/24":        "reserved",
		"0.0.0.0/24":          "reserved",
		"255.255.255.0/24":    "reserved",
		"::ffff:10.0.0.0/120": "IPv4 only",
	} {
		p, err := newUserPlan(subnet)
		got := p.gateway.String() + " " + p.guest.String() + " " + p.host.String()
		if se := (*pluginrpc.SettingError)(nil); err != nil {
			if got = err.Error(); !errors.As(err, &se) || se.Attribute != "subnet" {
				t.Errorf("%q: %v is not an error of the setting", subnet, err)
			}
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s: want %s", subnet, got, want)
		}
	}
}

func TestUserForwardSyntax(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"tcp:8080:80":                "tcp 127.0.0.1:8080 80",
		"udp:5353:53":                "udp 127.0.0.1:5353 53",
		"tcp:127.0.0.2:8080:80":      "tcp 127.0.0.2:8080 80",
		"tcp:0.0.0.0:8080:80":        "tcp 0.0.0.0:8080 80",
		"tcp:[::1]:8080:80":          "tcp [::1]:8080 80",
		"udp:::1:8080:80":            "udp [::1]:8080 80",
		"tcp:0:80":                   "tcp 127.0.0.1:0 80",
		"8080:80":                    "want \"tcp:8080:80\"",
		"sctp:8080:80":               "want \"tcp:8080:80\"",
		"tcp":                        "want \"tcp:8080:80\"",
		"tcp:":                       "want \"tcp:8080:80\"",
		"tcp:8080":                   "want \"tcp:8080:80\"",
		"tcp:localhost:8080:80":      `"localhost" is no address`,
		"tcp:[::1:8080:80":           "want",
		"tcp:99999:80":               `host's port "99999"`,
		"tcp:8080:0":                 `guest's port "0"`,
		"tcp:8080:80x":               `guest's port "80x"`,
		"tcp:8080:-1":                `guest's port "-1"`,
		"tcp:127.0.0.1:8080:80:more": "is no address",
		"tcp:[::1]:8080":             "want \"tcp:8080:80\"",
	} {
		f, err := parseForwards([]string{"tcp:1:1", text})
		var got string
		if err != nil {
			got = err.Error()
			if se := (*pluginrpc.SettingError)(nil); !errors.As(err, &se) || se.Attribute != "forward.1" {
				t.Errorf("%q: %v is not an error of the setting", text, err)
			}
		} else {
			got = strings.Join([]string{f[1].network, f[1].host.String(), strconv.Itoa(int(f[1].guest))}, " ")
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s: want %s", text, got, want)
		}
	}
	if _, err := parseForwards([]string{"tcp:80:1", "udp:80:1", "tcp:127.0.0.1:80:2"}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("the same port twice: %v", err)
	}
}

func TestUserTellsWhyAPortCannotBeForwarded(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := lc.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, tcpPort, _ := net.SplitHostPort(l.Addr().String())
	_, udpPort, _ := net.SplitHostPort(c.LocalAddr().String())
	cases := map[string]string{
		"tcp:" + tcpPort + ":80": "another program or VM has the host's tcp port 127.0.0.1:" + tcpPort,
		"udp:" + udpPort + ":80": "another program or VM has the host's udp port 127.0.0.1:" + udpPort,
		"tcp:192.0.2.1:8080:80":  "192.0.2.1 is no address of this host",
	}
	for text, want := range cases {
		_, err := newUser(&sdk.Env{Log: hclog.NewNullLogger()}, &settings{Forward: []string{"tcp:0:1", text}}, testGuestMAC, nil)
		se := (*pluginrpc.SettingError)(nil)
		if err == nil || !errors.As(err, &se) || se.Attribute != "forward.1" || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v: want %s", text, err, want)
		}
	}
	f := userForward{attribute: "forward.0", text: "tcp:80:80"}
	if err := f.bindError(os.NewSyscallError("bind", unix.EACCES)); !strings.Contains(err.Error(), "net.ipv4.ip_unprivileged_port_start") {
		t.Errorf("no permission: %v", err)
	}
}
