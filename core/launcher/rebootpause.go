package launcher

import (
	"context"
	"time"
)

// A guest that asks for a restart as soon as it runs would otherwise keep a processor busy with nothing but booting.
const (
	// settledAfter is how long a guest must have run for its restart to be one that somebody wanted; arbitrary, less than any
	// operating system takes to boot.
	settledAfter = time.Second
	// firstRebootPause and lastRebootPause bound the pause before the next boot, which doubles.
	firstRebootPause = 100 * time.Millisecond
	lastRebootPause  = 5 * time.Second
)

// rebootPause finds how long to wait between a guest's end and its next boot. The zero value is for the first.
type rebootPause struct{ last time.Duration }

// after is the pause after a guest that ran for that long.
func (p *rebootPause) after(ran time.Duration) time.Duration {
	switch {
	case ran >= settledAfter:
		p.last = 0
	case p.last == 0:
		p.last = firstRebootPause
	default:
		p.last = min(2*p.last, lastRebootPause)
	}
	return p.last
}

// wait waits for d; false: ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
