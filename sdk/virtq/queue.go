package virtq

import (
	"sync"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/internal/shm"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Queue is an activated virtqueue. Pop, Unpop, EnableKicks and DisableKicks: one goroutine at a time. Complete, Flush and
// State: any goroutine.
type Queue struct {
	mem              *guestmem.Memory
	index            int
	size, mask       uint16
	indirect         bool
	eventIdx         bool
	desc             []byte
	availFlags       shm.U16
	availIdx         shm.U16
	availRing        shm.Ring
	usedEvent        shm.U16
	usedHead         shm.Word // flags and idx: one word of ours (2.7.8)
	usedRing         shm.Ring
	availEvent       shm.U16
	chains           []Chain // by head: a head is in flight at most once
	nextAvail        uint16  // the next available-ring entry to take
	availSeen        uint16  // the available index as last read
	resubmit         []uint16
	fetched          uint64     // chains taken out of the available ring and not given back: their numbers
	mu               sync.Mutex // guards what follows, and the fields of a Chain that say who has it
	usedIdx          uint16     // as published
	staged           []uint16   // heads completed but not published
	signalled        uint16     // the used index at the last decision to call or not
	everSignalled    bool
	kicksOff         bool // UsedFNoNotify is set
	taken            int  // chains popped and not completed
	idle             chan struct{}
	track            tracker
	broken           error
	chainsN, doneN   uint64
	readN, writtenN  uint64
	calls, callsDone uint64
}

// Size is the number of entries.
func (q *Queue) Size() uint16 { return q.size }

// Index is the queue's number.
func (q *Queue) Index() int { return q.index }

// Pop moves the next available descriptor chain out of the ring (2.7.13.3).
// ok == false with a nil error: the ring is empty. Allocates nothing, but for a chain longer than any before it.
// The chain's buffers alias guest memory and are valid until Complete; read each byte at most once.
// Errors: *DriverError, sticky.
func (q *Queue) Pop() (c *Chain, ok bool, err error) {
	var one [1]*Chain
	n, err := q.PopBatch(one[:])
	return one[0], n == 1, err
}

// PopBatch is Pop for up to len(dst) chains; it returns how many. If a chain is bad, those before it are returned first
// and the error by the next call.
func (q *Queue) PopBatch(dst []*Chain) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.broken != nil {
		return 0, q.broken
	}
	for n < len(dst) {
		head, ok, err := q.nextHead()
		if err == nil && ok {
			err = q.take(head)
		}
		if err != nil {
			q.broken = err
			if n > 0 {
				return n, nil
			}
			return 0, err
		}
		if !ok {
			break
		}
		dst[n] = &q.chains[head]
		n++
	}
	return n, nil
}

// nextHead gives the head at nextAvail, or first those to be resubmitted.
func (q *Queue) nextHead() (head uint16, ok bool, err error) {
	if len(q.resubmit) > 0 {
		return q.resubmit[0], true, nil
	}
	if q.nextAvail == q.availSeen {
		idx := q.availIdx.Load()
		if idx-q.nextAvail > q.size {
			return 0, false, q.driverError(0, "2.7.13.3", ErrAvailIndex)
		}
		q.availSeen = idx
		if idx == q.nextAvail {
			return 0, false, nil
		}
	}
	head = q.availRing.Load16(q.nextAvail & q.mask)
	if head >= q.size {
		return 0, false, q.driverError(head, "2.7.6", ErrHead)
	}
	return head, true, nil
}

// take validates the chain at head and marks it taken.
func (q *Queue) take(head uint16) error {
	c := &q.chains[head]
	if c.state != free {
		return q.driverError(head, "2.7.6", ErrHeadBusy)
	}
	if err := c.load(); err != nil {
		return err
	}
	c.state = taken
	q.taken++
	q.chainsN++
	if len(q.resubmit) > 0 {
		c.nth = 0 // it has no place in the available ring any more
		q.resubmit = q.resubmit[1:]
		return nil
	}
	q.track.fetch(head)
	q.fetched++
	c.nth = q.fetched
	q.nextAvail++
	return nil
}

// Unpop gives c back to the ring: the next Pop returns it again. c must be the newest of the chains popped and not given back,
// and not completed; so the newest ones are given back one by one, in reverse order. Otherwise, and for a chain that a former
// instance left in flight, Unpop returns false and c stays popped. The driver does not see what was written into c, for c is not
// used.
func (q *Queue) Unpop(c *Chain) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.state != taken || c.nth == 0 || c.nth != q.fetched {
		return false
	}
	q.fetched--
	q.nextAvail--
	c.state = free
	q.taken--
	q.chainsN--
	q.track.forget(c.head)
	q.settle()
	return true
}

// Complete stages c as used, with the number of bytes that its Writer wrote (2.7.8.2); Flush publishes. c must not be used
// after that. Any goroutine. A chain that is not popped (completed twice) is ignored and false is returned.
func (q *Queue) Complete(c *Chain) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.complete(c)
}

