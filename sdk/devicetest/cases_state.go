package devicetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func resetMidFlight(t *runner) {
	m := t.queued(virtio.FIndirectDesc|virtio.FEventIdx, defaultSize)
	for range 5 {
		m.startAll()
		for _, q := range m.queues {
			for q.send(shape{readable: []int{16}, writable: []int{64}}) {
			}
			q.publish()
		}
		ctx, cancel := t.limited()
		err := m.target.Reset(ctx)
		cancel()
		t.must("Reset with chains in flight", err)
		for _, q := range m.queues {
			q.reap()
		}
		time.Sleep(quiet)
		for _, q := range m.queues {
			if n := q.reap(); n > 0 {
				t.Errorf("queue %d: the device was reset, and %d more chains were completed", q.index, n)
			}
		}
		m.negotiate()
		m.makeQueues()
	}
	m.startAll()
	m.works()
	m.stopAll()
}

// resetForgets checks that a reset takes features and indices, and leaves settings and memory.
func resetForgets(t *runner) {
	m := t.queued(0, defaultSize)
	m.startAll()
	m.works()
	ctx, cancel := t.limited()
	defer cancel()
	t.must("Reset", m.target.Reset(ctx))
	t.must("Reset again", m.target.Reset(ctx))
	_, err := m.target.StartQueue(ctx, m.queues[0].request(0))
	t.refused("StartQueue after Reset, without features", err, pluginrpc.ErrState)
	space, err := m.target.ReadConfig(ctx)
	if err != nil || len(space) != len(m.offer.Config) {
		t.Errorf("ReadConfig after Reset: %d bytes, %w: want %d", len(space), err, len(m.offer.Config))
	}
	m.negotiate()
	m.makeQueues()
	m.startAll()
	m.works()
	m.stopAll()
}

func pauseResume(t *runner) {
	m := t.queued(virtio.FIndirectDesc|virtio.FEventIdx, defaultSize)
	m.startAll()
	call := func(what string, f func(context.Context) error) {
		ctx, cancel := t.limited()
		defer cancel()
		t.must(what, f(ctx))
	}
	for range 5 {
		m.works()
		call("Pause", m.target.Pause)
		call("Pause again", m.target.Pause)
		for _, q := range m.queues {
			q.reap()
			q.send(shape{readable: []int{16}, writable: []int{32}})
			q.publish()
		}
		m.queues[0].stays("the device is paused")
		for _, q := range m.queues[1:] {
			if n := q.reap(); n > 0 {
				t.Errorf("queue %d: the device is paused, and %d more chains were completed", q.index, n)
			}
		}
		call("Resume", m.target.Resume)
		call("Resume again", m.target.Resume)
		for _, q := range m.queues {
			q.settle()
		}
	}
	call("Pause", m.target.Pause)
	ctx, cancel := t.limited()
	defer cancel()
	first := m.queues[0]
	first.reap()
	first.stop()
	_, err := m.target.StartQueue(ctx, first.request(first.seen))
	t.refused("StartQueue while paused", err, pluginrpc.ErrState)
	call("Resume", m.target.Resume)
	st, err := m.target.Statistics(ctx)
	t.must("Statistics", err)
	for _, q := range st.Queues {
		if q.Index == 0 && q.Running {
			t.Errorf("queue 0 was stopped while paused, and Resume started it")
		}
	}
	first.startWith(first.request(first.seen))
	m.works()
	m.stopAll()
}

func statisticsCount(t *runner) {
	m := t.queued(virtio.FIndirectDesc|virtio.FEventIdx, defaultSize)
	ctx, cancel := t.limited()
	defer cancel()
	var last pluginrpc.Statistics
	grow := func(when string) {
		st, err := m.target.Statistics(ctx)
		t.must("Statistics "+when, err)
		for i, q := range st.Queues {
			if q.Completed > q.Chains {
				t.Errorf("Statistics %s: queue %d: %d chains taken, %d completed", when, q.Index, q.Chains, q.Completed)
			}
			if i < len(last.Queues) {
				if p := last.Queues[i]; q.Completed < p.Completed || q.ReadableBytes < p.ReadableBytes || q.WrittenBytes < p.WrittenBytes ||
					q.Kicks < p.Kicks || q.Calls < p.Calls || q.CallsSuppressed < p.CallsSuppressed || q.Errors < p.Errors {
					t.Errorf("Statistics %s: counters went back: %+v, and before %+v", when, q, p)
				}
			}
		}
		for name, v := range last.Counters {
			if st.Counters[name] < v {
				t.Errorf("Statistics %s: counter %s went back from %d to %d", when, name, v, st.Counters[name])
			}
		}
		last = st
	}
	grow("before a queue runs")
	for round := range 3 {
		m.startAll()
		m.works()
		grow("while queues run")
		m.stopAll()
		grow("once they have stopped")
		for i, q := range m.queues {
			if i >= len(last.Queues) || last.Queues[i].Completed == q.done {
				continue
			}
			t.Errorf("Statistics: queue %d: %d chains completed, the driver counted %d", i, last.Queues[i].Completed, q.done)
		}
		for i, q := range m.queues {
			if i < len(last.Queues) && last.Queues[i].WrittenBytes != q.written {
				t.Errorf("Statistics: queue %d: %d bytes written, the used ring adds up to %d", i, last.Queues[i].WrittenBytes, q.written)
			}
			if i < len(last.Queues) && last.Queues[i].Running {
				t.Errorf("Statistics: queue %d runs, and was stopped", i)
			}
		}
		done, written := make([]uint64, len(m.queues)), make([]uint64, len(m.queues))
		for i, q := range m.queues {
			done[i], written[i] = q.done, q.written
		}
		m.reset()
		grow(fmt.Sprintf("after reset %d", round+1))
		for i, q := range m.queues {
			q.done, q.written = done[i], written[i]
		}
	}
}

// leaks starts and stops everything many times and counts what the process holds.
func leaks(t *runner) {
	m := t.queued(virtio.FIndirectDesc|virtio.FEventIdx, defaultSize)
	const rounds = 20
	round := func() {
		m.startAll()
		m.works()
		m.reset()
		m.attach()
	}
	round()
	round()
	before := held(m.target.PID())
	for range rounds {
		round()
	}
	var after map[string]int
	// Others in this process may come and go; what leaks in each round stays.
	t.eventually(func() bool {
		after = held(m.target.PID())
		return !slices.ContainsFunc(slices.Collect(maps.Keys(after)), func(what string) bool { return after[what]-before[what] >= rounds })
	})
	for what, n := range after {
		if n-before[what] >= rounds {
			t.Errorf("%d rounds of start and reset: %s grew from %d to %d", rounds, what, before[what], n)
		}
	}
}

// held counts what a process holds; what cannot be read is left out.
func held(pid int) map[string]int {
	n := map[string]int{}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
		n["open descriptors"] = len(fds)
	} else if !errors.Is(err, os.ErrNotExist) {
		return n
	}
	if maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)); err == nil {
		// Private ones are heap and threads' stacks, which the language's runtime keeps for later.
		for line := range strings.Lines(string(maps)) {
			if f := strings.Fields(line); len(f) > 1 && strings.HasSuffix(f[1], "s") {
				n["shared memory mappings"]++
			}
		}
	}
	if pid == os.Getpid() {
		n["goroutines"] = goroutines()
	}
	return n
}
