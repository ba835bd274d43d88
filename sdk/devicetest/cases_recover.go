package devicetest

import (
	"encoding/binary"
	"errors"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// heir is a machine for a device that continues what a former instance left; the former one is played by sdk/virtq.
func (t *runner) heir() (*machine, *queue) {
	m := t.queued(virtio.FIndirectDesc, defaultSize)
	if !m.queues[0].tracked() {
		t.Skipf("the plugin has not CAPABILITY_INFLIGHT")
	}
	q := m.answering(nil)
	if q == nil {
		t.Skipf("no queue has to complete what is sent")
	}
	return m, q
}

// former is the device side of a queue of an instance that will be gone; region is its in-flight region.
func (q *queue) former() (vq *virtq.Queue, region []byte) {
	d, a, u := q.ring.Areas()
	region = make([]byte, virtq.InflightBytes(q.size))
	vq, err := virtq.Activate(q.m.mem, virtq.Config{
		Index: q.index, Size: q.size, DescArea: d, DriverArea: a, DeviceArea: u, Features: q.m.features, Inflight: region,
	})
	q.t.must("activate", err)
	return vq, region
}

// inherit hands the region over and starts the queue with recover; it returns how many chains are served again.
func (q *queue) inherit(region []byte) int {
	_, err := q.inflight.WriteAt(region, 0)
	q.t.must("in-flight region", err)
	r := q.request(0)
	r.Recover = true
	r.NextAvail = 0x5555 // it does not count
	return q.startWith(r)
}

// recoverInflight leaves chains behind that were taken, some completed out of order.
func recoverInflight(t *runner) {
	m, q := t.heir()
	vq, region := q.former()
	for range 10 {
		q.send(shape{readable: []int{16}, writable: []int{32}})
	}
	q.ring.Publish()
	var cs [6]*virtq.Chain
	if n, err := vq.PopBatch(cs[:]); n != len(cs) || err != nil {
		t.Fatalf("the former instance took %d chains, %w", n, err)
	}
	vq.CompleteBatch([]*virtq.Chain{cs[3], cs[1]})
	vq.CompleteBatch([]*virtq.Chain{cs[4]})
	q.reap()
	if n := q.inherit(region); n != 3 {
		t.Errorf("StartQueue with recover: resubmitted %d: want 3", n)
	}
	q.settle()
	q.send(shape{readable: []int{16}, writable: []int{32}})
	q.publish()
	q.settle()
	q.stop()
	m.alive()
}

// recoverStopped stops a queue as soon as it continues: what a former instance left must be completed first, also in a queue
// that otherwise waits for something outside, for nobody does it later.
func recoverStopped(t *runner) {
	m, _ := t.heir()
	for _, q := range m.queues[:min(len(m.queues), 6)] {
		vq, region := q.former()
		for range 5 {
			q.send(shape{readable: []int{16}, writable: []int{32}})
		}
		q.ring.Publish()
		var cs [4]*virtq.Chain
		if n, err := vq.PopBatch(cs[:]); n != len(cs) || err != nil {
			t.Fatalf("the former instance took %d chains, %w", n, err)
		}
		vq.CompleteBatch(cs[1:2])
		if n := q.inherit(region); n != 3 {
			t.Errorf("StartQueue with recover: resubmitted %d: want 3", n)
		}
		q.stop()
	}
}

// recoverPublishing dies between the store of the used index and the clearing of the batch.
func recoverPublishing(t *runner) {
	_, q := t.heir()
	vq, region := q.former()
	for range 6 {
		q.send(shape{readable: []int{16}, writable: []int{32}})
	}
	q.ring.Publish()
	var cs [5]*virtq.Chain
	if n, err := vq.PopBatch(cs[:]); n != len(cs) || err != nil {
		t.Fatalf("the former instance took %d chains, %w", n, err)
	}
	vq.CompleteBatch(cs[:1])
	for _, c := range cs[1:3] {
		vq.Complete(c)
	}
	dying := append([]byte(nil), region...) // with the batch linked, none of it cleared, and the old used index
	vq.Flush()
	q.reap()
	if n := q.inherit(dying); n != 2 {
		t.Errorf("StartQueue with recover: resubmitted %d: want 2, the others were published", n)
	}
	q.settle()
	q.stop()
}

// recoverGarbage starts from regions that make no sense: that may be refused; the instance lives.
func recoverGarbage(t *runner) {
	m, q := t.heir()
	for i, spoil := range []func(b []byte){
		func(b []byte) { clear(b) },
		func(b []byte) {
			for i := range b {
				b[i] = 0xff
			}
		},
		func(b []byte) { binary.LittleEndian.PutUint16(b[10:], 7) },
		func(b []byte) { // a batch head and a used index from nowhere
			binary.LittleEndian.PutUint16(b[12:], 0xfff0)
			binary.LittleEndian.PutUint16(b[14:], 0xfff8)
		},
		func(b []byte) { // a batch that goes round in circles
			binary.LittleEndian.PutUint16(b[14:], 0xfff8)
		},
		func(b []byte) { // everything in flight, nothing was sent
			for n := range int(q.size) {
				b[16+16*n] = 1
			}
		},
	} {
		_, region := q.former()
		spoil(region)
		_, err := q.inflight.WriteAt(region, 0)
		t.must("in-flight region", err)
		r := q.request(0)
		r.Recover = true
		ctx, cancel := t.limited()
		_, err = m.target.StartQueue(ctx, r)
		if err != nil && !errors.Is(err, pluginrpc.ErrInvalid) && !errors.Is(err, pluginrpc.ErrFailed) {
			t.Errorf("StartQueue with recover, garbage %d: %w: want it refused or served", i, err)
		}
		if err == nil {
			q.signal()
			q.abandon()
		}
		cancel()
		m.alive()
		m.reset()
		q = m.answering(nil)
	}
	m.startAll()
	m.works()
	m.stopAll()
}

// recoverKilled kills a process under load; another continues.
func recoverKilled(t *runner) {
	m, q := t.heir()
	p, ok := m.target.(*program)
	if !ok {
		t.Skipf("only of a program")
	}
	q.start()
	for range 50 {
		for q.send(shape{readable: []int{16}, writable: []int{64}}) {
			q.publish()
		}
		q.reap()
	}
	t.must("kill", p.kill())
	m.target = t.opened()
	t.configure(m.target)
	m.negotiate()
	m.attach()
	r := q.request(0)
	r.Recover = true
	q.startWith(r)
	for range 10 {
		q.settle()
		for q.send(shape{readable: []int{16}, writable: []int{64}}) {
		}
		q.publish()
	}
	q.settle()
	q.stop()
}
