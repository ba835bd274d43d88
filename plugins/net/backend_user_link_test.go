package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sirupsen/logrus"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	netheader "gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// pushPacket gives the link a packet of the stack.
func pushPacket(l *userLink, hash uint32, b []byte) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	p.Hash = hash
	var list stack.PacketBufferList
	list.PushBack(p)
	_, _ = l.WritePackets(list)
	p.DecRef()
}

func TestUserDividesFlowsAmongTheQueuePairsInUse(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{QueuePairs: 4})
	if n := u.Offer().Pairs; n != 4 {
		t.Fatalf("%d pairs", n)
	}
	for _, n := range []int{-1, 0, 5} {
		if err := u.SetPairs(n); err == nil {
			t.Errorf("%d pairs: no error", n)
		}
	}
	for _, pairs := range []int{4, 3, 1} {
		if err := u.SetPairs(pairs); err != nil {
			t.Fatal(err)
		}
		for h := range uint32(12) {
			pushPacket(u.link, h, []byte(fmt.Sprintf("packet %d", h)))
		}
		f := []frame{{bufs: [][]byte{make([]byte, 100)}}}
		for i := range 4 {
			count := 0
			for {
				if n, err := u.Port(i).Receive(f); n == 0 || err != nil {
					break
				}
				count++
			}
			if want := 12 / pairs; i < pairs && count != want || i >= pairs && count != 0 {
				t.Errorf("%d pairs: port %d got %d frames", pairs, i, count)
			}
		}
	}
}

func TestUserWaitsForFramesWakesAndEnds(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	p := u.Port(0)
	f := []frame{{bufs: [][]byte{make([]byte, 100)}}}
	done := make(chan error)
	wait := func(ctx context.Context) { done <- p.Wait(ctx) }

	go wait(t.Context())
	pushPacket(u.link, 0, []byte("one"))
	if err := <-done; err != nil {
		t.Error("a frame came:", err)
	}
	if n, _ := p.Receive(f); n != 1 || f[0].n != 3 {
		t.Errorf("received %d", n)
	}
	p.Wake() // before the wait
	go wait(t.Context())
	if err := <-done; err != nil {
		t.Error("woken:", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go wait(ctx)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error("the context's end:", err)
	}
}

func TestUserDropsAndCountsWhatHasNoRoom(t *testing.T) {
	t.Parallel()
	u := newTestUser(t, &settings{})
	p := u.Port(0)
	pushPacket(u.link, 0, make([]byte, 101))
	large := tcpPacket(90, 1000) // 66 bytes of headers come on top
	u.link.ports[0].push(large)
	large.DecRef()
	pushPacket(u.link, 0, []byte("fits"))
	f := []frame{{bufs: [][]byte{make([]byte, 60), make([]byte, 40)}}, {bufs: [][]byte{make([]byte, 10)}}}
	n, err := p.Receive(f)
	if n != 1 || err != nil || f[0].n != 4 || u.Statistics()["user_rx_dropped_long"] != 2 {
		t.Errorf("received %d, %v; %v", n, err, u.Statistics())
	}
}

func TestUserCopiesFramesWithoutAllocating(t *testing.T) { //nolint:paralleltest // allocations of others would count
	u := newTestUser(t, &settings{})
	if err := u.SetOffloads(virtio.FNetGuestCSum); err != nil {
		t.Fatal(err)
	}
	p := u.Port(0)
	out := []frame{{bufs: [][]byte{arpRequest(u.plan.guest, u.plan.guest)}, n: 42}} // for nobody: ends in our part
	in := []frame{{bufs: [][]byte{make([]byte, 2000)}}}
	packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(make([]byte, 1500))})
	defer packet.DecRef()
	one := func() {
		if _, err := p.Send(t.Context(), out); err != nil {
			t.Fatal(err)
		}
		u.link.ports[0].push(packet)
		if n, err := p.Receive(in); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if n := testing.AllocsPerRun(1000, one); n != 0 {
		t.Errorf("%v allocations for each frame", n)
	}
}

