package devicetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// The state region's layout, read here by other code than the SDK's (docs/plugin-protocol.md, "Device state").
const (
	regionBytes   = 64 * kib
	slotBytes     = regionBytes / 2
	slotHeader    = 16
	maxStateBytes = slotBytes - slotHeader
	maxSequence   = 1 << 63
)

// keeper makes a state region for the instances of this case. It skips if the plugin does not use one.
func (t *runner) keeper() {
	if !slices.Contains(t.desc.GetCapabilities(), pluginv1.Capability_CAPABILITY_STATE) {
		t.Skipf("the plugin has not CAPABILITY_STATE")
	}
	t.region = t.memfd(regionBytes)
}

// putSlot encodes a slot that holds state.
func putSlot(b []byte, sequence uint64, state []byte) {
	binary.NativeEndian.PutUint64(b, sequence)
	binary.NativeEndian.PutUint32(b[8:], uint32(len(state))) //nolint:gosec // G115: small
	copy(b[slotHeader:], state)
	binary.NativeEndian.PutUint32(b[12:], slotSum(b, len(state)))
}

func slotSum(b []byte, n int) uint32 {
	return crc32.Checksum(slices.Concat(b[:12], b[slotHeader:slotHeader+n]), crc32.MakeTable(crc32.Castagnoli))
}

// saved is the state in the region; ok is false if it holds none. A slot that is neither void nor right is a fault of the plugin.
func (t *runner) saved() (state []byte, ok bool) {
	b := make([]byte, regionBytes)
	_, err := t.region.ReadAt(b, 0)
	t.must("state region", err)
	newest := uint64(0)
	for i := range 2 {
		slot := b[i*slotBytes:][:slotBytes]
		sequence, n := binary.NativeEndian.Uint64(slot), int(binary.NativeEndian.Uint32(slot[8:]))
		switch {
		case sequence == 0:
		case sequence > maxSequence || n > maxStateBytes:
			t.Errorf("state region, slot %d: sequence %d, length %d: want at most %d and %d", i, sequence, n, uint64(maxSequence), maxStateBytes)
		case binary.NativeEndian.Uint32(slot[12:]) != slotSum(slot, n):
			t.Errorf("state region, slot %d: sequence %d, %d bytes: the check sum is wrong", i, sequence, n)
		case sequence > newest:
			newest, state = sequence, bytes.Clone(slot[slotHeader:slotHeader+n])
		}
	}
	return state, newest > 0
}

// fill replaces the region's content.
func (t *runner) fill(b []byte) {
	_, err := t.region.WriteAt(b, 0)
	t.must("state region", err)
}

// told is a machine whose device was told something that it keeps, with the state; first is what a device keeps that was told
// nothing yet. Its queues are stopped.
func (t *runner) told() (m *machine, state, first []byte) {
	t.keeper()
	m = t.queued(virtio.FIndirectDesc, defaultSize)
	m.startAll()
	m.stopAll()
	first, _ = t.saved()
	for _, q := range m.queues {
		q.startWith(q.request(q.ring.Raw().UsedIdx()))
	}
	m.works()
	m.stopAll()
	state, ok := t.saved()
	if !ok {
		t.Skipf("what the suite sends is nothing that the device keeps")
	}
	return m, state, first
}

// end ends m's instance: a process is killed.
func (m *machine) end() {
	if p, ok := m.target.(*program); ok {
		m.t.must("kill", p.kill())
		return
	}
	m.t.must("close", m.target.Close())
}

// succeed lets another instance go on where m's was.
func (m *machine) succeed() {
	m.target = m.t.opened()
	m.t.configure(m.target)
	ctx, cancel := m.t.limited()
	defer cancel()
	if _, err := m.target.SetFeatures(ctx, m.features); err != nil {
		m.t.Fatalf("SetFeatures of an instance that is to continue with the state of a former one: %w", err)
	}
	m.attach()
	for _, q := range m.queues {
		r := q.request(q.ring.Raw().UsedIdx())
		r.Recover = q.tracked()
		q.startWith(r)
	}
}

// stateKilled ends an instance; another continues with what it saved.
func stateKilled(t *runner) {
	m, state, first := t.told()
	for range 2 { // the state of a state, too
		for _, q := range m.queues {
			q.startWith(q.request(q.ring.Raw().UsedIdx()))
		}
		m.end()
		if now, ok := t.saved(); !ok {
			t.Fatalf("an instance saved %d bytes of state and was ended: the region holds none", len(state))
		} else {
			state = now
		}
		m.succeed()
		m.stopAll()
		switch now, ok := t.saved(); {
		case !ok:
			t.Errorf("a new instance has thrown the state of its predecessor away")
		case bytes.Equal(now, first) && !bytes.Equal(now, state):
			t.Errorf("a new instance has %x as its state, as one that was told nothing: that of its predecessor was %x", brief(now), brief(state))
		}
	}
	for _, q := range m.queues {
		q.startWith(q.request(q.ring.Raw().UsedIdx()))
	}
	m.works()
	m.stopAll()
}

