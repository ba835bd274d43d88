package main

import (
	"sync"
	"sync/atomic"

	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// queue turns the chains of one virtqueue into requests and the engine's results into answers.
type queue struct {
	engine   engine
	failures *reporter
	// rules change only while no queue runs, but for the capacity, which each batch sets.
	rules rules
	ready []*request
	counters

	mu   sync.Mutex
	free []*request
	_    [64]byte // queues lie in one slice: keep their counters out of each other's cache lines
}

// completer is the part of sdk.Queue that answers chains.
type completer interface {
	// Complete answers a chain from within the handler.
	Complete(c *virtq.Chain)
	// Finish answers a chain from elsewhere.
	Finish(c *virtq.Chain) error
}

// counters only grow. They are atomic for their reader; a queue's thread is the only writer as a rule.
type counters struct {
	reads, writes, flushes, discards, writeZeroes atomic.Uint64
	readBytes, writeBytes                         atomic.Uint64
	errors, rejected                              atomic.Uint64
}

// handle serves a batch. Requests that the engine need not see are answered at once.
func (q *queue) handle(sectors uint64, ring completer, batch []*virtq.Chain) {
	q.rules.sectors = sectors
	q.ready = q.ready[:0]
	for _, c := range batch {
		r := q.take(ring, c)
		if r.parse(c.Readable(), c.Writable(), &q.rules) {
			q.ready = append(q.ready, r)
			continue
		}
		if r.code != virtio.BlkSOK {
			q.rejected.Add(1)
		}
		q.answer(r, false)
	}
	if len(q.ready) > 0 {
		q.engine.submit(q.ready)
	}
}

// take returns a request for c. At most as many exist as were ever in flight at once.
func (q *queue) take(ring completer, c *virtq.Chain) *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.free)
	if n == 0 {
		return &request{ring: ring, chain: c}
	}
	r := q.free[n-1]
	q.free = q.free[:n-1]
	r.ring, r.chain = ring, c
	return r
}

// done is the engine's doneFunc.
func (q *queue) done(r *request, late bool) {
	r.code = virtio.BlkSOK
	if r.err != nil {
		r.code = virtio.BlkSIOErr
		q.errors.Add(1)
		q.failures.failed(r.op, r.err)
	} else {
		q.count(r)
	}
	q.answer(r, late)
}

// count counts a request that succeeded.
func (q *queue) count(r *request) {
	switch r.op {
	case opRead:
		q.reads.Add(1)
		q.readBytes.Add(uint64(r.copied)) //nolint:gosec // G115: never negative
	case opWrite:
		q.writes.Add(1)
		q.writeBytes.Add(uint64(r.extents[0].size)) //nolint:gosec // G115: never negative
	case opFlush:
		q.flushes.Add(1)
	case opDiscard:
		q.discards.Add(1)
	case opZero:
		q.writeZeroes.Add(1)
	case opNone:
	}
}

// answer writes the status and gives the chain back. A chain without room for a status is given back with nothing written.
func (q *queue) answer(r *request, late bool) {
	c, ring := r.chain, r.ring
	if len(r.status) > 0 {
		r.status[0] = r.code
		c.Writer().Advance(int(r.copied) + 1)
	}
	r.ring, r.chain, r.status, r.err = nil, nil, nil, nil
	clear(r.data)
	q.mu.Lock()
	q.free = append(q.free, r)
	q.mu.Unlock()
	if !late {
		ring.Complete(c)
		return
	}
	if err := ring.Finish(c); err != nil {
		q.failures.failed(opNone, err)
	}
}

// Statistics adds up the queues' counters.
func (b *block) Statistics() map[string]uint64 {
	sum := make(map[string]uint64)
	for i := range b.queues {
		c := &b.queues[i].counters
		for name, v := range map[string]*atomic.Uint64{
			"reads": &c.reads, "writes": &c.writes, "flushes": &c.flushes, "discards": &c.discards,
			"write_zeroes": &c.writeZeroes, "read_bytes": &c.readBytes, "write_bytes": &c.writeBytes,
			"errors": &c.errors, "rejected": &c.rejected,
		} {
			sum[name] += v.Load()
		}
	}
	return sum
}
