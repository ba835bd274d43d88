package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/bench"
	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path) //nolint:gosec // G304: the test's own
	check(t, err)
	check(t, f.Truncate(size))
	check(t, f.Close())
	return path
}

// Data verification under load, in every ring format, on one queue and on four, also while the plugin is killed.
func TestProcessBlockKeepsEveryByte(t *testing.T) {
	t.Parallel()
	for _, refuse := range []virtio.Features{0, virtio.FIndirectDesc, virtio.FEventIdx, virtio.FIndirectDesc | virtio.FEventIdx} {
		for _, queues := range []int{1, 4} {
			t.Run(fmt.Sprintf("refuse=%v/queues=%d", refuse, queues), func(t *testing.T) {
				t.Parallel()
				r := open(t, "block", map[string]any{"path": image(t, 8<<20), "queues": queues})
				m := r.drive(loopback.Options{Refuse: refuse, QueueSize: 64})
				if len(m.Queues()) != queues {
					t.Fatalf("%d queues, want %d", len(m.Queues()), queues)
				}
				verify(t, m, 500*time.Millisecond)
				if r.starts.Load() != 1 {
					t.Errorf("%d instances", r.starts.Load())
				}
			})
		}
	}
}

func verify(t *testing.T, m *loopback.Machine, d time.Duration) {
	t.Helper()
	res, err := bench.RunBlock(t.Context(), m, bench.BlockLoad{
		Pattern: bench.RandMixed, RequestBytes: 4096, Depth: 16, Duration: d, Verify: true, SpanBytes: 4 << 20,
	})
	check(t, err)
	t.Logf("%d requests, %d verified reads", res.Requests, res.Verified)
	if res.Errors > 0 || res.Verified == 0 {
		t.Errorf("%d errors, %d verified: want none and many", res.Errors, res.Verified)
	}
}

// A device that answers nothing must not make the load wait for ever: every test above relies on that to fail.
func TestProcessBenchTellsOfRequestsThatNeverCameBack(t *testing.T) {
	t.Parallel()
	r := open(t, "block", map[string]any{"path": image(t, 8<<20)})
	m := r.drive(loopback.Options{QueueSize: 64})
	pid := r.inst.Load().PID()
	check(t, syscall.Kill(pid, syscall.SIGSTOP))
	_, err := bench.RunBlock(t.Context(), m, bench.BlockLoad{
		Pattern: bench.RandRead, RequestBytes: 4096, Depth: 4, Duration: 10 * time.Millisecond, Stall: 100 * time.Millisecond,
	})
	check(t, syscall.Kill(pid, syscall.SIGCONT))
	if err == nil || !strings.Contains(err.Error(), "4 requests never came back") {
		t.Errorf("RunBlock = %v", err)
	}
}

func TestProcessBlockSurvivesBeingKilledUnderLoad(t *testing.T) {
	t.Parallel()
	r := open(t, "block", map[string]any{"path": image(t, 8<<20), "queues": 2})
	m := r.drive(loopback.Options{QueueSize: 64})
	stop, killed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { killed <- n }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(150 * time.Millisecond):
			}
			pid := r.inst.Load().PID()
			if err := syscall.Kill(pid, syscall.SIGKILL); err == nil {
				n++
			}
			for before := r.inst.Load(); r.inst.Load() == before; {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		}
	}()
	verify(t, m, 3*time.Second)
	close(stop)
	if n := <-killed; n < 3 || int(r.starts.Load()) < 3 {
		t.Errorf("killed %d times, started %d times: the test proves nothing", n, r.starts.Load())
	}
}