func brief(b []byte) []byte { return b[:min(len(b), 64)] }

// stateReset resets a device that has saved something.
func stateReset(t *runner) {
	m, state, first := t.told()
	ctx, cancel := t.limited()
	defer cancel()
	t.must("Reset", m.target.Reset(ctx))
	if now, ok := t.saved(); ok {
		t.Errorf("after Reset the state region holds %d bytes of state: want none", len(now))
	}
	m.negotiate()
	m.makeQueues()
	m.startAll()
	m.stopAll()
	if now, ok := t.saved(); ok && bytes.Equal(now, state) && !bytes.Equal(now, first) {
		t.Errorf("a driver that begins anew finds the state that its predecessor made: %x", brief(now))
	}
	m.startAll()
	m.works()
	m.stopAll()
}

// stateGarbage begins with regions in which nobody saved anything.
func stateGarbage(t *runner) {
	t.keeper()
	for name, spoil := range map[string]func(b []byte){
		"all ones": func(b []byte) {
			for i := range b {
				b[i] = 0xff
			}
		},
		"noise": func(b []byte) { _, _ = rand.NewChaCha8([32]byte{1}).Read(b) },
		"a length beyond the slot": func(b []byte) {
			putSlot(b, 1, nil)
			binary.NativeEndian.PutUint32(b[8:], slotBytes)
		},
		"a length of all ones": func(b []byte) {
			putSlot(b, 1, nil)
			binary.NativeEndian.PutUint32(b[8:], 0xffffffff)
		},
		"a wrong check sum": func(b []byte) {
			putSlot(b, 1, []byte("state"))
			b[slotHeader] ^= 1
		},
		"a sequence that nobody reaches": func(b []byte) { putSlot(b[slotBytes:], maxSequence+1, []byte("state")) },
		"one that was cut short":         func(b []byte) { putSlot(b, 0, []byte("state")) },
	} {
		b := make([]byte, regionBytes)
		spoil(b)
		t.fill(b)
		target := t.opened()
		t.configure(target)
		ctx, cancel := t.limited()
		if _, err := target.SetFeatures(ctx, virtio.FVersion1); err != nil {
			t.Errorf("SetFeatures, where the state region holds %s: %w: want it ignored", name, err)
		}
		if err := target.Health(ctx); err != nil {
			t.Fatalf("where the state region holds %s, the instance does not live on in health: %w", name, err)
		}
		t.must("close", target.Close())
		cancel()
	}
	t.fill(bytes.Repeat([]byte{0x5a}, regionBytes))
	m := t.queued(virtio.FIndirectDesc, defaultSize) // and then it works
	m.startAll()
	m.works()
	m.stopAll()
}

// stateUnknown begins with states that are whole, and that this device did not save. It may refuse them, and lives; a reset helps.
func stateUnknown(t *runner) {
	t.keeper()
	noise := make([]byte, maxStateBytes)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(noise)
	states := [][]byte{{}, {0}, {0xff}, bytes.Repeat([]byte{0xff}, 1000), make([]byte, 1000), noise}
	for n := range 16 {
		states = append(states, noise[n*100:][:1<<(n%10)])
	}
	for i, state := range states {
		b := make([]byte, regionBytes)
		putSlot(b, 1, state)
		t.fill(b)
		what := fmt.Sprintf("with state %d of somebody else, %d bytes %x", i, len(state), brief(state))
		target := t.opened()
		t.configure(target)
		ctx, cancel := t.limited()
		_, err := target.SetFeatures(ctx, virtio.FVersion1)
		if err != nil && !errors.Is(err, pluginrpc.ErrInvalid) && !errors.Is(err, pluginrpc.ErrFailed) {
			t.Errorf("SetFeatures %s: %w: want it refused or ignored", what, err)
		}
		if err := target.Health(ctx); err != nil {
			t.Fatalf("%s the instance does not live on in health: %w", what, err)
		}
		t.must("Reset", target.Reset(ctx))
		if _, err := target.SetFeatures(ctx, virtio.FVersion1); err != nil {
			t.Errorf("SetFeatures after a reset, begun %s: %w", what, err)
		}
		t.must("close", target.Close())
		cancel()
	}
}
