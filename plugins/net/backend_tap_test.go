package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/vecio"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// The two ends of a test's cable: the host's interface has hostIP, and the test plays the guest.
const (
	tapName = "t0"
	hostIP  = "10.9.0.1"
	guestIP = "10.9.0.2"
)

func guestMAC() net.HardwareAddr { return net.HardwareAddr{0x56, 0, 0, 0, 0, 2} }

// rig is a tap back-end on an interface of a namespace.
type rig struct {
	*tap
	t       *testing.T
	changes atomic.Int32
}

// newRig makes the interface as the launcher does.
func newRig(t *testing.T, pairs int) *rig {
	t.Helper()
	r := &rig{t: t}
	var queues []*os.File
	for range pairs {
		queues = append(queues, openTapQueue(t, pairs > 1))
	}
	l := r.link()
	must(t, netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(hostIP).To4(), Mask: net.CIDRMask(24, 32)}}))
	must(t, netlink.LinkSetUp(l))
	must(t, netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(guestIP).To4(), HardwareAddr: guestMAC(),
	}))
	cfg := &settings{QueuePairs: pairs, Tap: sdk.Tap{Name: tapName, Queues: queues}}
	b, err := newTap(&sdk.Env{Name: "net0", Log: hclog.NewNullLogger()}, cfg, func() { r.changes.Add(1) })
	must(t, err)
	var ok bool
	if r.tap, ok = b.(*tap); !ok {
		t.Fatalf("%T", b)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// openTapQueue opens one descriptor; the first makes the interface, which goes with the last.
func openTapQueue(t *testing.T, multi bool) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must(t, err)
	ifr, err := unix.NewIfreq(tapName)
	must(t, err)
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	must(t, unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, virtio.NetHeaderSize))
	must(t, unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1))
	return os.NewFile(uintptr(fd), tapName)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) link() netlink.Link {
	r.t.Helper()
	l, err := netlink.LinkByName(tapName)
	must(r.t, err)
	return l
}

// until waits for a condition that some event brings about soon.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for limit := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			r.t.Fatalf("never: %s", what)
		}
	}
}

// receive waits for the next frame at port 0 that is IPv4, as the host also sends what nobody asked for; its room are buffers of
// the given size.
func (r *rig) receive(room int) ([]byte, header) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	for {
		if data, hdr, ok := r.poll(0, room); ok {
			return data, hdr
		}
		if err := r.Port(0).Wait(ctx); err != nil {
			r.t.Fatal("no frame: ", err)
		}
	}
}

// poll is receive at port i, without waiting.
func (r *rig) poll(i, room int) (data []byte, hdr header, ok bool) {
	r.t.Helper()
	for {
		f := []frame{{bufs: [][]byte{make([]byte, room/2), {}, make([]byte, room-room/2)}}}
		n, err := r.Port(i).Receive(f)
		must(r.t, err)
		if n == 0 {
			return nil, header{}, false
		}
		if data = bytes.Join(f[0].bufs, nil)[:f[0].n]; len(data) > 14 && binary.BigEndian.Uint16(data[12:]) == 0x0800 {
			return data, f[0].hdr, true
		}
	}
}

// send sends one frame and returns how many were dropped.
func (r *rig) send(i int, hdr header, data ...[]byte) int {
	r.t.Helper()
	n := 0
	for _, d := range data {
		n += len(d)
	}
	dropped, err := r.Port(i).Send(r.t.Context(), []frame{{hdr: hdr, bufs: data, n: n}})
	must(r.t, err)
	return dropped
}

// ipv4 makes a frame from the guest to the host, or back.
func (r *rig) ipv4(toHost bool, proto byte, transport []byte) []byte {
	r.t.Helper()
	src, dst, from, to := guestIP, hostIP, guestMAC(), r.link().Attrs().HardwareAddr
	if !toHost {
		src, dst, from, to = dst, src, to, from
	}
	h := make([]byte, 34, 34+len(transport))
	copy(h, to)
	copy(h[6:], from)
	binary.BigEndian.PutUint16(h[12:], 0x0800)
	ip := h[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(transport))) //nolint:gosec // G115: at most 65535
	copy(ip[12:], net.ParseIP(src).To4())
	copy(ip[16:], net.ParseIP(dst).To4())
	binary.BigEndian.PutUint16(ip[10:], tapChecksum(ip[:20]))
	return append(h, transport...)
}

func tapChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// tapUDP makes a datagram without a checksum, from the guest's port.
func tapUDP(dst int, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, 7)
	binary.BigEndian.PutUint16(b[2:], uint16(dst))            //nolint:gosec // G115: a port
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload))) //nolint:gosec // G115: a datagram's length
	return append(b, payload...)
}

// listen is the host's socket.
func (r *rig) listen() (*net.UDPConn, int) {
	r.t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(hostIP)})
	must(r.t, err)
	r.t.Cleanup(func() { _ = c.Close() })
	addr, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		r.t.Fatalf("%T", c.LocalAddr())
	}
	must(r.t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	return c, addr.Port
}

func guestPort() *net.UDPAddr { return &net.UDPAddr{IP: net.ParseIP(guestIP), Port: 7} }

// raw is a packet socket on the interface: what it reads and writes begins with a virtio_net_hdr of 10 bytes.
func (r *rig) raw() int {
	r.t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0008) // ETH_P_IP in network order
	must(r.t, err)
	r.t.Cleanup(func() { _ = unix.Close(fd) })
	must(r.t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	must(r.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	must(r.t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: r.link().Attrs().Index}))
	return fd
}

// tso is a TCP segment of n bytes in all, to be cut into pieces of 1448 bytes, and its header.
func (r *rig) tso(toHost bool, n int) (header, []byte) {
	r.t.Helper()
	tcp := make([]byte, n-34)
	binary.BigEndian.PutUint16(tcp, 4000)
	binary.BigEndian.PutUint16(tcp[2:], 5000)
	tcp[12], tcp[13] = 5<<4, 0x10 // ACK
	for i := 20; i < len(tcp); i++ {
		tcp[i] = byte(i * 7)
	}
	data := r.ipv4(toHost, 6, tcp)
	pseudo := slices.Concat(data[26:34], []byte{0, 6, 0, 0})
	binary.BigEndian.PutUint16(pseudo[10:], uint16(len(tcp))) //nolint:gosec // G115: below 65536
	binary.BigEndian.PutUint16(data[34+16:], ^tapChecksum(pseudo))
	var h header
	h[virtio.NetHeaderFlags], h[virtio.NetHeaderGSOType] = virtio.NetHeaderNeedsCSum, virtio.NetGSOTCPv4
	h.setField(virtio.NetHeaderHdrLen, 54)
	h.setField(virtio.NetHeaderGSOSize, 1448)
	h.setField(virtio.NetHeaderCSumStart, 34)
	h.setField(virtio.NetHeaderCSumOffset, 16)
	return h, data
}

func TestTapCarriesFramesBothWays(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	r := newRig(t, 1)
	if o := r.Offer(); o.Pairs != 1 || o.MTU != 1500 || !o.Host.Has(virtio.FNetCSum|virtio.FNetHostTSO4) || !o.Guest.Has(virtio.FNetGuestTSO6) {
		t.Errorf("%+v", o)
	}
	if !r.Link() {
		t.Error("the link is down")
	}
	host, port := r.listen()
	payload := bytes.Repeat([]byte("virtplug"), 100)
	data := r.ipv4(true, 17, tapUDP(port, payload))
	var tiny [][]byte // more buffers than the kernel takes at once
	for i := range data {
		tiny = append(tiny, data[i:i+1])
	}
	for len(tiny) < 3000 {
		tiny = append(tiny, nil)
	}
	long := r.ipv4(true, 17, tapUDP(port, bytes.Repeat([]byte{'x'}, 1400)))
	var many [][]byte
	for i := range long {
		many = append(many, long[i:i+1])
	}
	for _, bufs := range [][][]byte{{data}, {data[:3], nil, data[3:50], data[50:]}, tiny, many} {
		if r.send(0, header{}, bufs...) != 0 {
			t.Fatal("dropped")
		}
		got := make([]byte, 2000)
		n, from, err := host.ReadFromUDP(got)
		want := bytes.Join(bufs, nil)[42:]
		if err != nil || !bytes.Equal(got[:n], want) || from.String() != guestIP+":7" {
			t.Fatalf("the host got %d bytes from %v, %v", n, from, err)
		}
	}
	if _, err := host.WriteToUDP(payload, guestPort()); err != nil {
		t.Fatal(err)
	}
	if got, hdr := r.receive(2000); !bytes.Equal(got[42:], payload) || hdr.gsoType() != 0 || !bytes.Equal(got[:6], guestMAC()) {
		t.Errorf("the guest got %x", got)
	}
}

