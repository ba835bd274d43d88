package virtq

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/virtplug/virtplug/sdk/internal/shm"
)

// The in-flight region of a split queue has the layout of the vhost-user protocol ("Inflight I/O tracking"), so that any
// implementation can continue another's: a header of 16 bytes
//
//	0 u64 features = 0 · 8 u16 version = 1 · 10 u16 desc_num · 12 u16 last_batch_head · 14 u16 used_idx
//
// and for each descriptor 16 bytes
//
//	0 u8 inflight · 1 pad[5] · 6 u16 next · 8 u64 counter
const (
	inflightHeader = 16
	inflightEntry  = 16
	inflightV1     = 1
)

// InflightBytes is the size of the in-flight region of a queue of size entries.
func InflightBytes(size uint16) int { return inflightHeader + inflightEntry*int(size) }

// tracker writes the in-flight region; the zero value tracks nothing. It is guarded by Queue.mu. Stores are plain: they are
// read after this process has died, and the kernel does not lose what a dead process stored.
type tracker struct {
	on        bool
	r64       shm.Ring // the region as 64-bit entries
	r16       shm.Ring
	counter   uint64
	batchHead uint16
}

func (t *tracker) fetch(head uint16) {
	if !t.on {
		return
	}
	t.counter++
	t.r64.Store64(2+2*int(head)+1, t.counter)
	t.r64.Store64(2+2*int(head), 1)
}

func (t *tracker) forget(head uint16) {
	if t.on {
		t.r64.Store64(2+2*int(head), 0)
	}
}

// stage links head into the batch that the next publication carries.
func (t *tracker) stage(head uint16) {
	if !t.on {
		return
	}
	t.r64.Store64(2+2*int(head), 1|uint64(t.batchHead)<<48)
	t.batchHead = head
	t.r16.Store16(6, head)
}

// published clears the batch and records the used index that carried it.
func (t *tracker) published(heads []uint16, usedIdx uint16) {
	if !t.on {
		return
	}
	for _, h := range heads {
		e := t.r64.Load64(2 + 2*int(h))
		t.r64.Store64(2+2*int(h), e&^0xff)
	}
	t.r16.Store16(7, usedIdx)
}

// openInflight initialises the region, or recovers from what a former instance left in it.
func (q *Queue) openInflight(region []byte, resume bool) error {
	n := InflightBytes(q.size)
	if len(region) < n {
		return fmt.Errorf("%d bytes, want %d", len(region), n)
	}
	region = region[:n]
	r64, err := shm.RingAt(region, 0, n, 8)
	if err != nil {
		return err
	}
	r16, err := shm.RingAt(region, 0, n, 2)
	if err != nil {
		return err
	}
	q.track = tracker{on: true, r64: r64, r16: r16}
	if resume && (r16.Load16(4) != inflightV1 || r16.Load16(5) != q.size) {
		// Nobody has used it yet (or somebody else's): it says nothing that could be continued.
		return fmt.Errorf("version %d of %d entries: cannot be continued", r16.Load16(4), r16.Load16(5))
	}
	if resume {
		return q.recoverInflight()
	}
	for i := range n / 8 {
		r64.Store64(i, 0)
	}
	r16.Store16(5, q.size)
	r16.Store16(7, q.usedIdx)
	r16.Store16(4, inflightV1)
	return nil
}

// recoverInflight finishes the publication that the former instance may have died in, then finds the chains in flight.
func (q *Queue) recoverInflight() error {
	t := &q.track
	batch := t.r16.Load16(6)
	published := q.usedIdx - t.r16.Load16(7)
	if published > q.size {
		return fmt.Errorf("%w: %d chains apart", ErrUsedIndex, published)
	}
	for range published {
		if batch >= q.size {
			return fmt.Errorf("%w: batch head %d", ErrUsedIndex, batch)
		}
		e := t.r64.Load64(2 + 2*int(batch))
		t.r64.Store64(2+2*int(batch), e&^0xff)
		batch = uint16(e >> 48)
	}
	t.r16.Store16(7, q.usedIdx)
	t.batchHead = t.r16.Load16(6)

	counter := func(h uint16) uint64 { return t.r64.Load64(2 + 2*int(h) + 1) }
	for h := range q.size {
		if t.r64.Load64(2+2*int(h))&0xff != 0 {
			q.resubmit = append(q.resubmit, h)
			t.counter = max(t.counter, counter(h))
		}
	}
	slices.SortFunc(q.resubmit, func(a, b uint16) int { return cmp.Compare(counter(a), counter(b)) })
	q.nextAvail = q.usedIdx + uint16(len(q.resubmit)) //nolint:gosec // G115: at most Size
	q.availSeen = q.nextAvail
	return nil
}

// Resubmitted is how many chains the former instance left in flight and Pop has not returned again yet.
func (q *Queue) Resubmitted() int { return len(q.resubmit) }