func TestUserLogIsLimited(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	l := &userLog{to: hclog.New(&hclog.LoggerOptions{Output: &b, Level: hclog.Debug})}
	for i := range 100 {
		if err := l.Fire(&logrus.Entry{Level: logrus.ErrorLevel, Message: fmt.Sprintf("message %d.", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(b.String(), "\n"); n != userLogLines || !strings.Contains(b.String(), "message 0.") {
		t.Errorf("%d lines:\n%s", n, b.String())
	}
	l.since = l.since.Add(-2 * userLogTime)
	if _, dropped := l.admit(time.Now()); dropped != 100-userLogLines {
		t.Errorf("%d lines were left out", dropped)
	}
}

// tcpPacket is a large TCP packet of the stack, whose segments have size bytes: headers as the stack makes them with segmentation
// offload, and payload bytes that count.
func tcpPacket(payload, size int) *stack.PacketBuffer {
	data := make([]byte, payload)
	for i := range data {
		data[i] = byte(i % 251)
	}
	half := buffer.MakeWithData(data[:payload/2]) // in two views
	rest := buffer.MakeWithData(data[payload/2:])
	half.Merge(&rest)
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 100, Payload: half})
	tcp := netheader.TCP(p.TransportHeader().Push(netheader.TCPMinimumSize + 12))
	tcp.Encode(&netheader.TCPFields{
		SrcPort: 80, DstPort: 4000, SeqNum: 0xffffff00, AckNum: 7, DataOffset: netheader.TCPMinimumSize + 12,
		Flags: netheader.TCPFlagAck | netheader.TCPFlagPsh | netheader.TCPFlagFin, WindowSize: 1000,
	})
	ip := netheader.IPv4(p.NetworkHeader().Push(netheader.IPv4MinimumSize))
	ip.Encode(&netheader.IPv4Fields{
		TotalLength: uint16(p.Size()), ID: 0xffff, TTL: 64, Protocol: 6, //nolint:gosec // G115: below 65536
		SrcAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 1}), DstAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	p.LinkHeader().Push(netheader.EthernetMinimumSize)
	p.GSOOptions = stack.GSO{
		Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: uint16(size), L3HdrLen: 20, MaxSize: gsoMaxSize, //nolint:gosec // G115: short
	}
	return p
}

func TestUserDividesLargeSegmentsAsADriverWould(t *testing.T) {
	t.Parallel()
	const head, mss = 14 + 20 + 32, 999
	for _, payload := range []int{1, mss, mss + 1, 10*mss + 17, 60000} {
		for _, guest := range []virtio.Features{0, virtio.FNetGuestCSum, virtio.FNetGuestCSum | virtio.FNetGuestTSO4} {
			u := newTestUser(t, &settings{})
			if err := u.SetOffloads(guest); err != nil {
				t.Fatal(err)
			}
			p := tcpPacket(payload, mss)
			u.link.ports[0].push(p)
			p.DecRef()
			got, frames := 0, 0
			for got < payload {
				b, h := receiveFrame(t, u.Port(0))
				ip, tcp := netheader.IPv4(b[14:34]), netheader.TCP(b[34:])
				n := len(b) - head
				whole := guest.Has(virtio.FNetGuestTSO4)
				wantSize := min(mss, payload-got)
				if whole {
					wantSize = payload
				}
				flags := netheader.TCPFlagAck
				if got+n == payload {
					flags |= netheader.TCPFlagPsh | netheader.TCPFlagFin
				}
				id := uint16(0xffff + frames) //nolint:gosec // G115: it is to wrap
				if n != wantSize || int(ip.TotalLength()) != len(b)-14 || !ip.IsChecksumValid() || ip.ID() != id ||
					tcp.SequenceNumber() != uint32(0xffffff00+got) || tcp.Flags() != flags {
					t.Fatalf("payload %d, %v, frame %d of %d bytes: %v %v", payload, guest, frames, n, ip, tcp[:netheader.TCPMinimumSize])
				}
				sum := netheader.PseudoHeaderChecksum(netheader.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(tcp))) //nolint:gosec // G115: short
				want := header{}
				if guest != 0 { // the driver adds up what follows
					want = header{virtio.NetHeaderFlags: virtio.NetHeaderNeedsCSum, virtio.NetHeaderCSumStart: 34, virtio.NetHeaderCSumOffset: 16}
					if tcp.Checksum() != sum {
						t.Errorf("payload %d, %v: checksum %#x: want the pseudo-header's, %#x", payload, guest, tcp.Checksum(), sum)
					}
				} else if checksum.Checksum(tcp, sum) != 0xffff {
					t.Errorf("payload %d, %v: frame %d has a bad checksum", payload, guest, frames)
				}
				if whole && payload > mss {
					want[virtio.NetHeaderGSOType], want[virtio.NetHeaderHdrLen] = virtio.NetGSOTCPv4, head
					want[virtio.NetHeaderGSOSize], want[virtio.NetHeaderGSOSize+1] = mss&0xff, mss>>8
				}
				if h != want {
					t.Errorf("payload %d, %v: header %x: want %x", payload, guest, h, want)
				}
				for i, c := range b[head:] {
					if c != byte((got+i)%251) {
						t.Fatalf("payload %d, %v: byte %d is wrong", payload, guest, got+i)
					}
				}
				got += n
				frames++
			}
			nothingMore(t, u.Port(0))
		}
	}
}
