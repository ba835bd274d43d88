package bench

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBucketsTileTheDurations(t *testing.T) {
	t.Parallel()
	for i := range 58 << subBits {
		if got := bucket(lower(i)); got != i {
			t.Fatalf("bucket(%v) = %d, want %d", lower(i), got, i)
		}
		if got := bucket(lower(i+1) - 1); got != i {
			t.Fatalf("bucket(%v) = %d, want %d", lower(i+1)-1, got, i)
		}
	}
}

func TestQuantilesAreWithinABucket(t *testing.T) {
	t.Parallel()
	var h, other Histogram
	var all []time.Duration
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: a repeatable sample
	for i := range 20000 {
		d := time.Duration(r.ExpFloat64() * 50e3)
		all = append(all, d)
		if i%2 == 0 {
			h.Add(d)
		} else {
			other.Add(d)
		}
	}
	h.Merge(&other)
	slices.Sort(all)
	for _, q := range []float64{0.5, 0.9, 0.99, 0.999, 1} {
		want := all[min(int(q*float64(len(all))), len(all)-1)]
		if got := h.Quantile(q); got < want*31/32-1 || got > want*33/32+1 {
			t.Errorf("quantile %v = %v, want about %v", q, got, want)
		}
	}
	if h.Count() != 20000 || h.Max() != all[len(all)-1] {
		t.Errorf("count %d, max %v", h.Count(), h.Max())
	}
}
