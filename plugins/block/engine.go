package main

import (
	"sync/atomic"

	"github.com/virtplug/virtplug/sdk/vecio"
)

// engine carries out requests: the seam between a queue's loop and the storage. Each queue has an engine of its own.
type engine interface {
	// submit starts the requests of a batch, which have passed request.parse. The engine sets copied and err of each and
	// gives it to its done function exactly once, in any order. A request that changed the image and has to be durable
	// when answered (write-through, or a flush) is done only after the image is synchronised.
	// batch is reused after the return; the requests are the engine's until they are done. One goroutine calls submit.
	submit(batch []*request)
	// close waits for all requests to be done and releases what the engine has.
	close() error
}

// doneFunc takes a finished request. late: not from within submit.
type doneFunc func(r *request, late bool)

// inline is the simplest engine: the queue's own thread does the system calls. All requests are done when submit returns.
type inline struct {
	img *image
	// writeThrough: a write is durable when answered.
	writeThrough *atomic.Bool
	done         doneFunc
	io           scratch
	unsynced     []*request
}

// scratch is what a thread needs for I/O without allocating.
type scratch struct {
	vecio.IO
	one [1][]byte
}

// single is a list of one buffer, valid until the next call.
func (s *scratch) single(b []byte) [][]byte {
	s.one[0] = b
	return s.one[:]
}

func newInline(img *image, writeThrough *atomic.Bool, done doneFunc) *inline {
	return &inline{img: img, writeThrough: writeThrough, done: done}
}

// submit does reads at once; what has to be durable shares one synchronisation at the end of the batch.
func (e *inline) submit(batch []*request) {
	e.unsynced = e.unsynced[:0]
	for _, r := range batch {
		e.perform(r)
		if r.err == nil && e.needsSync(r) {
			e.unsynced = append(e.unsynced, r)
			continue
		}
		e.done(r, false)
	}
	if len(e.unsynced) == 0 {
		return
	}
	err := e.img.sync()
	for _, r := range e.unsynced {
		r.err = err
		e.done(r, false)
	}
}

// needsSync is asked after r was performed: when the driver turns the cache off meanwhile, either this sees it, or the
// synchronisation that follows the change covers r.
func (e *inline) needsSync(r *request) bool {
	switch r.op {
	case opFlush:
		return true
	case opWrite, opZero:
		return e.writeThrough.Load()
	case opRead, opDiscard, opNone:
	}
	return false
}

func (e *inline) perform(r *request) {
	switch r.op {
	case opRead:
		r.copied, r.err = e.img.read(&e.io, r.data, r.extents[0])
	case opWrite:
		r.err = e.img.write(&e.io, r.data, r.extents[0])
	case opDiscard:
		for i := 0; i < len(r.extents) && r.err == nil; i++ {
			r.err = e.img.discard(r.extents[i])
		}
	case opZero:
		for i := 0; i < len(r.extents) && r.err == nil; i++ {
			r.err = e.img.zero(&e.io, r.extents[i])
		}
	case opFlush, opNone:
	}
}

func (e *inline) close() error { return nil }