func TestTapAllocatesNothing(t *testing.T) { //nolint:paralleltest // it counts the process's allocations
	if !inNamespace(t) {
		return
	}
	r := newRig(t, 1)
	_, port := r.listen()
	frames := []frame{{bufs: [][]byte{r.ipv4(true, 17, tapUDP(port, make([]byte, 100)))}}}
	p := r.Port(0)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := p.Send(t.Context(), frames); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Receive(frames); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTapDropsWhatCannotBeAndGoesOn(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	r := newRig(t, 1)
	host, port := r.listen()
	bad, data := r.tso(true, 5000)
	bad[virtio.NetHeaderGSOType] = 77
	if r.send(0, bad, data) != 1 || r.send(0, header{}, []byte("short")) != 1 || r.send(0, header{}) != 1 {
		t.Error("not dropped")
	}
	if n := r.Statistics()["tap_tx_dropped_refused"]; n != 3 {
		t.Errorf("%d counted", n)
	}
	for _, n := range []int{900, 100} {
		if _, err := host.WriteToUDP(make([]byte, n), guestPort()); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := r.receive(142); len(got) != 142 {
		t.Errorf("%d bytes: want the frame that just fits", len(got))
	}
	if n := r.Statistics()["tap_rx_dropped_long"]; n == 0 {
		t.Error("the longer frame is not counted")
	}
	for range 3 * tapDrops {
		if _, err := host.WriteToUDP(make([]byte, 900), guestPort()); err != nil {
			t.Fatal(err)
		}
	}
	before := r.Statistics()["tap_rx_dropped_long"]
	if _, err := r.Port(0).Receive([]frame{{bufs: [][]byte{make([]byte, 100)}}}); err != nil {
		t.Fatal(err)
	}
	if n := r.Statistics()["tap_rx_dropped_long"] - before; n > tapDrops {
		t.Errorf("one call dropped %d frames", n)
	}
	if r.send(0, header{}, r.ipv4(true, 17, tapUDP(port, []byte("still")))) != 0 {
		t.Error("dropped")
	}
	if n, _, err := host.ReadFromUDP(make([]byte, 100)); n != 5 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	hole, err := unix.Mmap(-1, 0, 8192, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(hole) //nolint:errcheck // only a test
	if r.send(0, header{}, hole) != 1 {
		t.Error("a frame out of a hole was sent")
	}
}

// Some of these the kernel gives only when it is out of memory.
func TestTapCountsDropsByReason(t *testing.T) {
	t.Parallel()
	b := &tap{changed: func() {}, env: &sdk.Env{Log: hclog.NewNullLogger()}}
	p := &tapPort{tap: b}
	b.ports = []*tapPort{p}
	for _, err := range []error{
		vecio.ErrWouldBlock, unix.ENOBUFS, unix.ENOMEM, unix.EIO, unix.ENOLINK, unix.EBADFD, unix.ENETDOWN, unix.EINVAL, unix.EFAULT, vecio.ErrTooMany,
	} {
		p.count(err)
	}
	s := b.Statistics()
	if s["tap_tx_dropped_full"] != 3 || s["tap_tx_dropped_down"] != 4 || s["tap_tx_dropped_refused"] != 3 || b.Link() {
		t.Errorf("%v, link %t", s, b.Link())
	}
}

func TestTapTakesSegmentsAsLongAsTheyGet(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	r := newRig(t, 1)
	raw := r.raw()
	hdr, data := r.tso(true, 65000)
	if r.send(0, hdr, data[:54], data[54:30000], data[30000:]) != 0 {
		t.Fatalf("dropped: %v", r.Statistics())
	}
	buf := make([]byte, 70000)
	n, err := unix.Read(raw, buf)
	if err != nil || n != 10+len(data) || buf[virtio.NetHeaderGSOType] != virtio.NetGSOTCPv4 || !bytes.Equal(buf[10+54:n], data[54:]) {
		t.Fatalf("the host saw %d bytes, header %x, %v", n, buf[:10], err)
	}
}

func TestTapGivesSegmentsOnlyToWhoTakesThem(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	r := newRig(t, 1)
	raw := r.raw()
	hdr, data := r.tso(false, 65000)
	out := slices.Concat(hdr[:10], data)
	write := func() {
		t.Helper()
		if _, err := unix.Write(raw, out); err != nil {
			t.Fatal(err)
		}
	}
	write()
	for sum := 0; sum < len(data)-54; { // the kernel cut it, and put checksums in
		got, h := r.receive(70000)
		if len(got) > 1514 || h.gsoType() != 0 || h.needsCSum() {
			t.Fatalf("a frame of %d bytes, header %x", len(got), h)
		}
		sum += len(got) - 54
	}
	must(t, r.SetOffloads(virtio.FNetGuestCSum|virtio.FNetGuestTSO4))
	write()
	got, h := r.receive(70000)
	if len(got) != len(data) || h.gsoType() != virtio.NetGSOTCPv4 || !h.needsCSum() || h.gsoSize() != 1448 || !bytes.Equal(got[54:], data[54:]) {
		t.Fatalf("a frame of %d bytes, header %x", len(got), h)
	}
	must(t, r.SetOffloads(virtio.FNetGuestTSO4)) // without GUEST_CSUM: none
	write()
	if got, _ := r.receive(70000); len(got) > 1514 {
		t.Errorf("a frame of %d bytes", len(got))
	}
	if o := r.Offer().Guest; o.Has(virtio.FNetGuestUSO4) {
		must(t, r.SetOffloads(o))
	}
}

func TestTapOverflowStallsNobody(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	r := newRig(t, 1)
	host, port := r.listen()
	const sent = 5000
	for range sent { // nobody receives
		if _, err := host.WriteToUDP([]byte("flood"), guestPort()); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatal(err)
		}
	}
	if r.send(0, header{}, r.ipv4(true, 17, tapUDP(port, []byte("through")))) != 0 {
		t.Error("the other way is stalled")
	}
	if n, _, err := host.ReadFromUDP(make([]byte, 100)); n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	got := 0
	for {
		if _, _, ok := r.poll(0, 2000); !ok {
			break
		}
		got++
	}
	if got == 0 || got == sent {
		t.Errorf("%d of %d frames: want the first ones, and the others dropped", got, sent)
	}
	if _, err := host.WriteToUDP([]byte("after"), guestPort()); err != nil {
		t.Fatal(err)
	}
	if data, _ := r.receive(2000); string(data[42:]) != "after" {
		t.Errorf("%q", data[42:])
	}
}

func TestTapLinkFollowsTheInterface(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	r := newRig(t, 2)
	host, _ := r.listen()
	data := r.ipv4(true, 17, tapUDP(9, nil))
	must(t, netlink.LinkSetDown(r.link()))
	r.until("link down", func() bool { return !r.Link() && r.changes.Load() == 1 })
	if r.send(0, header{}, data) != 1 || r.Statistics()["tap_tx_dropped_down"] != 1 {
		t.Errorf("sent to an interface that is down: %v", r.Statistics())
	}
	must(t, netlink.LinkSetUp(r.link()))
	r.until("link up", r.Link)
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: r.link().Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(guestIP).To4(), HardwareAddr: guestMAC(),
	}))
	if _, err := host.WriteToUDP([]byte("again"), guestPort()); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.receive(2000); string(got[42:]) != "again" {
		t.Errorf("%q", got)
	}
	before := r.changes.Load()
	must(t, netlink.LinkDel(r.link()))
	r.until("link down", func() bool { return !r.Link() && r.changes.Load() > before })
	for i := range 2 {
		p := r.Port(i)
		p.Wake()
		must(t, p.Wait(t.Context()))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Wait(ctx) }()
		select {
		case err := <-done:
			t.Errorf("port %d: Wait returns for nothing (%v)", i, err)
			done <- context.Canceled
		case <-time.After(50 * time.Millisecond): // long enough for one that spins
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("port %d: %v", i, err)
		}
		if n, err := p.Receive([]frame{{bufs: [][]byte{make([]byte, 2000)}}}); n != 0 || err != nil {
			t.Errorf("port %d: %d, %v", i, n, err)
		}
		if r.send(i, header{}, data) != 1 {
			t.Errorf("port %d: sent to nobody", i)
		}
	}
	must(t, r.SetPairs(2))
	must(t, r.SetOffloads(virtio.FNetGuestCSum))
}

