package process

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/bench"
	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// duration is how long a load lasts: long enough for a busy host to have let every thread run.
const duration = time.Second

// Every packet of a load is accounted for: it arrives, or somebody counts it as dropped; and none comes damaged or twice.
func TestProcessNetBenchAccountsForEveryPacket(t *testing.T) {
	t.Parallel()
	type load struct {
		backend string
		pattern bench.NetPattern
		frame   int
		refuse  virtio.Features
	}
	var loads []load
	for _, frame := range []int{bench.MinFrame, 1514, bench.MaxFrame} {
		loads = append(loads,
			load{"null", bench.NetSend, frame, 0}, load{"loopback", bench.NetSend, frame, 0}, load{"loopback", bench.NetEcho, frame, 0},
			load{"loopback", bench.NetSend, frame, virtio.FEventIdx | virtio.FIndirectDesc}, load{"loopback", bench.NetEcho, frame, virtio.FNetMrgRxBuf},
			load{"socket", bench.NetSend, frame, 0}, load{"socket", bench.NetReceive, frame, 0}, load{"socket", bench.NetEcho, frame, virtio.FEventIdx})
	}
	for _, l := range loads {
		t.Run(fmt.Sprintf("%s/%s/%d/refuse=%x", l.backend, l.pattern, l.frame, uint64(l.refuse)), func(t *testing.T) {
			t.Parallel()
			settings := map[string]any{"backend": l.backend}
			var peer bench.NetPeer
			if l.backend == "socket" {
				path := filepath.Join(t.TempDir(), "peer")
				var err error
				peer, err = bench.NewSocketPeer(path)
				check(t, err)
				t.Cleanup(func() { check(t, peer.Close()) })
				settings["connect"], settings["mtu"] = "unix:"+path, 65520
			}
			r := open(t, "net", settings)
			m := r.drive(loopback.Options{MemoryBytes: bench.NetMemory(64, l.frame) + 4<<20, QueueSize: 64, Refuse: l.refuse})
			res, err := bench.RunNet(t.Context(), m, bench.NetLoad{
				Pattern: l.pattern, FrameBytes: l.frame, Depth: map[bench.NetPattern]int{bench.NetEcho: 4}[l.pattern],
				Peer: peer, Returns: l.backend == "loopback", Duration: duration, Settle: 10 * time.Second, PID: r.dev.PID(),
			})
			check(t, err)
			accountedFor(t, res)
			if l.pattern != bench.NetSend && res.Dropped > 0 {
				t.Errorf("%d dropped, and nobody was flooded", res.Dropped)
			}
			if (l.pattern == bench.NetEcho) != (res.P50 > 0) {
				t.Errorf("half of the packets took less than %v µs", res.P50)
			}
			if res.DeviceCPU <= 0 || res.DriverCPU <= 0 {
				t.Errorf("CPU time of the device %v, of the driver %v", res.DeviceCPU, res.DriverCPU)
			}
		})
	}
}

func accountedFor(t *testing.T, r bench.NetResult) {
	t.Helper()
	t.Logf("%.0f packets a second; %d sent, %d received, %d dropped", r.Packets, r.Sent, r.Received, r.Dropped)
	if r.Received == 0 || r.Packets == 0 || r.Sent != r.Received+r.Dropped || r.Lost != 0 {
		t.Errorf("sent %d, received %d, dropped %d, lost %d", r.Sent, r.Received, r.Dropped, r.Lost)
	}
	if r.Damaged > 0 || r.Disordered > 0 {
		t.Errorf("%d damaged, %d out of order", r.Damaged, r.Disordered)
	}
}

// Several pairs carry frames side by side.
func TestProcessNetBenchLoadsSeveralPairs(t *testing.T) {
	t.Parallel()
	r := open(t, "net", map[string]any{"backend": "loopback", "queue_pairs": 4})
	m := r.drive(loopback.Options{MemoryBytes: 16 << 20, QueueSize: 64})
	load := bench.NetLoad{Pattern: bench.NetEcho, FrameBytes: 512, Depth: 2, Returns: true, Duration: duration, Settle: 10 * time.Second}
	res, err := bench.RunNet(t.Context(), m, load)
	check(t, err)
	accountedFor(t, res)
	if res.Pairs != 4 {
		t.Errorf("%d pairs", res.Pairs)
	}
}

// Frames that the device cannot carry are refused before anything starts.
func TestProcessNetBenchRefusesFramesThatDoNotFit(t *testing.T) {
	t.Parallel()
	r := open(t, "net", map[string]any{"backend": "loopback", "offload": false})
	m := r.drive(loopback.Options{MemoryBytes: 16 << 20, QueueSize: 64})
	for frame, want := range map[int]string{bench.MinFrame - 1: "want 64 to", bench.MaxFrame + 1: "want 64 to", 9000: "the MTU is 1500"} {
		_, err := bench.RunNet(t.Context(), m, bench.NetLoad{Pattern: bench.NetSend, FrameBytes: frame, Returns: true, Duration: time.Millisecond})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d bytes: %v", frame, err)
		}
	}
	_, err := bench.RunNet(t.Context(), m, bench.NetLoad{Pattern: bench.NetReceive, FrameBytes: 512, Duration: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "nothing comes back") {
		t.Errorf("receiving from nobody: %v", err)
	}
}