// CompleteBatch is Complete for several chains and Flush, under one lock.
func (q *Queue) CompleteBatch(cs []*Chain) (call bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range cs {
		q.complete(c)
	}
	return q.flush()
}

func (q *Queue) complete(c *Chain) bool {
	if c.state != taken {
		return false
	}
	c.state = staged
	slot := (q.usedIdx + uint16(len(q.staged))) & q.mask //nolint:gosec // G115: at most Size
	q.usedRing.Store32(2*int(slot), uint32(c.head))
	q.usedRing.Store32(2*int(slot)+1, c.written)
	q.track.stage(c.head)
	q.staged = append(q.staged, c.head)
	q.doneN++
	q.readN += uint64(c.readLen)
	q.writtenN += uint64(c.written)
	return true
}

// Flush publishes what Complete staged and tells whether the driver wants a call (2.7.13.4, 2.7.7). Any goroutine.
func (q *Queue) Flush() (call bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.flush()
}

func (q *Queue) flush() (call bool) {
	n := len(q.staged)
	if n == 0 {
		return false
	}
	q.usedIdx += uint16(n) //nolint:gosec // G115: at most Size
	q.publish()
	q.track.published(q.staged, q.usedIdx)
	for _, h := range q.staged {
		q.chains[h].release()
	}
	q.taken -= n
	q.staged = q.staged[:0]
	call = q.wantsCall()
	if call {
		q.callsDone++
	}
	q.calls++
	q.settle()
	return call
}

// publish stores flags and index in one piece; sequentially consistent, so what wantsCall reads comes after it.
func (q *Queue) publish() {
	v := uint32(q.usedIdx) << 16
	if q.kicksOff {
		v |= virtio.UsedFNoNotify
	}
	q.usedHead.Store(v)
}

func (q *Queue) wantsCall() bool {
	if !q.eventIdx {
		return q.availFlags.Load()&virtio.AvailFNoInterrupt == 0
	}
	event, old := q.usedEvent.Load(), q.signalled
	first := !q.everSignalled
	q.signalled, q.everSignalled = q.usedIdx, true
	return first || q.usedIdx-event-1 < q.usedIdx-old
}

// DisableKicks tells the driver that the device looks by itself. With event indices there is nothing to say (2.7.10).
func (q *Queue) DisableKicks() {
	if q.eventIdx {
		return
	}
	q.setKicksOff(true)
}

// EnableKicks asks the driver for a kick at the next available chain, and tells whether one is there already: then the
// device must not sleep.
func (q *Queue) EnableKicks() (more bool) {
	if q.eventIdx {
		q.availEvent.Store(q.nextAvail) // a full barrier stands between this store and the load below (package shm)
	} else {
		q.setKicksOff(false)
	}
	return q.HasMore()
}

func (q *Queue) setKicksOff(off bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kicksOff != off {
		q.kicksOff = off
		q.publish()
	}
}

// HasMore tells whether Pop would have something to say: a chain or an error. For busy-polling.
func (q *Queue) HasMore() bool {
	return len(q.resubmit) > 0 || q.nextAvail != q.availSeen || q.availIdx.Load() != q.nextAvail
}

// SpinUntilMore looks n times, with a pause between, whether HasMore.
func (q *Queue) SpinUntilMore(n int) bool {
	for range n {
		if q.HasMore() {
			return true
		}
		shm.Pause()
	}
	return false
}

// Break marks the queue broken, as if the driver had broken a rule; the first error stays.
func (q *Queue) Break(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.broken == nil {
		q.broken = err
	}
}

// Idle returns a channel that is closed once no popped chain is left uncompleted or unpublished.
func (q *Queue) Idle() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.idle == nil {
		q.idle = make(chan struct{})
	}
	ch := q.idle
	q.settle()
	return ch
}

func (q *Queue) settle() {
	if q.taken == 0 && q.idle != nil {
		close(q.idle)
		q.idle = nil
	}
}

// State is where a queue stands.
type State struct {
	// NextAvail is the next available-ring entry that was not taken; UsedIndex the used index as published.
	NextAvail, UsedIndex uint16
	// InFlight is how many chains are popped and not published.
	InFlight int
	// Broken is a *DriverError, or nil.
	Broken error
}

// State tells where the queue stands. NextAvail is exact only while nobody pops.
func (q *Queue) State() State {
	q.mu.Lock()
	defer q.mu.Unlock()
	return State{q.nextAvail, q.usedIdx, q.taken, q.broken}
}

// Counters are what the queue counted since Activate.
type Counters struct {
	Chains, Completed           uint64
	ReadableBytes, WrittenBytes uint64
	// Calls wanted by the driver; Suppressed: publications that it wanted no call for.
	Calls, Suppressed uint64
}

// Counters reads the counters. Any goroutine.
func (q *Queue) Counters() Counters {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Counters{q.chainsN, q.doneN, q.readN, q.writtenN, q.callsDone, q.calls - q.callsDone}
}

func (q *Queue) driverError(head uint16, section string, err error) error {
	return &DriverError{Op: "pop", Queue: q.index, Head: head, Section: section, Err: err}
}