// A plugin that is started again gets what its predecessor had, whatever became of the interface meanwhile.
func TestTapSuccessorOffersTheSame(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	first := newRig(t, 2)
	again := func() *tap {
		t.Helper()
		cfg := &settings{QueuePairs: 2, MTU: first.Offer().MTU, Tap: sdk.Tap{Name: tapName}}
		for _, p := range first.ports {
			fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
			must(t, err)
			cfg.Tap.Queues = append(cfg.Tap.Queues, os.NewFile(uintptr(fd), tapName))
		}
		b, err := newTap(&sdk.Env{Name: "net0", Log: hclog.NewNullLogger()}, cfg, func() {})
		must(t, err)
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		if b.Offer() != first.Offer() {
			t.Errorf("offers %+v, before %+v", b.Offer(), first.Offer())
		}
		return b.(*tap) //nolint:forcetypeassert // as in newRig
	}
	must(t, first.SetPairs(2))
	must(t, first.SetOffloads(virtio.FNetGuestCSum|virtio.FNetGuestTSO4))
	if !again().Link() {
		t.Error("the link is down")
	}
	must(t, netlink.LinkSetDown(first.link()))
	must(t, netlink.LinkSetName(first.link(), "renamed"))
	second := again()
	if second.Link() {
		t.Error("the link is up, but not the interface")
	}
	l, err := netlink.LinkByName("renamed")
	must(t, err)
	must(t, netlink.LinkSetUp(l))
	first.until("link up", second.Link)
	must(t, netlink.LinkDel(l))
	if third := again(); third.Link() || third.SetPairs(2) != nil || third.SetOffloads(0) != nil {
		t.Error("a deleted interface has a link, or gives errors")
	}
}

