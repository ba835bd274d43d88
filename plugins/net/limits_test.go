package main

import (
	"testing"
	"time"
)

// pass takes packets of n bytes as fast as l lets them through, on a clock of its own, and returns how long it took.
func passAll(l *limiter, packets, n int) time.Duration {
	begin := time.Unix(1, 0)
	now := begin
	l.now = func() time.Time { return now }
	for range packets {
		for wait := l.ready(); wait > 0; wait = l.ready() {
			now = now.Add(wait)
		}
		l.passed(n)
	}
	return now.Sub(begin)
}

func TestLimitsHoldTheirRate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		bytes, packets, burst uint64
		n, count              int
		want                  time.Duration
	}{
		"bytes":                      {bytes: 1_000_000, burst: 100_000, n: 1000, count: 10_000, want: 9900 * time.Millisecond},
		"packets":                    {packets: 1000, n: 9000, count: 10_000, want: 9900 * time.Millisecond},
		"both, bytes bind":           {bytes: 1_000_000, burst: 100_000, packets: 100_000, n: 1000, count: 10_000, want: 9900 * time.Millisecond},
		"both, packets bind":         {bytes: 1 << 40, packets: 1000, n: 1000, count: 10_000, want: 9900 * time.Millisecond},
		"longer than the burst":      {bytes: 10_000, burst: 100, n: 60_000, count: 11, want: 60 * time.Second},
		"one packet a second":        {packets: 1, n: 60, count: 10, want: 9 * time.Second},
		"within the burst":           {bytes: 1000, burst: 100_000, n: 1000, count: 100, want: 0},
		"the burst's default, bytes": {bytes: 10_000_000, n: 1000, count: 1000, want: 0},
	} {
		got := passAll(newLimiter(c.bytes, c.packets, c.burst), c.count, c.n)
		if slack := c.want/50 + 10*time.Millisecond; got < c.want-slack || got > c.want+slack {
			t.Errorf("%s: %d packets took %v, want %v", name, c.count, got, c.want)
		}
	}
}

func TestAPauseSavesUpNoMoreThanTheBurst(t *testing.T) {
	t.Parallel()
	l := newLimiter(1000, 0, 5000)
	now := time.Unix(1, 0)
	l.now = func() time.Time { return now }
	l.ready()
	now = now.Add(time.Hour)
	sent := 0
	for l.ready() == 0 {
		l.passed(100)
		sent += 100
	}
	if sent != 5000 {
		t.Errorf("%d bytes passed at once, want 5000", sent)
	}
}

func TestNoLimitIsNoLimiter(t *testing.T) {
	t.Parallel()
	l := newLimiter(0, 0, 1000)
	if l != nil || l.ready() != 0 {
		t.Error("there is a limit")
	}
	l.passed(1)
}
