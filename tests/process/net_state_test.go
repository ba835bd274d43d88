package process

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// netDriver is a driver of a network device with two pairs, just enough to command it and to exchange frames.
type netDriver struct {
	t       *testing.T
	m       *loopback.Machine
	room    map[int]map[uint16]driver.Buffer // of receiveqs, by queue and head
	arrived map[int][][]byte                 // frames, by queue
}

// The queues of two pairs (VIRTIO 1.2, 5.1.2).
const (
	netRx0, netTx0, netRx1, netTx1, netCtrl = 0, 1, 2, 3, 4
	netRoom                                 = 2048
)

func newNetDriver(t *testing.T, m *loopback.Machine) *netDriver {
	t.Helper()
	d := &netDriver{t: t, m: m, room: map[int]map[uint16]driver.Buffer{}, arrived: map[int][][]byte{}}
	for _, i := range []int{netRx0, netRx1} {
		d.room[i] = map[uint16]driver.Buffer{}
		for range 64 {
			d.offer(i, d.buffer(netRoom))
		}
	}
	return d
}

func (d *netDriver) buffer(n int) driver.Buffer {
	d.t.Helper()
	b, err := d.m.Arena().Buffer(n)
	check(d.t, err)
	return b
}

// offer gives the device room for a frame.
func (d *netDriver) offer(queue int, b driver.Buffer) {
	d.t.Helper()
	q := d.m.Queues()[queue]
	head, ok := q.Add(nil, []driver.Buffer{b})
	if !ok {
		d.t.Fatalf("queue %d is full", queue)
	}
	d.room[queue][head] = b
	check(d.t, q.Send())
}

// collect takes frames that arrived. None is longer than a buffer here.
func (d *netDriver) collect() {
	d.t.Helper()
	for i, room := range d.room {
		for {
			head, n, ok := d.m.Queues()[i].Used()
			if !ok {
				break
			}
			b := room[head]
			delete(room, head)
			if n > 0 { // what a former instance held may come back empty
				d.arrived[i] = append(d.arrived[i], bytes.Clone(d.m.Arena().Bytes(b)[virtio.NetHeaderSize:n]))
			}
			d.offer(i, b)
		}
	}
}

func (d *netDriver) until(what string, ok func() bool) {
	d.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		d.collect()
		if time.Now().After(end) {
			d.t.Fatalf("never happened: %s; arrived %v", what, d.arrived)
		}
	}
}

// put sends a chain and waits until it is used.
func (d *netDriver) put(queue int, out []byte, in ...driver.Buffer) {
	d.t.Helper()
	b := d.buffer(len(out))
	copy(d.m.Arena().Bytes(b), out)
	q := d.m.Queues()[queue]
	if _, ok := q.Add([]driver.Buffer{b}, in); !ok {
		d.t.Fatalf("queue %d is full", queue)
	}
	check(d.t, q.Send())
	d.until("a chain to be used", func() bool { _, _, ok := q.Used(); return ok })
}

// command gives the device a command that it must take.
func (d *netDriver) command(class, cmd byte, data ...byte) {
	d.t.Helper()
	ack := d.buffer(1)
	d.m.Arena().Bytes(ack)[0] = 0xff
	d.put(netCtrl, append([]byte{class, cmd}, data...), ack)
	if a := d.m.Arena().Bytes(ack)[0]; a != virtio.NetCtrlOK {
		d.t.Fatalf("command %d.%d: answer %d", class, cmd, a)
	}
}

// send sends a frame from one address; back-end loopback gives it back to that address.
func (d *netDriver) send(queue int, from [6]byte, mark byte) {
	d.t.Helper()
	b := make([]byte, virtio.NetHeaderSize+60)
	f := b[virtio.NetHeaderSize:]
	copy(f, []byte{2, 0, 0, 0, 0, 0xfe})
	copy(f[6:], from[:])
	binary.BigEndian.PutUint16(f[12:], 0x88b5) // for experiments
	f[20] = mark
	d.put(queue, b)
}

// What the driver set by commands, and the user's link, outlive the plugin's process; frames go on.
func TestProcessNetKeepsWhatTheDriverSetWhenThePluginIsKilled(t *testing.T) {
	t.Parallel()
	r := open(t, "net", map[string]any{"backend": "loopback", "queue_pairs": 2, "mac": "52:54:00:00:00:01"})
	d := newNetDriver(t, r.drive(loopback.Options{QueueSize: 128}))
	own, strange := [6]byte{2, 0, 0, 0, 0, 7}, [6]byte{2, 0, 0, 0, 0, 8}
	d.command(virtio.NetCtrlMAC, virtio.NetCtrlMACAddrSet, own[:]...)
	d.command(virtio.NetCtrlRx, virtio.NetCtrlRxPromisc, 0)
	d.command(virtio.NetCtrlMQ, virtio.NetCtrlMQPairsSet, 2, 0)
	mark := byte(0)
	exchange := func() {
		t.Helper()
		for _, pair := range []int{0, 1} {
			mark++
			d.send(2*pair+1, strange, mark)
			mark++
			d.send(2*pair+1, own, mark)
			rx := 2 * pair
			d.until("the frame to come back", func() bool { n := len(d.arrived[rx]); return n > 0 && d.arrived[rx][n-1][20] == mark })
		}
	}
	exchange()
	for round := range 2 {
		r.killAndAwait()
		if s := r.dev.ConfigSpace(); [6]byte(s) != own {
			t.Errorf("round %d: address % x", round, s[:6])
		}
		d.until("the driver to be asked to announce itself", func() bool {
			return binary.LittleEndian.Uint16(r.dev.ConfigSpace()[virtio.NetConfigStatus:])&virtio.NetStatusAnnounce != 0
		})
		d.command(virtio.NetCtrlAnnounce, virtio.NetCtrlAnnounceAck)
		exchange()
	}
	for queue, frames := range d.arrived {
		for _, f := range frames {
			if [6]byte(f) != own {
				t.Errorf("queue %d: a frame to % x arrived: the filter is forgotten", queue, f[:6])
			}
		}
	}
	if n := len(d.arrived[netRx0]) + len(d.arrived[netRx1]); n != 6 {
		t.Errorf("%d frames arrived, want 6", n)
	}
	_, err := r.dev.Command(t.Context(), "link", []byte(`{"up":false}`))
	check(t, err)
	r.killAndAwait()
	if s := binary.LittleEndian.Uint16(r.dev.ConfigSpace()[virtio.NetConfigStatus:]); s&virtio.NetStatusLinkUp != 0 {
		t.Errorf("status %#x: the user's link came up by itself", s)
	}
	if r.dev.State() != device.StateReady {
		t.Errorf("%v, %v", r.dev.State(), r.dev.Cause())
	}
}
