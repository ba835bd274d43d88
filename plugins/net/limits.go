package main

import (
	"context"
	"sync"
	"time"
)

// bucket is a token bucket: so many units a second, of which so many can be saved up. It may go into debt by one packet, so that a
// packet longer than the burst passes too.
type bucket struct {
	rate, burst float64 // units a second; units. rate 0: no limit
	level       float64
	at          time.Time
}

func newBucket(rate, burst uint64) bucket {
	return bucket{rate: float64(rate), burst: float64(burst), level: float64(burst)}
}

// fill adds what came since the last time.
func (b *bucket) fill(now time.Time) {
	if !b.at.IsZero() {
		b.level = min(b.burst, b.level+b.rate*now.Sub(b.at).Seconds())
	}
	b.at = now
}

// wait is how long until something may be taken; 0: now.
func (b *bucket) wait() time.Duration {
	if b.rate == 0 || b.level > 0 {
		return 0
	}
	return max(time.Duration((1-b.level)/b.rate*float64(time.Second)), time.Microsecond)
}

// limiter limits one direction of the device, for all its queue pairs. A nil limiter limits nothing, and asks no clock.
type limiter struct {
	now func() time.Time

	mu             sync.Mutex
	bytes, packets bucket
}

// burstPart is how much of a second's limit can be saved up unless the settings say: a tenth; arbitrary, far above the time
// that a thread may sleep too long.
const burstPart = 10

// newLimiter limits bytes and packets a second, 0: not; burst is in bytes, 0: the default.
func newLimiter(bytes, packets, burst uint64) *limiter {
	if bytes == 0 && packets == 0 {
		return nil
	}
	if burst == 0 {
		burst = max(bytes/burstPart, frameMax)
	}
	return &limiter{now: time.Now, bytes: newBucket(bytes, burst), packets: newBucket(packets, max(packets/burstPart, 1))}
}

// ready tells whether a packet may pass: 0, or else how long to wait before asking again.
func (l *limiter) ready() time.Duration {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.bytes.fill(now)
	l.packets.fill(now)
	return max(l.bytes.wait(), l.packets.wait())
}

// passed counts a packet that passed.
func (l *limiter) passed(bytes int) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes.level -= float64(bytes)
	l.packets.level--
}

// pause waits for d, or until ctx ends (its error).
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
