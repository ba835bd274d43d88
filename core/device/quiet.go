package device

import (
	"sync"
	"time"
)

// Lines about what a guest's driver can cause as often as it likes are limited to quietBurst in quietTime; arbitrary.
const (
	quietBurst = 16
	quietTime  = time.Minute
)

// quiet bounds the rate of such lines.
type quiet struct {
	mu      sync.Mutex
	since   time.Time
	n       int
	dropped int
}

// line calls log with args, and how many lines were left out before; or leaves this one out.
func (q *quiet) line(log func(string, ...any), msg string, args ...any) {
	q.mu.Lock()
	if now := time.Now(); now.Sub(q.since) >= quietTime {
		q.since, q.n = now, 0
	}
	ok := q.n < quietBurst
	if !ok {
		q.dropped++
		q.mu.Unlock()
		return
	}
	q.n++
	if q.dropped > 0 {
		args = append(args, "messages_left_out", q.dropped)
	}
	q.dropped = 0
	q.mu.Unlock()
	log(msg, args...)
}
