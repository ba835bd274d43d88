package lguest

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Messages that a guest can cause are limited to limiterBurst in limiterTime; arbitrary, more than a start causes.
const (
	limiterBurst = 16
	limiterTime  = time.Second
)

// limiter logs what a guest causes, at a bounded rate.
type limiter struct {
	log hclog.Logger

	mu      sync.Mutex
	since   time.Time
	n       int
	dropped int
}

// allow tells whether one more message may be logged, and how many were not since the last.
func (l *limiter) allow(now time.Time) (dropped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= limiterTime {
		l.since, l.n = now, 0
	}
	if l.n == limiterBurst {
		l.dropped++
		return 0, false
	}
	l.n++
	dropped, l.dropped = l.dropped, 0
	return dropped, true
}

func (l *limiter) warn(msg string, args ...any)  { l.write(l.log.Warn, msg, args) }
func (l *limiter) error(msg string, args ...any) { l.write(l.log.Error, msg, args) }

func (l *limiter) write(to func(string, ...any), msg string, args []any) {
	dropped, ok := l.allow(time.Now())
	if !ok {
		return
	}
	if dropped > 0 {
		args = append(args, "messages_left_out", dropped)
	}
	to(msg, args...)
}
