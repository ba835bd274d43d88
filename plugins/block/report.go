package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reportInterval is how long further failures of the same kind are only counted. Arbitrary: often enough to see that it
// goes on, seldom enough for a log.
const reportInterval = 10 * time.Second

// reporter tells the user about failed I/O: the first failure of a kind at once, the others now and then, none uncounted.
type reporter struct {
	tell func(error)
	now  func() time.Time

	mu    sync.Mutex
	kinds map[failureKind]*failureCount
}

// failureKind bounds the table: operations times error numbers.
type failureKind struct {
	op    op
	errno unix.Errno
}

type failureCount struct {
	quietUntil time.Time
	untold     uint64
	last       error
}

func newReporter(tell func(error)) *reporter {
	return &reporter{tell: tell, now: time.Now, kinds: make(map[failureKind]*failureCount)}
}

// failed reports err, or counts it. Any goroutine.
func (r *reporter) failed(o op, err error) {
	k := failureKind{o, errnoOf(err)}
	now := r.now()

	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.kinds[k]
	if c == nil {
		c = &failureCount{}
		r.kinds[k] = c
	}
	c.last = err
	if now.Before(c.quietUntil) {
		c.untold++
		return
	}
	c.quietUntil = now.Add(reportInterval)
	r.flush(c, err)
}

// close reports what was only counted.
func (r *reporter) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.kinds {
		if c.untold > 0 {
			r.flush(c, c.last)
		}
	}
}

// errnoOf is the error number in err, 0 if there is none: a kind too.
func errnoOf(err error) unix.Errno {
	n, _ := errors.AsType[unix.Errno](err)
	return n
}

func (r *reporter) flush(c *failureCount, err error) {
	n := c.untold
	c.untold = 0
	if n > 0 {
		err = fmt.Errorf("%w (and %d like it since the last report)", err, n)
	}
	r.tell(fmt.Errorf("%w; the guest got I/O errors", err))
}
