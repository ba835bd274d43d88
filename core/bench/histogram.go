package bench

import (
	"math/bits"
	"time"
)

// Histogram counts durations in buckets that are at most 1/32 of their value wide. The zero value is ready; it allocates
// nothing. Not safe for concurrent use.
type Histogram struct {
	counts [(64 - subBits) << subBits]uint64
	n      uint64
	sum    time.Duration
	max    time.Duration
}

const subBits = 5

func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < 1<<subBits {
		return int(v)
	}
	e := bits.Len64(v) - subBits - 1
	return (e+1)<<subBits + int(v>>e) - 1<<subBits //nolint:gosec // G115: at most 64 << subBits
}

// lower is the smallest duration of bucket i.
func lower(i int) time.Duration {
	if i < 1<<subBits {
		return time.Duration(i)
	}
	e := i>>subBits - 1
	return time.Duration(i&(1<<subBits-1)+1<<subBits) << e
}

// Add counts d, n times.
func (h *Histogram) Add(d time.Duration) {
	h.counts[min(bucket(d), len(h.counts)-1)]++
	h.n++
	h.sum += d
	h.max = max(h.max, d)
}

// Merge adds o's counts.
func (h *Histogram) Merge(o *Histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// Quantile is the duration that the fraction q (0 to 1) of all do not exceed, to 1/32.
func (h *Histogram) Quantile(q float64) time.Duration {
	want := uint64(q * float64(h.n))
	var seen uint64
	for i, c := range h.counts {
		seen += c
		if c > 0 && seen >= want {
			return min(lower(i+1), h.max)
		}
	}
	return h.max
}

// Mean is the average, 0 if there is none.
func (h *Histogram) Mean() time.Duration {
	if h.n == 0 {
		return 0
	}
	return h.sum / time.Duration(h.n) //nolint:gosec // G115: a count
}

// Max is the longest.
func (h *Histogram) Max() time.Duration { return h.max }

// Count is how many there are.
func (h *Histogram) Count() uint64 { return h.n }
