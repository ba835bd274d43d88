package bench

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/virtplug/virtplug/core/machine/loopback"
)

// NetResult is what a load measured, over all pairs.
type NetResult struct {
	Backend    string     `json:"backend"`
	Pattern    NetPattern `json:"pattern"`
	FrameBytes int        `json:"frame_bytes"`
	Depth      int        `json:"depth"`
	Pairs      int        `json:"queue_pairs"`
	// Segmented tells that frames are longer than the MTU, to be cut by whoever has to (TSO).
	Segmented bool    `json:"segmentation_offload"`
	Features  string  `json:"features"`
	Seconds   float64 `json:"seconds"`
	// Packets a second that arrived at their end while it was measured; for the back-end null, that the device took.
	Packets float64 `json:"packets_per_second"`
	GBit    float64 `json:"gbit_per_second"`
	// Offered is how many a second were sent.
	Offered float64 `json:"offered_per_second"`
	// CPU time a packet, microseconds; -1 if it is not known. The peer's is without what the kernel does for it elsewhere.
	DriverCPU float64 `json:"driver_cpu_us_per_packet"`
	DeviceCPU float64 `json:"device_cpu_us_per_packet"`
	PeerCPU   float64 `json:"peer_cpu_us_per_packet"`
	DeviceRSS uint64  `json:"device_rss_bytes"`
	// Kicks and Calls are notifications a packet.
	Kicks float64 `json:"kicks_per_packet"`
	Calls float64 `json:"calls_per_packet"`
	// Times around, microseconds (NetEcho).
	Mean float64 `json:"round_trip_mean_us,omitempty"`
	P50  float64 `json:"round_trip_p50_us,omitempty"`
	P99  float64 `json:"round_trip_p99_us,omitempty"`
	P999 float64 `json:"round_trip_p999_us,omitempty"`
	Max  float64 `json:"round_trip_max_us,omitempty"`
	// Totals of the whole round, warming up included: Sent = Received + Dropped + Lost. Dropped is what the device and the peer
	// counted as dropped, Lost what nobody did.
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	Dropped  uint64 `json:"dropped"`
	Lost     int64  `json:"lost"`
	// Damaged are frames that came with another length or content than they were sent with, Disordered those that overtook
	// others (one pair only), Foreign those that were not the bench's.
	Damaged    uint64 `json:"damaged"`
	Disordered uint64 `json:"disordered"`
	Foreign    uint64 `json:"foreign"`
}

func (n *netRun) result(ctx context.Context, from, to netSample, elapsed time.Duration) (NetResult, error) {
	r := NetResult{
		Pattern: n.l.Pattern, FrameBytes: n.l.FrameBytes, Depth: n.l.Depth, Pairs: len(n.pairs), Segmented: n.ends.segment,
		Features: n.m.Features().String(), Seconds: elapsed.Seconds(), DriverCPU: -1, DeviceCPU: -1, PeerCPU: -1,
	}
	var h Histogram
	var driver time.Duration
	for _, p := range n.pairs {
		h.Merge(&p.hist)
		driver += p.cpu()
		r.Damaged += p.damaged
		r.Disordered += p.disordered
		r.Foreign += p.foreign
	}
	var err error
	r.Sent, r.Received = n.sent(), n.received()
	if r.Dropped, err = n.dropped(ctx); err != nil {
		return r, err
	}
	r.Lost = int64(r.Sent) - int64(r.Received) - int64(r.Dropped) //nolint:gosec // G115: counts of packets
	packets := float64(to.received - from.received)
	r.Packets = packets / elapsed.Seconds()
	r.GBit = r.Packets * float64(n.l.FrameBytes) * 8 / 1e9
	r.Offered = float64(to.sent-from.sent) / elapsed.Seconds()
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	if packets > 0 {
		r.DriverCPU = us(driver) / packets
		if from.pluginErr == nil && to.pluginErr == nil {
			r.DeviceCPU = us(to.plugin-from.plugin) / packets
		}
		if n.l.Peer != nil {
			r.PeerCPU = us(n.l.Peer.counts().cpu) / max(1, float64(r.Received)) // of the whole round
		}
		r.Kicks, r.Calls = float64(to.kicks-from.kicks)/packets, float64(to.calls-from.calls)/packets
	}
	if n.l.PID != 0 {
		r.DeviceRSS = residentBytes(n.l.PID)
	}
	if n.l.Pattern == NetEcho {
		r.Mean, r.P50, r.P99, r.P999 = us(h.Mean()), us(h.Quantile(.5)), us(h.Quantile(.99)), us(h.Quantile(.999))
		r.Max = us(h.Max())
	}
	return r, nil
}

// netDrops adds up the frames that the device has dropped: by its own counters of each queue, which have those that the back-end
// refused, and by the back-end's of what it dropped on the way to the driver.
func netDrops(ctx context.Context, m *loopback.Machine) (sum uint64, err error) {
	s, err := m.Device().Statistics(ctx)
	if err != nil {
		return 0, err
	}
	for name, v := range s.Counters {
		queue, reason, ok := strings.Cut(name, "_dropped_")
		own := len(queue) > 2 && strings.Trim(queue[2:], "0123456789") == "" && (queue[:2] == "rx" || queue[:2] == "tx")
		if ok && (own || strings.HasSuffix(queue, "_rx") || reason == "too_long") {
			sum += v
		}
	}
	return sum, nil
}

// MedianNet is the round with the median number of packets a second.
func MedianNet(rounds []NetResult) NetResult {
	sorted := slices.SortedFunc(slices.Values(rounds), func(a, b NetResult) int { return cmp.Compare(a.Packets, b.Packets) })
	return sorted[len(sorted)/2]
}
