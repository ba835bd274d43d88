package devicetest

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// canary fills what the device must not write, and what it did not write yet.
const canary = 0xA5

// shape is a chain: the lengths of its buffers.
type shape struct{ readable, writable []int }

// flying is a chain that the device has.
type flying struct {
	readable, writable []driver.Buffer
	room               uint32
	pattern            byte
}

// queue is the driver's side of one queue. It trusts nothing that the device writes.
type queue struct {
	t     *runner
	m     *machine
	index int
	size  uint16
	keeps bool

	ring                *driver.Queue
	used                []byte // the used ring
	kick, call          *os.File
	inflight            *os.File
	seen                uint16 // used elements taken
	flight              map[uint16]flying
	slab                guestmem.GPA
	slabUsed            int
	sent, done, written uint64
	paint               byte
}

// layOut makes a fresh ring.
func (q *queue) layOut() {
	ring, err := driver.New(q.m.rings, driver.Config{Size: q.size, Features: q.m.features, IndirectEntries: indirectEntries})
	q.t.must("make a ring", err)
	q.ring, q.flight, q.seen, q.slabUsed = ring, map[uint16]flying{}, 0, 0
	_, _, used := ring.Areas()
	q.used, err = q.m.rings.Memory().Slice(used, virtio.UsedRingBytes(q.size))
	q.t.must("used ring", err)
}

// request is what StartQueue needs.
func (q *queue) request(next uint16) pluginrpc.QueueStart {
	d, a, u := q.ring.Areas()
	return pluginrpc.QueueStart{
		Index: q.index, Size: q.size, DescArea: d, DriverArea: a, DeviceArea: u, NextAvail: next,
		Kick: int(q.kick.Fd()), Call: int(q.call.Fd()), Inflight: int(q.inflight.Fd()),
	}
}

func (q *queue) start() { q.startWith(q.request(0)) }

// startWith starts the queue and kicks it once, as launchers do.
func (q *queue) startWith(r pluginrpc.QueueStart) (resubmitted int) {
	ctx, cancel := q.t.limited()
	defer cancel()
	n, err := q.m.target.StartQueue(ctx, r)
	if err != nil {
		q.t.Fatalf("StartQueue %d: %w", q.index, err)
	}
	q.ring.EnableCalls()
	q.signal()
	return n
}

// stop stops the queue and checks what it answers.
func (q *queue) stop() pluginrpc.QueueState {
	ctx, cancel := q.t.limited()
	defer cancel()
	s, err := q.m.target.StopQueue(ctx, q.index)
	if err != nil {
		q.t.Fatalf("StopQueue %d: it does not stop: %w", q.index, err)
	}
	q.stopped(s)
	return s
}

// stopped checks where a stopped queue stands (docs/plugin-protocol.md, "Life cycle": finish those in flight, then answer).
func (q *queue) stopped(s pluginrpc.QueueState) {
	t := q.t
	q.reap()
	avail := q.ring.Raw().AvailIdx()
	if s.Broken != "" {
		t.Errorf("StopQueue %d: it calls itself broken: %s", q.index, s.Broken)
	}
	if used := q.ring.Raw().UsedIdx(); s.UsedIndex != used {
		t.Errorf("StopQueue %d: used_index %d: the used ring says %d", q.index, s.UsedIndex, used)
	}
	if s.NextAvail != s.UsedIndex {
		t.Errorf("StopQueue %d: next_avail %d, used_index %d: chains were taken and not completed", q.index, s.NextAvail, s.UsedIndex)
	}
	if left := avail - s.NextAvail; int(left) != len(q.flight) {
		t.Errorf("StopQueue %d: next_avail %d of %d: leaves %d chains, but %d were not completed", q.index, s.NextAvail, avail, left, len(q.flight))
	}
	if q.tracked() {
		if n := q.inflightCount(); n != 0 {
			t.Errorf("StopQueue %d: the in-flight region holds %d chains", q.index, n)
		}
	}
}

// tracked tells whether the plugin keeps the in-flight region.
func (q *queue) tracked() bool {
	return slices.Contains(q.t.desc.GetCapabilities(), pluginv1.Capability_CAPABILITY_INFLIGHT)
}

// inflightCount reads how many chains the in-flight region holds (docs/plugin-protocol.md, "In-flight tracking").
func (q *queue) inflightCount() int {
	b := make([]byte, virtq.InflightBytes(q.size))
	_, err := q.inflight.ReadAt(b, 0)
	q.t.must("in-flight region", err)
	n := 0
	for i := range int(q.size) {
		n += int(b[16+16*i])
	}
	return n
}

func (q *queue) signal() {
	q.t.must("kick", eventfd.Signal(int(q.kick.Fd())))
}

// publish shows the device what send put in, and kicks it if it wants that.
func (q *queue) publish() {
	if q.ring.Publish() {
		q.signal()
	}
}

