package process

import (
	"encoding/binary"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/core/tap/taptest"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// datagram makes a frame with a header of 12 bytes: a UDP datagram, without a checksum, from 10.9.0.2 to the host's 10.9.0.1.
func datagram(host net.HardwareAddr, port int, payload string) []byte {
	b := make([]byte, virtio.NetHeaderSize+14+20+8, 256)
	eth := b[virtio.NetHeaderSize:]
	copy(eth, host)
	copy(eth[6:], []byte{2, 0, 0, 0, 0, 2, 8, 0})
	ip := eth[14:]
	copy(ip, []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1})
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload))) //nolint:gosec // G115: a short one
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(ip[20:], 7)
	binary.BigEndian.PutUint16(ip[22:], uint16(port))           //nolint:gosec // G115: a port
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(payload))) //nolint:gosec // G115: a short one
	return append(b, payload...)
}

// The plugin dies again and again; the interface stays the same one, with its address, and the frames go on.
func TestProcessNetTapOutlivesItsPlugin(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	r := open(t, "net", map[string]any{"backend": "tap", "tap": "vp%d", "address": []string{"10.9.0.1/24"}, "queue_pairs": 2})
	before, err := net.InterfaceByName("vp0")
	check(t, err)
	host, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1)})
	check(t, err)
	defer host.Close() //nolint:errcheck // only read
	m := r.drive(loopback.Options{QueueSize: 64})
	tx := m.Queues()[1] // transmitq1 (VIRTIO 1.2, 5.1.2)
	buf, err := m.Arena().Buffer(256)
	check(t, err)
	for i, text := range []string{"first", "second", "third"} {
		if i > 0 {
			old := r.inst.Load()
			check(t, syscall.Kill(old.PID(), syscall.SIGKILL))
			for limit := time.Now().Add(time.Minute); r.inst.Load() == old; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(limit) {
					t.Fatal("the plugin is not started again")
				}
			}
		}
		frame := datagram(before.HardwareAddr, host.LocalAddr().(*net.UDPAddr).Port, text) //nolint:forcetypeassert // what ListenUDP makes
		copy(m.Arena().Bytes(buf), frame)
		if _, ok := tx.Add([]driver.Buffer{{Addr: buf.Addr, Len: uint32(len(frame))}}, nil); !ok { //nolint:gosec // G115: below 256
			t.Fatal("the ring is full")
		}
		check(t, tx.Send())
		got := make([]byte, 100)
		check(t, host.SetReadDeadline(time.Now().Add(time.Minute)))
		n, from, err := host.ReadFromUDP(got)
		check(t, err)
		if string(got[:n]) != text || from.String() != "10.9.0.2:7" {
			t.Errorf("the host got %q from %v", got[:n], from)
		}
		for limit := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if _, _, ok := tx.Used(); ok {
				break
			}
			if time.Now().After(limit) {
				t.Fatal("the buffer never came back")
			}
		}
		after, err := net.InterfaceByName("vp0")
		check(t, err)
		addrs, err := after.Addrs()
		check(t, err)
		if after.Index != before.Index || len(addrs) == 0 || addrs[0].String() != "10.9.0.1/24" {
			t.Errorf("before %+v, after %+v with %v", before, after, addrs)
		}
	}
	if n := r.starts.Load(); n != 3 {
		t.Errorf("%d instances", n)
	}
}
