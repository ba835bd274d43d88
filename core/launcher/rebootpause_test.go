package launcher

import (
	"slices"
	"testing"
	"time"
)

func TestTheRebootPauseGrowsUntilAGuestSettles(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	var p rebootPause
	var got []time.Duration
	for _, ran := range []time.Duration{0, 999 * ms, 0, 0, 0, 0, 0, 0, 0, time.Second, 0, time.Hour, 5 * ms, 5 * ms} {
		got = append(got, p.after(ran))
	}
	want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms, 5000 * ms, 5000 * ms, 0, 100 * ms, 0, 100 * ms, 200 * ms}
	if !slices.Equal(got, want) {
		t.Errorf("pauses %v: want %v", got, want)
	}
}
