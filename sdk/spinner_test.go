package sdk

import "testing"

// looks is how often, in n batches, the spinner looks for more; each look finds what hit says.
func looks(s *spinner, n int, hit bool) (looked int) {
	for range n {
		s.worked()
		if s.due() {
			looked++
			s.found(hit)
		}
	}
	return looked
}

func TestABusyPollThatFindsNothingBecomesSeldomAndRecoversAtOnce(t *testing.T) {
	t.Parallel()
	s := spinner{most: DefaultBusyPoll}
	if n := looks(&s, 1000, true); n != 1000 {
		t.Errorf("%d looks in 1000 batches while each finds more", n)
	}
	looks(&s, 1000, false)
	if n := looks(&s, 65*100, false); n != 100 {
		t.Errorf("%d looks in 6500 batches while none finds more, want 100", n)
	}
	for s.skip > 0 {
		looks(&s, 1, true)
	}
	if looks(&s, 1, true) != 1 || looks(&s, 1000, true) != 1000 {
		t.Error("one look that found more did not bring it back")
	}
	if n := looks(&spinner{}, 100, true); n != 0 {
		t.Errorf("%d looks though busy-polling is off", n)
	}
	s = spinner{most: DefaultBusyPoll}
	if s.due() {
		t.Error("it looks though no work was found: an idle queue would not sleep")
	}
}
