package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is how long the threads of pid that live have run, from the scheduler's own count (nanoseconds). The plugin's
// threads do not end under load, so differences are exact.
func cpuTime(pid int) (time.Duration, error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(paths) == 0 {
		return 0, fmt.Errorf("cpu time: process %d: no /proc/PID/task/*/schedstat", pid)
	}
	var sum time.Duration
	for _, p := range paths {
		b, err := os.ReadFile(p) //nolint:gosec // G304: made from a process number
		if err != nil {
			continue // the thread has ended
		}
		f := strings.Fields(string(b))
		if len(f) == 0 {
			return 0, fmt.Errorf("cpu time: %s: empty", p)
		}
		ns, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("cpu time: %s: %w", p, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// residentBytes is the process's resident set (VmRSS), 0 if unknown.
func residentBytes(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseUint(f[1], 10, 64)
			if err == nil {
				return kib << 10
			}
		}
	}
	return 0
}

// threadClock is the CPU time of a thread while it is measured. The thread itself reads it.
type threadClock struct {
	phase       int32
	begin, used time.Duration
}

// follow is called again and again with the phase of the run.
func (c *threadClock) follow(phase int32) {
	if phase == c.phase {
		return
	}
	if phase == netMeasure {
		c.begin = threadTime()
	} else if c.phase == netMeasure {
		c.used += threadTime() - c.begin
	}
	c.phase = phase
}

func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
