package devicetest

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// fault is something that a driver must not do, done to a ring that holds one good chain of two device-readable buffers and a
// device-writable one, which the device does not see yet: avail is the available index that it will see.
type fault struct {
	name, section string
	ring          virtio.Features
	do            func(f *faulty) (avail uint16)
	// tolerable faults may be served instead.
	tolerable bool
}

// faulty is the ring that a fault spoils.
type faulty struct {
	q    *queue
	head uint16
}

// desc is the chain's descriptor n; of its table if it has one.
func (f *faulty) desc(n int) []byte {
	if f.q.m.features.Has(virtio.FIndirectDesc) {
		head := f.q.ring.Raw().Desc(f.head)
		b, err := f.q.m.rings.Memory().Slice(guestmem.GPA(binary.LittleEndian.Uint64(head)), 3*virtio.DescSize)
		f.q.t.must("indirect table", err)
		return b[n*virtio.DescSize : (n+1)*virtio.DescSize]
	}
	at := f.head
	for range n {
		at = binary.LittleEndian.Uint16(f.q.ring.Raw().Desc(at)[14:])
	}
	return f.q.ring.Raw().Desc(at)
}

func (f *faulty) first() []byte { return f.q.ring.Raw().Desc(f.head) }

// edit makes a fault that writes to one descriptor and shows the chain.
func edit(change func(f *faulty)) func(*faulty) uint16 {
	return func(f *faulty) uint16 {
		change(f)
		return 1
	}
}

func put16(b []byte, v uint16) { binary.LittleEndian.PutUint16(b, v) }
func put32(b []byte, v uint32) { binary.LittleEndian.PutUint32(b, v) }
func put64(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }

// faults are the same as those of sdk/virtq's own tests.
func faults() []fault {
	const indirect = virtio.FIndirectDesc
	return []fault{
		{name: "head-outside-table", section: "2.7.6", do: func(f *faulty) uint16 { f.q.ring.Raw().SetAvail(0, f.q.size); return 1 }},
		{name: "head-far-outside", section: "2.7.6", do: func(f *faulty) uint16 { f.q.ring.Raw().SetAvail(0, 0xffff); return 1 }},
		{name: "index-jumps", section: "2.7.13.3", do: func(f *faulty) uint16 { return f.q.size + 1 }},
		{name: "index-goes-back", section: "2.7.13.3", do: func(*faulty) uint16 { return 0xffff }},
		{name: "next-outside-table", section: "2.7.5", do: edit(func(f *faulty) { put16(f.desc(0)[14:], f.q.size) })},
		{name: "loop", section: "2.7.5.2", do: edit(func(f *faulty) { put16(f.desc(0)[14:], f.head) })},
		{name: "address-outside-memory", section: "2.7.5", do: edit(func(f *faulty) { put64(f.desc(0), 1<<55) })},
		{name: "address-wraps", section: "2.7.5", do: edit(func(f *faulty) { put64(f.desc(0), ^uint64(0)-3) })},
		{name: "length-leaves-memory", section: "2.7.5", do: edit(func(f *faulty) { put32(f.desc(2)[8:], 0xff000000) })},
		{name: "no-bytes", section: "2.7.5", tolerable: true, do: edit(func(f *faulty) { put32(f.desc(0)[8:], 0) })},
		{name: "readable-after-writable", section: "2.7.4.2", do: edit(func(f *faulty) { put16(f.desc(0)[12:], virtio.DescFNext|virtio.DescFWrite) })},
		{name: "indirect-not-negotiated", section: "2.7.5.3.1", do: edit(func(f *faulty) { put16(f.desc(0)[12:], virtio.DescFIndirect) })},
		{name: "more-than-4-GiB", section: "2.7.5.2", do: edit(func(f *faulty) {
			put32(f.desc(0)[8:], 0xfffff000)
			put32(f.desc(1)[8:], 0xfffff000)
		})},
		{name: "head-twice", section: "2.7.6", tolerable: true, do: func(f *faulty) uint16 { f.q.ring.Raw().SetAvail(1, f.head); return 2 }},
		{name: "indirect-with-next", section: "2.7.5.3.1", ring: indirect, do: edit(func(f *faulty) { put16(f.first()[12:], virtio.DescFIndirect|virtio.DescFNext) })},
		{name: "indirect-odd-size", section: "2.7.5.3", ring: indirect, do: edit(func(f *faulty) { put32(f.first()[8:], 17) })},
		{name: "indirect-empty", section: "2.7.5.3", ring: indirect, do: edit(func(f *faulty) { put32(f.first()[8:], 0) })},
		{name: "indirect-too-long", section: "2.7.5.3.1", ring: indirect, do: edit(func(f *faulty) { put32(f.first()[8:], 0xf0000030) })},
		{name: "indirect-outside-memory", section: "2.7.5.3", ring: indirect, do: edit(func(f *faulty) { put64(f.first(), 1<<55) })},
		{name: "indirect-in-indirect", section: "2.7.5.3.1", ring: indirect, do: edit(func(f *faulty) { put16(f.desc(0)[12:], virtio.DescFIndirect) })},
		{name: "indirect-loop", section: "2.7.5.3", ring: indirect, do: edit(func(f *faulty) { put16(f.desc(1)[14:], 0) })},
		{name: "indirect-next-outside", section: "2.7.5.3", ring: indirect, do: edit(func(f *faulty) { put16(f.desc(0)[14:], 3) })},
	}
}

