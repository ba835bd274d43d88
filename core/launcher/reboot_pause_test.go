package launcher

import "testing"

// stopper is a machine.Running that knows whether it is paused.
type stopper struct{ paused bool }

func (s *stopper) Pause() error                { s.paused = true; return nil }
func (s *stopper) Resume() error               { s.paused = false; return nil }
func (s *stopper) Counters() map[string]uint64 { return nil }

// The guest has asked for a reset and is being taken down when the user pauses it: what boots next must not run.
func TestAGuestPausedWhileItRestartsIsPausedAfterwards(t *testing.T) {
	t.Parallel()
	g := &guest{events: newEvents(nil)}
	first, second := &stopper{}, &stopper{}
	g.boots()
	g.started(first)
	if err := g.Pause(); err != nil {
		t.Fatal(err)
	}
	g.boots()
	g.started(second)
	if !second.paused {
		t.Error("the user was told that the guest is paused, and it runs")
	}
	if err := g.Resume(); err != nil {
		t.Fatal(err)
	}
	if second.paused {
		t.Error("not resumed")
	}
}
