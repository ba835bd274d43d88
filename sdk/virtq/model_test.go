package virtq_test

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/virtplug/virtplug/sdk/virtq"
)

// model is what a queue promises, in few lines: chains are popped in the order they were made available, each completes
// exactly once in the driver's eyes, and a device that dies loses none of them.
type model struct {
	*pair
	t       *rapid.T
	serial  uint32
	waiting []uint32                // published, not popped, in order
	popped  map[uint32]*virtq.Chain // popped, not completed
	staged  map[uint32]bool         // completed, not flushed
	flushed map[uint32]bool         // flushed, not reaped
	heads   map[uint16]uint32       // driver: head -> serial
	added   []uint32                // added, not published
	order   []uint32                // popped and not flushed, by whichever device, in order of first popping
	again   []uint32                // left in flight by a dead device, not popped again
	fresh   []uint32                // popped out of the available ring by this device and not given back, in order
}

func (m *model) Add(t *rapid.T) {
	lens := rapid.SliceOfN(rapid.IntRange(1, 40), 1, 3).Draw(t, "lens")
	lens[0] += 4 // room for the serial
	out := rapid.SliceOfN(rapid.IntRange(1, 40), 0, 3).Draw(t, "out")
	in := m.buffers(m.t, lens...)
	head, ok := m.drv.Add(in, m.buffers(m.t, out...))
	if !ok {
		t.Skip("ring full")
	}
	m.serial++
	binary.LittleEndian.PutUint32(m.arena.Bytes(in[0]), m.serial)
	m.heads[head] = m.serial
	m.added = append(m.added, m.serial)
}

func (m *model) Publish(*rapid.T) {
	m.drv.Publish()
	m.waiting = append(m.waiting, m.added...)
	m.added = nil
}

func (m *model) Pop(t *rapid.T) {
	c, ok, err := m.dev.Pop()
	next := append(slices.Clone(m.again), m.waiting...)
	if err != nil || ok != (len(next) > 0) {
		t.Fatalf("Pop = %v, %v; %d are waiting", ok, err, len(next))
	}
	if !ok {
		return
	}
	var b [4]byte
	if err := c.Reader().ReadFull(b[:]); err != nil {
		t.Fatal(err)
	}
	serial := binary.LittleEndian.Uint32(b[:])
	if serial != next[0] {
		t.Fatalf("popped %d, want %d", serial, next[0])
	}
	m.popped[serial] = c
	if len(m.again) > 0 {
		m.again = m.again[1:]
		return
	}
	m.waiting = m.waiting[1:]
	m.order = append(m.order, serial)
	m.fresh = append(m.fresh, serial)
}

// Unpop gives back any chain that is popped; only the newest is taken.
func (m *model) Unpop(t *rapid.T) {
	if len(m.popped) == 0 {
		t.Skip("nothing popped")
	}
	k := rapid.SampledFrom(slices.Sorted(maps.Keys(m.popped))).Draw(t, "which")
	newest := len(m.fresh) > 0 && m.fresh[len(m.fresh)-1] == k
	if got := m.dev.Unpop(m.popped[k]); got != newest {
		t.Fatalf("Unpop of %d = %v; popped %v", k, got, m.fresh)
	}
	if newest {
		delete(m.popped, k)
		m.fresh = m.fresh[:len(m.fresh)-1]
		m.waiting = append([]uint32{k}, m.waiting...)
		m.order = slices.DeleteFunc(m.order, func(s uint32) bool { return s == k })
	}
}

func (m *model) Complete(t *rapid.T) {
	if len(m.popped) == 0 {
		t.Skip("nothing popped")
	}
	k := rapid.SampledFrom(slices.Sorted(maps.Keys(m.popped))).Draw(t, "which")
	if !m.dev.Complete(m.popped[k]) {
		t.Fatal("Complete refused")
	}
	delete(m.popped, k)
	m.staged[k] = true
}

func (m *model) Flush(*rapid.T) {
	m.dev.Flush()
	for k := range m.staged {
		m.flushed[k] = true
		m.order = slices.DeleteFunc(m.order, func(s uint32) bool { return s == k })
	}
	clear(m.staged)
}

func (m *model) Reap(t *rapid.T) {
	head, _, ok := m.drv.Used()
	if ok != (len(m.flushed) > 0) {
		t.Fatalf("Used = %v; %d are flushed", ok, len(m.flushed))
	}
	if !ok {
		return
	}
	serial := m.heads[head]
	if !m.flushed[serial] {
		t.Fatalf("chain %d came back, but was not flushed", serial)
	}
	delete(m.flushed, serial)
	delete(m.heads, head)
}

// Die replaces the device at any moment: what was not flushed is waiting again, in the order of popping, before the rest.
func (m *model) Die(t *rapid.T) {
	m.cfg.Recover = true
	dev, err := virtq.Activate(m.mem, m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.dev = dev
	if dev.Resubmitted() != len(m.order) {
		t.Fatalf("%d resubmitted, want %d", dev.Resubmitted(), len(m.order))
	}
	m.again = slices.Clone(m.order)
	m.fresh = nil
	clear(m.popped)
	clear(m.staged)
}

// Check holds after every step.
func (m *model) Check(t *rapid.T) {
	if s := m.dev.State(); s.Broken != nil || s.InFlight != len(m.popped)+len(m.staged) {
		t.Fatalf("state %+v, want %d in flight", s, len(m.popped)+len(m.staged))
	}
}

func TestQueueFollowsTheModel(t *testing.T) {
	t.Parallel()
	for name, f := range ringFeatures {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(rt *rapid.T) {
				p := newPair(t, heapMemory(t, 128), rapid.SampledFrom([]uint16{1, 2, 8, 16}).Draw(rt, "size"), f)
				m := &model{pair: p, t: rt, popped: map[uint32]*virtq.Chain{}, staged: map[uint32]bool{}, flushed: map[uint32]bool{}, heads: map[uint16]uint32{}}
				rt.Repeat(rapid.StateMachineActions(m))
			})
		})
	}
}
