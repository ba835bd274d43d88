package devicetest

import (
	"maps"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// queued is a machine whose device has queues.
func (t *runner) queued(ring virtio.Features, size uint16) *machine {
	m := t.newMachine(ring, size)
	if len(m.queues) == 0 {
		t.Skipf("the device has no queues")
	}
	return m
}

func queueArguments(t *runner) {
	m := t.queued(0, defaultSize)
	bad := map[string]func(r *pluginrpc.QueueStart){
		"no such queue":                    func(r *pluginrpc.QueueStart) { r.Index = len(m.queues) },
		"size 0":                           func(r *pluginrpc.QueueStart) { r.Size = 0 },
		"a size that is no power of two":   func(r *pluginrpc.QueueStart) { r.Size = 3 },
		"a descriptor table beyond memory": func(r *pluginrpc.QueueStart) { r.DescArea = 1 << 50 },
		"an available ring beyond memory":  func(r *pluginrpc.QueueStart) { r.DriverArea = 1 << 50 },
		"a used ring beyond memory":        func(r *pluginrpc.QueueStart) { r.DeviceArea = 1 << 50 },
		"an address that wraps":            func(r *pluginrpc.QueueStart) { r.DescArea = math.MaxUint64 &^ 15 },
		"a descriptor table not aligned":   func(r *pluginrpc.QueueStart) { r.DescArea += 8 },
		"an available ring not aligned":    func(r *pluginrpc.QueueStart) { r.DriverArea++ },
		"a used ring not aligned":          func(r *pluginrpc.QueueStart) { r.DeviceArea += 2 },
		"a used ring over the end": func(r *pluginrpc.QueueStart) {
			last := m.regions[2]
			r.DeviceArea = last.Start + guestmem.GPA(last.Size) - 8
		},
	}
	small := t.memfd(8)
	if m.queues[0].tracked() {
		bad["an in-flight region that is too short"] = func(r *pluginrpc.QueueStart) { r.Inflight = int(small.Fd()) }
	}
	for _, what := range slices.Sorted(maps.Keys(bad)) {
		r := m.queues[0].request(0)
		bad[what](&r)
		ctx, cancel := t.limited()
		_, err := m.target.StartQueue(ctx, r)
		cancel()
		t.refused("StartQueue with "+what, err, pluginrpc.ErrInvalid)
	}
	ctx, cancel := t.limited()
	defer cancel()
	_, err := m.target.StopQueue(ctx, len(m.queues))
	t.refused("StopQueue of a queue that is not there", err, pluginrpc.ErrInvalid)
	m.startAll()
	m.works()
}

// rounds bounds what is done to every queue of a device that has many.
func (m *machine) rounds(most int) int { return max(3, min(most, 1000/len(m.queues))) }

func queueStartStop(t *runner) {
	m := t.queued(virtio.FIndirectDesc|virtio.FEventIdx, defaultSize)
	var slowest time.Duration
	for range m.rounds(50) {
		for _, q := range m.queues {
			q.start()
		}
		for _, q := range m.queues {
			begin := time.Now()
			q.stop()
			slowest = max(slowest, time.Since(begin))
		}
	}
	if slowest > t.o.Patience/2 {
		t.Errorf("StopQueue of an idle queue took up to %v: a machine waits for it", slowest)
	}
	ctx, cancel := t.limited()
	defer cancel()
	s, err := m.target.StopQueue(ctx, 0)
	if err != nil || s.NextAvail != 0 || s.UsedIndex != 0 {
		t.Errorf("StopQueue of a queue that does not run: %+v, %v: want its last state", s, err)
	}
}

// queueRestart sends chains while a queue is stopped: they are not served, and later they are.
func queueRestart(t *runner) {
	m := t.queued(virtio.FIndirectDesc|virtio.FEventIdx, defaultSize)
	m.startAll()
	for range 5 {
		m.works()
		for _, q := range m.queues {
			next := q.stop().NextAvail
			q.send(shape{readable: []int{16}, writable: []int{32}})
			q.publish()
			q.stays("it was stopped")
			q.startWith(q.request(next))
			q.settle()
		}
	}
	m.stopAll()
}

// queueStopUnderLoad stops a queue while the driver goes on.
func queueStopUnderLoad(t *runner) {
	m := t.queued(virtio.FIndirectDesc|virtio.FEventIdx, defaultSize)
	for _, q := range m.queues[:min(len(m.queues), 4)] {
		q.start()
		for round := range 20 {
			stopped := make(chan struct{})
			var s pluginrpc.QueueState
			var err error
			go func() {
				defer close(stopped)
				time.Sleep(time.Duration(round) * 100 * time.Microsecond) // somewhere in the load
				ctx, cancel := t.limited()
				defer cancel()
				s, err = m.target.StopQueue(ctx, q.index)
			}()
			for busy := true; busy; {
				for q.send(shape{readable: []int{16}, writable: []int{100}}) {
					q.publish()
				}
				q.reap()
				select {
				case <-stopped:
					busy = false
				default:
				}
			}
			if err != nil {
				t.Fatalf("StopQueue %d under load: it does not stop: %w", q.index, err)
			}
			q.stopped(s)
			q.stays("it was stopped")
			q.startWith(q.request(s.NextAvail))
		}
		q.settle()
		q.stop()
	}
}

// fullSize is the most chains that a queue's buffers have room for.
const fullSize = 1024

// queueFullSize uses the largest queues that the device offers, with every descriptor in use.
func queueFullSize(t *runner) {
	m := t.queued(virtio.FEventIdx, virtio.QueueSizeMax)
	for _, q := range m.queues[:min(len(m.queues), 4)] {
		if q.size > fullSize {
			q.size = fullSize
			q.layOut()
		}
		q.start()
		for range 3 {
			for q.send(shape{writable: []int{1}}) {
			}
			q.publish()
			q.settle()
		}
		q.stop()
	}
}

// queueIndexWraps goes past 2^16, where indices begin anew.
func queueIndexWraps(t *runner) {
	m := t.queued(0, 256)
	q := m.answering(nil)
	if q == nil {
		t.Skipf("no queue has to complete what is sent")
	}
	q.start()
	begin := time.Now()
	for q.done < 1<<16+100 {
		for range 64 {
			q.send(shape{writable: []int{1}})
		}
		q.publish()
		q.settle()
		if time.Since(begin) > 2*t.o.Patience {
			t.Skipf("the device is too slow for 65536 chains in %v", 2*t.o.Patience)
		}
	}
	next := q.stop().NextAvail
	q.startWith(q.request(next))
	q.send(shape{writable: []int{1}})
	q.publish()
	q.settle()
	q.stop()
}

// format skips the case if the device does not offer the ring features.
func (m *machine) format(ring virtio.Features) {
	if !m.offer.Features.Has(ring) {
		m.t.Skipf("the device does not offer %v", ring)
	}
}

// shapes are chains of one to n descriptors of all kinds.
func shapes(n int) (out []shape) {
	for total := 1; total <= n; total++ {
		for _, readable := range []int{0, 1, total / 2, total - 1, total} {
			s := shape{}
			for i := range total {
				length := []int{1, 16, 100, 512, 7}[i%5]
				if i < readable {
					s.readable = append(s.readable, length)
				} else {
					s.writable = append(s.writable, length)
				}
			}
			out = append(out, s)
		}
	}
	return out
}

// chains sends chains of all shapes, one at a time and as many as fit.
func chains(ring virtio.Features) func(*runner) {
	return func(t *runner) {
		m := t.queued(ring, defaultSize)
		m.format(ring)
		m.exchange()
	}
}

// exchange sends chains of all shapes through the first queues, started and stopped for it.
func (m *machine) exchange() {
	m.startAll()
	for _, q := range m.queues[:min(len(m.queues), 8)] {
		if q.keeps {
			for _, s := range shapes(4) {
				q.send(s)
			}
			q.publish()
			q.settle()
			continue
		}
		all := shapes(min(int(q.size), 8))
		for _, s := range all {
			q.send(s)
			q.publish()
			q.settle()
		}
		for i := 0; i < len(all); {
			for i < len(all) && q.send(all[i]) {
				i++
			}
			q.publish()
			q.settle()
		}
		if !q.send(all[len(all)-1]) {
			m.t.Errorf("queue %d: its ring is full, and nothing is in flight", q.index)
		}
		q.publish()
		q.settle()
	}
	m.stopAll()
}

// notifications drives a queue by calls alone: a lost kick or call shows as a chain that never comes back.
func notifications(ring virtio.Features) func(*runner) {
	return func(t *runner) {
		m := t.queued(ring, defaultSize)
		m.format(ring)
		q := m.answering(nil)
		if q == nil {
			t.Skipf("no queue has to complete what is sent")
		}
		q.start()
		for round := range 300 {
			for range 1 + round%4 {
				q.send(shape{readable: []int{16}, writable: []int{16}})
			}
			q.publish()
			for len(q.flight) > 0 {
				if q.reap() > 0 || q.ring.EnableCalls() {
					continue
				}
				if !q.called(t.o.Patience) {
					t.Fatalf("queue %d, round %d: %d chains in flight, calls enabled, and no call within %v", q.index, round, len(q.flight), t.o.Patience)
				}
			}
		}
		q.stop()
	}
}

// kickFlood kicks far more often than there is reason to.
func kickFlood(t *runner) {
	m := t.queued(virtio.FIndirectDesc|virtio.FEventIdx, defaultSize)
	m.startAll()
	for range 20000 {
		m.queues[0].signal()
	}
	m.works()
	m.alive()
	for _, q := range m.queues {
		for range 1000 {
			q.signal()
		}
	}
	m.stopAll()
	for _, q := range m.queues {
		q.signal()
		q.startWith(q.request(q.seen))
	}
	m.works()
	m.stopAll()
}

// notificationDescriptors uses what machines use besides blocking eventfds.
func notificationDescriptors(t *runner) {
	m := t.queued(0, defaultSize)
	q := m.answering(nil)
	if q == nil {
		t.Skipf("no queue has to complete what is sent")
	}
	for what, pair := range map[string]func() (read, write int, err error){
		"a non-blocking eventfd": func() (int, int, error) {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			return fd, -1, err
		},
		"a pipe": func() (int, int, error) {
			var p [2]int
			err := unix.Pipe2(p[:], unix.O_CLOEXEC)
			return p[0], p[1], err
		},
		"a socket": func() (int, int, error) {
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			return p[0], p[1], err
		},
	} {
		kr, kw, err := pair()
		t.must(what, err)
		cr, cw, err := pair()
		t.must(what, err)
		if kw < 0 {
			kw, cw = kr, cr
		}
		t.kicked(q, what, kr, kw, cw)
		for _, fd := range slices.Compact([]int{kr, kw, cr, cw}) {
			_ = unix.Close(fd)
		}
	}
}

// kicked serves some chains with other descriptors for kick and call.
func (t *runner) kicked(q *queue, what string, kick, kicker, call int) {
	before, err := unix.FcntlInt(uintptr(kick), unix.F_GETFL, 0)
	t.must("fcntl", err)
	r := q.request(q.seen)
	r.Kick, r.Call = kick, call
	q.startWith(r)
	for range 100 {
		q.send(shape{readable: []int{16}, writable: []int{16}})
		if q.ring.Publish() {
			t.must("kick", eventfd.Signal(kicker))
		}
		q.settle()
	}
	if after, err := unix.FcntlInt(uintptr(kick), unix.F_GETFL, 0); err == nil && after != before {
		t.Errorf("kick is %s: the device changed its flags from %#x to %#x: other processes share them", what, before, after)
	}
	q.stop()
}
