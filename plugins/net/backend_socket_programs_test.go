package main

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program starts a program that ends with the test.
func program(t *testing.T, path string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, args...) //nolint:gosec // G204: a test's
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s %s:\n%s", path, strings.Join(args, " "), out.Bytes())
		}
	})
}

// needProgram is where the program is; a test that lacks it is skipped.
func needProgram(t *testing.T, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: apt-get install %s", name, debian)
	}
	return path
}

var testMAC = macAddress{0x52, 0x54, 0, 1, 2, 3}

// udp4 is an Ethernet frame with a datagram, broadcast, without a checksum of UDP (which IPv4 allows).
func udp4(from, to netip.AddrPort, payload []byte) []byte {
	b := append(bytes.Repeat([]byte{0xff}, 6), testMAC[:]...)
	b = append(b, 0x08, 0x00)
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload))) //nolint:gosec // G115: a small one
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], internetChecksum(ip))
	b = append(b, ip...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload))) //nolint:gosec // G115: a small one
	b = append(b, 0, 0)
	return append(b, payload...)
}

// internetChecksum is RFC 1071's.
func internetChecksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// discover is a DHCPDISCOVER (RFC 2131).
func discover() []byte {
	b := make([]byte, 236, 300)
	b[0], b[1], b[2] = 1, 1, 6 // request, Ethernet
	copy(b[4:], "xid!")
	b[10] = 0x80 // the answer is to be broadcast
	copy(b[28:], testMAC[:])
	b = append(b, 99, 130, 83, 99, 53, 1, 1, 255) // magic cookie; message type: discover; end
	b = append(b, make([]byte, 300-len(b))...)
	return udp4(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), b)
}

// offered is the address that a frame offers to testMAC.
func offeredAddress(frame []byte) (netip.Addr, bool) {
	const udp, dhcp = 34, 42
	if len(frame) < dhcp+240 || frame[23] != 17 || binary.BigEndian.Uint16(frame[udp+2:]) != 68 || string(frame[dhcp+4:dhcp+8]) != "xid!" {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(frame[dhcp+16 : dhcp+20])
}

// dhcpLease asks for an address by r until it is offered one.
func dhcpLease(t *testing.T, r socketRig) netip.Addr {
	t.Helper()
	r.up(t)
	frames := []frame{{bufs: split(make([]byte, 1514), 3)}}
	var got netip.Addr
	next := time.Time{}
	socketUntil(t, "DHCP is answered", func() bool {
		if now := time.Now(); now.After(next) { // the program may be busy beginning, and a datagram is lost
			next = now.Add(time.Second)
			r.send(t, discover())
		}
		for {
			n, err := r.Port(0).Receive(frames)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				return false
			}
			var ok bool
			if got, ok = offeredAddress(bytes.Join(frames[0].bufs, nil)[:frames[0].n]); ok {
				return true
			}
		}
	})
	return got
}

// QEMU without a machine: its own network for guests, and a hub to the socket.
func TestQEMUsNetworkAnswersThroughItsSockets(t *testing.T) {
	t.Parallel()
	qemu := needProgram(t, "qemu-system-x86_64", "qemu-system-x86")
	for name, kind := range map[string]func(t *testing.T, dir string) (netdev string, cfg *settings){
		"stream that listens": func(_ *testing.T, dir string) (string, *settings) {
			return "stream,server=on,addr.type=unix,addr.path=" + dir + "/s", &settings{Connect: "unix:" + dir + "/s"}
		},
		"stream that connects": func(t *testing.T, dir string) (string, *settings) {
			t.Helper()
			return "stream,server=off,addr.type=unix,addr.path=" + dir + "/s", &settings{Listen: listenAt(t, dir+"/s")}
		},
		"stream by TCP": func(t *testing.T, _ string) (string, *settings) {
			t.Helper()
			at := ownAddress()
			host, port, _ := strings.Cut(at, ":")
			return "stream,server=on,addr.type=inet,addr.host=" + host + ",addr.port=" + port, &settings{Connect: "tcp:" + at}
		},
		"socket": func(t *testing.T, _ string) (string, *settings) {
			t.Helper()
			at := ownAddress()
			return "socket,connect=" + at, &settings{Bind: "tcp:" + at}
		},
		"socket by UDP": func(t *testing.T, _ string) (string, *settings) {
			t.Helper()
			theirs, ours := ownAddress(), ownAddress()
			return "socket,udp=" + ours + ",localaddr=" + theirs, &settings{Bind: "udp:" + ours, Connect: "udp:" + theirs}
		},
		"dgram": func(_ *testing.T, dir string) (string, *settings) {
			return "dgram,local.type=unix,local.path=" + dir + "/q,remote.type=unix,remote.path=" + dir + "/v",
				&settings{Bind: "unixgram:" + dir + "/v", Connect: "unixgram:" + dir + "/q"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			netdev, cfg := kind(t, t.TempDir())
			r := newSocketRig(t, cfg) // first: QEMU tries to connect once
			program(t, qemu, "-nodefaults", "-machine", "none", "-display", "none", "-netdev", "user,id=u,net=10.77.0.0/24,dhcpstart=10.77.0.77",
				"-netdev", strings.Replace(netdev, ",", ",id=s,", 1), "-netdev", "hubport,id=a,hubid=0,netdev=u", "-netdev", "hubport,id=b,hubid=0,netdev=s")
			if got := dhcpLease(t, r); got != netip.MustParseAddr("10.77.0.77") {
				t.Errorf("address %v", got)
			}
		})
	}
}

func TestPasstAnswersThroughItsSocket(t *testing.T) {
	t.Parallel()
	passt := needProgram(t, "passt", "passt")
	path := filepath.Join(t.TempDir(), "s")
	flags := []string{"--foreground", "--ipv4-only", "--socket", path}
	if os.Getuid() != 0 {
		program(t, passt, flags...) // it needs a host with a network
		dhcpLease(t, newSocketRig(t, &settings{Connect: "unix:" + path}))
		return
	}
	needProgram(t, "ip", "iproute2")
	// It binds as nobody otherwise, who cannot write to our folder. A network namespace, so that the host's network does not matter: passt gives the guest the host's own address.
	unshare := needProgram(t, "unshare", "util-linux")
	script := `ip link add ext0 type veth peer name ext1 && ip addr add 10.77.0.78/24 dev ext0 && ip link set ext1 up && ip link set ext0 up &&
		ip route add default via 10.77.0.1 && exec "$0" "$@" --interface ext0`
	program(t, unshare, append([]string{"--net", "sh", "-c", script, passt}, append(flags, "--runas", "0")...)...)
	r := newSocketRig(t, &settings{Connect: "unix:" + path})
	if got := dhcpLease(t, r); got != netip.MustParseAddr("10.77.0.78") {
		t.Errorf("address %v", got)
	}
}
