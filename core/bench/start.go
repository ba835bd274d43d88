package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/virtplug/virtplug/core/device"
)

// StartResult is what starting a device's plugin again and again measured.
type StartResult struct {
	Rounds int `json:"rounds"`
	// Start is from the launcher's decision until the device is configured, milliseconds; Stop until its process is gone.
	StartMedian float64 `json:"start_median_ms"`
	StartMax    float64 `json:"start_max_ms"`
	StopMedian  float64 `json:"stop_median_ms"`
	// RSS is the resident memory of the last instance after it has idled, bytes; PSS counts shared pages by their share.
	RSS     uint64 `json:"idle_rss_bytes"`
	PSS     uint64 `json:"idle_pss_bytes"`
	Threads int    `json:"threads"`
	// IdleSwitches is how often its threads were switched to, a second, while it idled.
	IdleSwitches float64 `json:"idle_context_switches_per_second"`
	// IdleCPU is how much of a processor it used meanwhile, percent.
	IdleCPU float64 `json:"idle_cpu_percent"`
}

// RunStart makes, opens and closes a device rounds times, and watches the last one idle for that long. newDevice returns one
// that was not opened; its PID tells the process.
func RunStart(ctx context.Context, rounds int, idle time.Duration, newDevice func() *device.Device) (StartResult, error) {
	var starts, stops []time.Duration
	r := StartResult{Rounds: rounds}
	for n := range rounds {
		dev := newDevice()
		begin := time.Now()
		if err := dev.Open(ctx); err != nil {
			return r, err
		}
		starts = append(starts, time.Since(begin))
		if n == rounds-1 {
			if err := r.watch(ctx, dev.PID(), idle); err != nil {
				return r, err
			}
		}
		begin = time.Now()
		if err := dev.Close(); err != nil {
			return r, err
		}
		stops = append(stops, time.Since(begin))
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	slices.Sort(starts)
	slices.Sort(stops)
	r.StartMedian, r.StartMax, r.StopMedian = ms(starts[rounds/2]), ms(starts[rounds-1]), ms(stops[rounds/2])
	return r, nil
}

// watch lets the process idle. The first second is left out: a process that has just started tidies up.
func (r *StartResult) watch(ctx context.Context, pid int, idle time.Duration) error {
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	switches0, _, err := switches(pid)
	if err != nil {
		return err
	}
	cpu0, err := cpuTime(pid)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := sleep(ctx, idle); err != nil {
		return err
	}
	elapsed := time.Since(begin)
	cpu1, err := cpuTime(pid)
	if err != nil {
		return err
	}
	switches1, threads, err := switches(pid)
	if err != nil {
		return err
	}
	r.Threads = threads
	r.IdleSwitches = float64(switches1-switches0) / elapsed.Seconds()
	r.IdleCPU = 100 * (cpu1 - cpu0).Seconds() / elapsed.Seconds()
	r.RSS = residentBytes(pid)
	r.PSS, err = proportionalBytes(pid)
	return err
}

// switches adds up the context switches of a process's threads.
func switches(pid int) (sum int64, threads int, err error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(paths) == 0 {
		return 0, 0, fmt.Errorf("context switches: process %d: it is gone", pid)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p) //nolint:gosec // G304: made from a process number
		if err != nil {
			continue // the thread has ended
		}
		threads++
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.HasSuffix(name, "voluntary_ctxt_switches") {
				n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
				if err != nil {
					return 0, 0, fmt.Errorf("context switches: %s: %w", p, err)
				}
				sum += n
			}
		}
	}
	return sum, threads, nil
}

// proportionalBytes is the process's proportional set size.
func proportionalBytes(pid int) (uint64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	s := bufio.NewScanner(f)
	for s.Scan() {
		if w := strings.Fields(s.Text()); len(w) == 3 && w[0] == "Pss:" {
			kib, err := strconv.ParseUint(w[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s: no Pss: %w", f.Name(), s.Err())
}