// buffersOf takes buffers of the lengths from the slab, with canaries between; ok is false if there is no room just now.
func (q *queue) buffersOf(lengths []int, fill byte, count bool) (out []driver.Buffer, ok bool) {
	for _, n := range lengths {
		if q.slabUsed+n+16 > slabBytes {
			return nil, false
		}
		b := driver.Buffer{Addr: q.slab + guestmem.GPA(q.slabUsed), Len: uint32(n)} //nolint:gosec // G115: small
		bytes := q.m.buffers.Bytes(driver.Buffer{Addr: b.Addr, Len: b.Len + 16})
		for i := range bytes {
			switch {
			case i >= n:
				bytes[i] = canary
			case count:
				bytes[i] = byte(i + 1)
			default:
				bytes[i] = fill
			}
		}
		q.slabUsed += n + 16
		out = append(out, b)
	}
	return out, true
}

// counting is the pattern of bytes that count; others are the byte itself.
const counting = 1

// send puts a chain into the ring, unpublished; false: there is no room.
func (q *queue) send(s shape) bool {
	if len(q.flight) == 0 {
		q.slabUsed = 0
	}
	q.paint++
	pattern := [...]byte{0, 0xff, counting}[q.paint%3]
	mark := q.slabUsed
	r, ok := q.buffersOf(s.readable, pattern, pattern == counting)
	w, fits := q.buffersOf(s.writable, canary, false)
	if ok && fits {
		var head uint16
		if head, ok = q.ring.Add(r, w); ok {
			f := flying{readable: r, writable: w, pattern: pattern}
			for _, b := range w {
				f.room += b.Len
			}
			q.flight[head] = f
			q.sent++
			return true
		}
	}
	q.slabUsed = mark
	return false
}

// reap takes what the device used, and checks it; it returns how many chains came back.
func (q *queue) reap() (n int) {
	for q.ring.HasUsed() {
		idx := q.ring.Raw().UsedIdx()
		if idx-q.seen > q.size {
			q.t.Fatalf("queue %d: used index %d, and %d elements were taken: it jumped", q.index, idx, q.seen)
		}
		at := 4 + 8*int(q.seen%q.size)
		id, length := binary.LittleEndian.Uint32(q.used[at:]), binary.LittleEndian.Uint32(q.used[at+4:])
		f, ok := q.flight[uint16(id)] //nolint:gosec // G115: compared below
		if !ok || id > 0xffff {
			q.t.Fatalf("queue %d: used element %d is for head %d, which is not in flight: completed twice, or never sent", q.index, q.seen, id)
		}
		if length > f.room {
			q.t.Errorf("queue %d: head %d: used.len %d, but the chain has %d device-writable bytes (2.7.8.2)", q.index, id, length, f.room)
		}
		q.untouched(f)
		delete(q.flight, uint16(id))
		q.ring.Used()
		q.seen++
		q.done++
		q.written += uint64(length)
		n++
	}
	return n
}

// untouched checks that the device wrote only where it may.
func (q *queue) untouched(f flying) {
	for _, b := range f.readable {
		for i, v := range q.m.buffers.Bytes(driver.Buffer{Addr: b.Addr, Len: b.Len + 16}) {
			want := f.pattern
			if f.pattern == counting {
				want = byte(i + 1)
			}
			if i >= int(b.Len) {
				want = canary
			}
			if v != want {
				q.t.Errorf("queue %d: the device wrote to byte %d of a device-readable buffer of %d (2.7.5.1)", q.index, i, b.Len)
				return
			}
		}
	}
	for _, b := range f.writable {
		for i, v := range q.m.buffers.Bytes(driver.Buffer{Addr: b.Addr + guestmem.GPA(b.Len), Len: 16}) {
			if v != canary {
				q.t.Errorf("queue %d: the device wrote %d bytes past a device-writable buffer of %d", q.index, i+1, b.Len)
				return
			}
		}
	}
}

// settle waits until every chain is completed or, for a queue that keeps them, until nothing happens any more.
func (q *queue) settle() {
	last := time.Now()
	begin := last
	for len(q.flight) > 0 {
		switch n := q.reap(); {
		case n > 0:
			last = time.Now()
		case q.keeps && time.Since(last) > quiet:
			return
		case time.Since(begin) > q.t.o.Patience || q.t.ctx.Err() != nil:
			q.t.Fatalf("queue %d: %d of %d chains were not completed within %v (if that is what the queue is for, tell Options.Keeps, or --keeps)",
				q.index, len(q.flight), q.sent, q.t.o.Patience)
		default:
			time.Sleep(pollEvery)
		}
	}
}

// called waits for a call.
func (q *queue) called(limit time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(q.call.Fd()), Events: unix.POLLIN}} //nolint:gosec // G115: a descriptor
	for end := time.Now().Add(limit); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(end)).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		q.t.must("poll", err)
		if n == 0 {
			return false
		}
		var b [8]byte
		_, err = unix.Read(int(fds[0].Fd), b[:])
		q.t.must("read call", err)
		return true
	}
}

// stays fails if the device uses anything for a while.
func (q *queue) stays(what string) {
	time.Sleep(quiet) // there is nothing to wait for: it must not happen
	if n := q.reap(); n > 0 {
		q.t.Errorf("queue %d: %s, and %d more chains were completed", q.index, what, n)
	}
}