func hostileCases() (out []Case) {
	for _, f := range faults() {
		out = append(out, Case{"hostile/" + f.name, "VIRTIO 1.2, " + f.section + ", 2.1.2; plugin-protocol.md, The driver is not to be trusted", f.run})
	}
	return append(out, Case{"hostile/changing", "design: any byte in shared memory may change while it is read", changing})
}

// run does the fault to one queue: that queue breaks, the device asks for a reset, and everything else goes on.
func (f fault) run(t *runner) {
	m := t.queued(f.ring, defaultSize)
	m.format(f.ring)
	victim := m.answering(nil)
	if victim == nil {
		t.Skipf("no queue has to look at what is sent")
	}
	events := m.events()
	for _, q := range m.queues {
		q.start()
	}
	victim.spoil(f)
	broke := m.needsReset(events, victim, f.tolerable)
	m.alive()
	if other := m.answering(victim); other != nil {
		other.send(shape{readable: []int{16}, writable: []int{16}})
		other.publish()
		other.settle()
	}
	ctx, cancel := t.limited()
	defer cancel()
	s, err := m.target.StopQueue(ctx, victim.index)
	t.must("StopQueue of a broken queue", err)
	if broke {
		if s.Broken == "" {
			t.Errorf("StopQueue %d: it does not tell that the queue is broken", victim.index)
		}
		if used := victim.ring.Raw().UsedIdx(); used != 0 && !f.tolerable {
			t.Errorf("queue %d: %d chains of a broken ring were completed", victim.index, used)
		}
		_, err = m.target.StartQueue(ctx, victim.request(0))
		t.refused("StartQueue of a broken queue, before Reset", err, pluginrpc.ErrState)
	}
	m.reset()
	m.startAll()
	m.works()
	m.stopAll()
}

// spoil shows the device a chain with the fault.
func (q *queue) spoil(f fault) {
	bs, ok := q.buffersOf([]int{16, 16, 16}, 0, false)
	if !ok {
		q.t.Fatalf("no room for a chain")
	}
	head, _ := q.ring.Add(bs[:2], bs[2:])
	avail := f.do(&faulty{q: q, head: head})
	q.ring.Raw().SetAvailIdx(avail)
	q.signal()
}

// events opens the event stream; it is read to its end.
func (m *machine) events() <-chan pluginrpc.Event {
	ctx, cancel := context.WithCancel(m.t.ctx)
	events, err := m.target.Events(ctx)
	m.t.must("Events", err)
	m.t.Cleanup(func() {
		cancel()
		for range events {
		}
	})
	return events
}

// needsReset waits for the event that says so. If the fault is tolerable, a served queue will do.
func (m *machine) needsReset(events <-chan pluginrpc.Event, victim *queue, tolerable bool) bool {
	limit := m.t.o.Patience
	if tolerable {
		limit = 10 * quiet
	}
	deadline := time.After(limit)
	for {
		select {
		case e, open := <-events:
			if !open {
				m.t.Fatalf("the event stream ended: the instance died of a driver's mistake")
			}
			if d, ok := e.(pluginrpc.DeviceError); ok && d.NeedsReset {
				if d.Queue != victim.index {
					m.t.Errorf("event: queue %d needs a reset (%s): it is queue %d that broke", d.Queue, d.Message, victim.index)
				}
				return true
			}
		case <-deadline:
			if !tolerable {
				m.t.Errorf("queue %d: no error event with needs_reset within %v; used index %d", victim.index, limit, victim.ring.Raw().UsedIdx())
			}
			return false
		}
	}
}

// changing rewrites descriptors and indices while the device reads them.
func changing(t *runner) {
	m := t.queued(virtio.FIndirectDesc, defaultSize)
	victim := m.answering(nil)
	if victim == nil {
		t.Skipf("no queue has to look at what is sent")
	}
	for round := range 10 {
		m.startAll()
		raw := victim.ring.Raw()
		bs, _ := victim.buffersOf([]int{16, 16, 16}, 0, false)
		head, _ := victim.ring.Add(bs[:2], bs[2:])
		good := binary.LittleEndian.Uint64(raw.Desc(head))
		for i := range uint16(2000) {
			raw.SetAvail(i, head)
			raw.SetAvailIdx(i + 1)
			if i%16 == 0 {
				victim.signal()
			}
			// What the device reads twice it may read differently: the address, the length, the flags.
			driver.PutDesc(raw.Desc(head), guestmem.GPA(good), 48, virtio.DescFIndirect, 0)
			driver.PutDesc(raw.Desc(head), 1<<60, 0xffffffff, uint16(round), 0xffff)
		}
		m.alive()
		victim.abandon()
		m.reset()
	}
	m.startAll()
	m.works()
	m.stopAll()
}

// abandon stops a queue whose ring is nonsense by now.
func (q *queue) abandon() {
	ctx, cancel := q.t.limited()
	defer cancel()
	_, err := q.m.target.StopQueue(ctx, q.index)
	q.t.must("StopQueue of a queue with a hostile driver", err)
}