func TestTapQueuePairs(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	r := newRig(t, 2)
	if r.Offer().Pairs != 2 || r.SetPairs(3) == nil || r.SetPairs(0) == nil {
		t.Error("pairs that it has not")
	}
	const flows = 64
	var conns []*net.UDPConn
	for range flows {
		c, _ := r.listen()
		conns = append(conns, c)
	}
	count := func() (n [2]int) {
		t.Helper()
		for _, c := range conns {
			if _, err := c.WriteToUDP([]byte("x"), guestPort()); err != nil {
				t.Fatal(err)
			}
		}
		for i := range n {
			for {
				if _, _, ok := r.poll(i, 2000); !ok {
					break
				}
				n[i]++
			}
		}
		return n
	}
	for _, pairs := range []int{1, 2, 1, 2, 2} {
		must(t, r.SetPairs(pairs))
		n := count()
		if n[0]+n[1] != flows || (n[1] > 0) != (pairs == 2) || n[0] == 0 {
			t.Errorf("%d pairs: %v frames", pairs, n)
		}
	}
	// A successor gets the descriptors as they were left.
	must(t, r.SetPairs(1))
	must(t, r.SetPairs(1))
}

func TestTapWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	r := newRig(t, 1)
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			for {
				if err := r.Port(0).Wait(ctx); err != nil {
					done <- err
					return
				}
				_, _ = r.Port(0).Receive([]frame{{bufs: [][]byte{make([]byte, 2000)}}})
			}
		}()
		r.Port(0).Wake()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

func TestTapSettingsThatCannotBe(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	env := &sdk.Env{Name: "net0", Log: hclog.NewNullLogger()}
	for i, want := range []string{"missing: back-end tap wants an interface", "passed 1 descriptors for 2 queue pairs", "is the address of the host's end"} {
		cfg := &settings{QueuePairs: 1}
		if i > 0 {
			cfg.Tap = sdk.Tap{Name: tapName, Queues: []*os.File{openTapQueue(t, false)}}
		}
		switch i {
		case 1:
			cfg.QueuePairs = 2
		case 2:
			l, err := netlink.LinkByName(tapName)
			must(t, err)
			cfg.MAC = strings.ToUpper(l.Attrs().HardwareAddr.String())
		}
		b, err := newTap(env, cfg, func() {})
		if err == nil || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v, %v: want %q", b, err, want)
		}
		if _, err := netlink.LinkByName(tapName); err == nil {
			t.Error("a descriptor was left open")
		}
	}
}
