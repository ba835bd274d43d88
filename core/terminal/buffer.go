package terminal

import "sync"

// buffer is a bounded queue of bytes between two goroutines.
type buffer struct {
	limit int

	mu      sync.Mutex
	cond    sync.Cond
	data    []byte
	ended   bool // no more will be put
	aborted bool // nobody waits any more
}

func newBuffer(limit int) *buffer {
	b := &buffer{limit: limit}
	b.cond.L = &b.mu
	return b
}

// put appends p, whole, as soon as fewer than limit bytes are there. full is called if it has to wait. False: aborted.
func (b *buffer) put(p []byte, full func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for told := false; len(b.data) >= b.limit && !b.aborted; b.cond.Wait() {
		if !told {
			told = true
			full()
		}
	}
	if b.aborted {
		return false
	}
	b.data = append(b.data, p...)
	b.cond.Broadcast()
	return true
}

// take waits for bytes and moves them to p; 0: the end, or aborted.
func (b *buffer) take(p []byte) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.data) == 0 && !b.ended && !b.aborted {
		b.cond.Wait()
	}
	if b.aborted {
		return 0
	}
	n := copy(p, b.data)
	if b.data = b.data[n:]; len(b.data) == 0 {
		b.data = nil
	}
	b.cond.Broadcast()
	return n
}

// end says that no more will be put.
func (b *buffer) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.cond.Broadcast()
}

// abort makes everybody give up.
func (b *buffer) abort() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.aborted = true
	b.cond.Broadcast()
}
