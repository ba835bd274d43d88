package kvm

import (
	"io"
	"sync"
	"time"
)

const (
	// sinkMax is how much serial output may wait for its reader, in bytes, before the guest does; arbitrary.
	sinkMax = 64 << 10
	// sinkBatch is how much makes a write at once, in bytes; less is written at the end of a line, or after sinkDelay. Both are
	// arbitrary: a user does not notice, and a line is a system call or two instead of eighty.
	sinkBatch = 1024
	sinkDelay = 5 * time.Millisecond
	// sinkPatience is how long the end of a guest waits for a reader of its output that blocks; arbitrary.
	sinkPatience = 2 * time.Second
)

// sink takes the serial port's bytes one by one and writes them out as many at once as have come.
type sink struct {
	w io.Writer

	mu      sync.Mutex
	changed *sync.Cond
	pending []byte
	due     bool          // pending is to be written now
	delay   *time.Timer   // makes it due
	closed  bool          // nothing is taken any more
	done    chan struct{} // the writing goroutine has ended
}

func newSink(w io.Writer) *sink {
	s := &sink{w: w, done: make(chan struct{})}
	s.changed = sync.NewCond(&s.mu)
	s.delay = time.AfterFunc(time.Hour, s.flush)
	s.delay.Stop()
	go s.run()
	return s
}

// put takes one byte. It waits while the reader is far behind.
func (s *sink) put(b byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.pending) >= sinkMax && !s.closed {
		s.changed.Wait()
	}
	if s.closed {
		return
	}
	s.pending = append(s.pending, b)
	switch {
	case b == '\n' || len(s.pending) == sinkBatch:
		s.due = true
		s.changed.Broadcast()
	case len(s.pending) == 1:
		s.delay.Reset(sinkDelay)
	}
}

// flush makes what is there due.
func (s *sink) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) > 0 {
		s.due = true
		s.changed.Broadcast()
	}
}

func (s *sink) run() {
	defer close(s.done)
	var spare []byte
	for {
		s.mu.Lock()
		for !s.due && !s.closed {
			s.changed.Wait()
		}
		out := s.pending
		s.pending, s.due = spare[:0], false
		s.changed.Broadcast()
		s.mu.Unlock()
		if len(out) == 0 {
			return
		}
		_, _ = s.w.Write(out) // a kernellog.Log, which never fails
		spare = out
	}
}

// release lets go of who waits in put: nothing is taken any more.
func (s *sink) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.changed.Broadcast()
}

// close writes out what is left and ends. A reader that blocks is left behind after sinkPatience.
func (s *sink) close() {
	s.release()
	s.delay.Stop()
	t := time.NewTimer(sinkPatience)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
	}
}
