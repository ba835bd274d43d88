package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Pattern is what requests a load makes.
type Pattern string

// Patterns.
const (
	RandRead  Pattern = "randread"
	RandWrite Pattern = "randwrite"
	SeqRead   Pattern = "read"
	SeqWrite  Pattern = "write"
	RandMixed Pattern = "randrw" // 70 % reads
)

// Patterns lists them all.
func Patterns() []Pattern { return []Pattern{RandRead, RandWrite, SeqRead, SeqWrite, RandMixed} }

// BlockLoad is a load on a block device.
type BlockLoad struct {
	Pattern Pattern
	// RequestBytes is a multiple of 512; Depth is the number of requests in flight on each queue.
	RequestBytes, Depth int
	// SpanBytes is how much of the device is used, from its start; 0: all.
	SpanBytes uint64
	// Duration is how long to measure, after Warmup.
	Duration, Warmup time.Duration
	// Verify fills the span with words that tell their place and generation, and checks every read.
	Verify bool
	// PID is the plugin's process, for its CPU time and memory; 0: unknown.
	PID int
	// Stall is how long to wait in the end for requests in flight while none comes back; then they are told as lost. 0: one
	// minute.
	Stall time.Duration
	// PinDriver ties queue n's driver thread to processor n modulo the number of processors.
	PinDriver bool
}

// BlockResult is what a load measured, over all queues.
type BlockResult struct {
	Pattern      Pattern `json:"pattern"`
	RequestBytes int     `json:"request_bytes"`
	Depth        int     `json:"depth"`
	Queues       int     `json:"queues"`
	Features     string  `json:"features"`
	Seconds      float64 `json:"seconds"`
	Requests     uint64  `json:"requests"`
	Errors       uint64  `json:"errors"`
	Verified     uint64  `json:"verified_requests"`
	IOPS         float64 `json:"iops"`
	MBPerSecond  float64 `json:"mb_per_second"`
	// Latency quantiles, microseconds.
	Mean float64 `json:"latency_mean_us"`
	P50  float64 `json:"latency_p50_us"`
	P90  float64 `json:"latency_p90_us"`
	P99  float64 `json:"latency_p99_us"`
	P999 float64 `json:"latency_p999_us"`
	Max  float64 `json:"latency_max_us"`
	// DeviceCPU is the plugin's CPU time a request, microseconds; -1 if its process is not known.
	DeviceCPU float64 `json:"device_cpu_us_per_request"`
	// DeviceRSS is the plugin's resident memory after the load, bytes.
	DeviceRSS uint64 `json:"device_rss_bytes"`
	Kicks     uint64 `json:"kicks"`
	Calls     uint64 `json:"calls"`
}

// RunBlock loads the block device behind m. The device's contents within the span are overwritten by writing patterns.
func RunBlock(ctx context.Context, m *loopback.Machine, l BlockLoad) (BlockResult, error) {
	capacity := blockCapacity(m)
	if l.SpanBytes == 0 || l.SpanBytes > capacity {
		l.SpanBytes = capacity
	}
	if l.RequestBytes <= 0 || l.RequestBytes%virtio.SectorSize != 0 || uint64(l.RequestBytes) > l.SpanBytes {
		return BlockResult{}, fmt.Errorf("bench block: request of %d bytes: want a multiple of %d that fits the disk's %d", l.RequestBytes, virtio.SectorSize, capacity)
	}
	mark := m.Arena().Mark()
	defer func() { m.Arena().Rewind(mark) }() // nothing is in flight when a worker has ended
	workers := make([]*blockWorker, 0, len(m.Queues()))
	for i, q := range m.Queues() {
		w, err := newBlockWorker(m, q, l, i, len(m.Queues()))
		if err != nil {
			return BlockResult{}, err
		}
		workers = append(workers, w)
	}
	var measuring, stop atomic.Bool
	var wg sync.WaitGroup
	errs := make([]error, len(workers))
	for i, w := range workers {
		wg.Go(func() { errs[i] = w.run(&measuring, &stop) })
	}
	end := func() {
		stop.Store(true)
		for _, w := range workers {
			_ = w.q.Wake() // a worker that sleeps looks at stop; it cannot fail on a descriptor that is open
		}
		awaitWorkers(&wg, workers, cmp.Or(l.Stall, time.Minute))
	}
	if err := sleep(ctx, l.Warmup); err != nil {
		end()
		return BlockResult{}, errors.Join(err, errors.Join(errs...))
	}
	cpu0, cpuErr := cpuTime(l.PID)
	start := time.Now()
	measuring.Store(true)
	err := sleep(ctx, l.Duration)
	measuring.Store(false)
	elapsed := time.Since(start)
	cpu1, cpuErr1 := cpuTime(l.PID)
	end()
	if err := errors.Join(err, errors.Join(errs...)); err != nil {
		return BlockResult{}, fmt.Errorf("bench block: %w", err)
	}
	r := summarise(m, l, workers, elapsed)
	r.DeviceCPU = -1
	if cpuErr == nil && cpuErr1 == nil && r.Requests > 0 {
		r.DeviceCPU = float64((cpu1 - cpu0).Nanoseconds()) / 1e3 / float64(r.Requests)
	}
	if l.PID != 0 {
		r.DeviceRSS = residentBytes(l.PID)
	}
	return r, nil
}

// awaitWorkers waits for the end of wg. If no request comes back for as long as stall, the workers give up those in flight:
// a device that loses one would be waited for without end.
func awaitWorkers(wg *sync.WaitGroup, workers []*blockWorker, stall time.Duration) {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	for last := uint64(0); ; {
		select {
		case <-done:
			return
		case <-time.After(stall):
		}
		var now uint64
		for _, w := range workers {
			now += w.reaped.Load()
		}
		if now != last {
			last = now
			continue
		}
		for _, w := range workers {
			w.giveUp.Store(true)
			_ = w.q.Wake() // as above
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func blockCapacity(m *loopback.Machine) uint64 {
	var b [8]byte
	m.Device().ReadConfigAt(b[:], virtio.BlkCfgCapacity)
	return binary.LittleEndian.Uint64(b[:]) * virtio.SectorSize
}

func summarise(m *loopback.Machine, l BlockLoad, workers []*blockWorker, elapsed time.Duration) BlockResult {
	var h Histogram
	r := BlockResult{
		Pattern: l.Pattern, RequestBytes: l.RequestBytes, Depth: l.Depth, Queues: len(workers),
		Features: m.Features().String(), Seconds: elapsed.Seconds(),
	}
	for _, w := range workers {
		h.Merge(&w.hist)
		r.Errors += w.errors
		r.Verified += w.verified
		r.Kicks += w.kicks
		r.Calls += w.calls
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	r.Requests = h.Count()
	r.IOPS = float64(r.Requests) / elapsed.Seconds()
	r.MBPerSecond = r.IOPS * float64(l.RequestBytes) / 1e6
	r.Mean, r.P50, r.P90, r.P99, r.P999 = us(h.Mean()), us(h.Quantile(.5)), us(h.Quantile(.9)), us(h.Quantile(.99)), us(h.Quantile(.999))
	r.Max = us(h.Max())
	return r
}

// blockWorker drives one queue.
type blockWorker struct {
	q        *loopback.Queue
	l        BlockLoad
	index    int
	slots    []blockSlot
	byHead   []int // slot of a head in flight
	free     []int
	rng      *rand.Rand
	place    uint64 // next request's index, for sequential patterns
	first, n uint64 // the worker's own part of the span, in requests
	hist     Histogram
	written  []uint32 // generation of each request-sized place, for Verify
	busy     []bool   // a place is in flight, for Verify

	errors, verified, kicks, calls uint64

	reaped atomic.Uint64 // how many came back, for whoever waits for the end
	giveUp atomic.Bool
}

// blockSlot is the memory of one request in flight.
type blockSlot struct {
	header, data, status driver.Buffer
	headerB, dataB       []byte
	statusB              []byte
	readable, writable   []driver.Buffer
	started              time.Time
	place                uint64
	write                bool
}

func newBlockWorker(m *loopback.Machine, q *loopback.Queue, l BlockLoad, index, of int) (*blockWorker, error) {
	places := l.SpanBytes / uint64(l.RequestBytes)                                                                           //nolint:gosec // G115: positive
	w := &blockWorker{q: q, l: l, index: index, rng: rand.New(rand.NewPCG(1, uint64(index))), byHead: make([]int, q.Size())} //nolint:gosec // G404: a load, no secret
	w.n = max(1, places/uint64(of))                                                                                          //nolint:gosec // G115: a count of queues
	w.first = w.n * uint64(index)                                                                                            //nolint:gosec // G115: a queue's number
	if l.Verify {
		w.written, w.busy = make([]uint32, w.n), make([]bool, w.n)
	}
	for i := range l.Depth {
		var s blockSlot
		var errs [3]error
		s.header, errs[0] = m.Arena().Buffer(virtio.BlkHeaderSize)
		s.status, errs[1] = m.Arena().Buffer(1)
		at, err := m.Arena().Alloc(l.RequestBytes, 4096)
		s.data, errs[2] = driver.Buffer{Addr: at, Len: uint32(l.RequestBytes)}, err //nolint:gosec // G115: a request fits memory
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("bench block: queue %d, depth %d: %w", index, l.Depth, err)
		}
		s.headerB, s.dataB, s.statusB = m.Arena().Bytes(s.header), m.Arena().Bytes(s.data), m.Arena().Bytes(s.status)
		s.readable, s.writable = make([]driver.Buffer, 0, 2), make([]driver.Buffer, 0, 2)
		w.slots = append(w.slots, s)
		w.free = append(w.free, i)
	}
	return w, nil
}

func (w *blockWorker) run(measuring, stop *atomic.Bool) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if w.l.PinDriver {
		var set unix.CPUSet
		set.Set(w.index % runtime.NumCPU())
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("pin the driver: %w", err)
		}
	}
	for !stop.Load() {
		if err := w.fill(); err != nil {
			return err
		}
		n, err := w.reap(measuring.Load())
		if err != nil {
			return err
		}
		if n == 0 && !w.q.EnableCalls() {
			w.calls++
			if err := w.q.WaitCall(); err != nil {
				return err
			}
		}
	}
	return w.finish()
}

// finish waits for what is in flight, so that the device's memory can be taken away.
func (w *blockWorker) finish() error {
	for len(w.free) < len(w.slots) {
		if w.giveUp.Load() {
			return fmt.Errorf("queue %d: %d requests never came back: the device lost them, or hangs", w.index, len(w.slots)-len(w.free))
		}
		if n, err := w.reap(false); err != nil {
			return err
		} else if n == 0 && !w.q.EnableCalls() {
			if err := w.q.WaitCall(); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill puts requests into the ring until the depth is reached.
func (w *blockWorker) fill() error {
	now, added := time.Now(), false
	for len(w.free) > 0 {
		i := w.free[len(w.free)-1]
		s := &w.slots[i]
		if !w.prepare(s) {
			break
		}
		head, ok := w.q.Add(s.readable, s.writable)
		if !ok {
			break
		}
		w.free = w.free[:len(w.free)-1]
		if w.busy != nil {
			w.busy[s.place-w.first] = true
		}
		w.byHead[head] = i
		s.started = now
		added = true
	}
	if !added {
		return nil
	}
	if w.q.Publish() {
		w.kicks++
		return w.q.Kick()
	}
	return nil
}

// prepare chooses the next request; false: every place is in flight.
func (w *blockWorker) prepare(s *blockSlot) bool {
	switch w.l.Pattern {
	case SeqRead, SeqWrite:
		s.place = w.first + w.place%w.n
		w.place++
	case RandRead, RandWrite, RandMixed:
		s.place = w.first + w.rng.Uint64N(w.n)
	}
	for tries := uint64(0); w.busy != nil && w.busy[s.place-w.first]; tries++ {
		if tries == w.n {
			return false
		}
		s.place = w.first + (s.place-w.first+1)%w.n
	}
	s.write = w.l.Pattern == RandWrite || w.l.Pattern == SeqWrite || w.l.Pattern == RandMixed && w.rng.IntN(10) >= 7
	kind := uint32(virtio.BlkTIn)
	s.readable, s.writable = append(s.readable[:0], s.header), s.writable[:0]
	if s.write {
		kind = virtio.BlkTOut
		s.readable = append(s.readable, s.data)
		if w.l.Verify {
			w.written[s.place-w.first]++
			stamp(s.dataB, s.place, w.written[s.place-w.first])
		}
	} else {
		s.writable = append(s.writable, s.data)
	}
	s.writable = append(s.writable, s.status)
	binary.LittleEndian.PutUint32(s.headerB, kind)
	binary.LittleEndian.PutUint64(s.headerB[8:], s.place*uint64(w.l.RequestBytes/virtio.SectorSize)) //nolint:gosec // G115: positive
	s.statusB[0] = 0xff
	return true
}

// reap takes what the device has used and returns how many.
func (w *blockWorker) reap(measure bool) (n int, err error) {
	var now time.Time
	for {
		head, written, ok := w.q.Used()
		if !ok {
			w.reaped.Add(uint64(n))
			return n, nil
		}
		if n == 0 {
			now = time.Now()
		}
		n++
		i := w.byHead[head]
		s := &w.slots[i]
		w.free = append(w.free, i)
		if w.busy != nil {
			w.busy[s.place-w.first] = false
		}
		if s.statusB[0] != virtio.BlkSOK {
			w.errors++
			if w.l.Verify && s.write {
				w.written[s.place-w.first] = 0 // what is there now is anybody's guess
			}
			continue
		}
		if want := uint32(w.l.RequestBytes) + 1; !s.write && written != want { //nolint:gosec // G115: a request fits memory
			return n, fmt.Errorf("request %d: the device wrote %d bytes, want %d", s.place, written, want)
		}
		if w.l.Verify && !s.write {
			if err := checkStamp(s.dataB, s.place, w.written[s.place-w.first]); err != nil {
				return n, err
			}
			w.verified++
		}
		if measure {
			w.hist.Add(now.Sub(s.started))
		}
	}
}

// stamp fills b with words that tell the place, the generation and their own offset.
func stamp(b []byte, place uint64, generation uint32) {
	for off := 0; off+8 <= len(b); off += 8 {
		binary.LittleEndian.PutUint64(b[off:], place<<40^uint64(generation)<<20^uint64(off))
	}
}

// checkStamp checks what stamp wrote; generation 0 was never written by this load and may be anything.
func checkStamp(b []byte, place uint64, generation uint32) error {
	if generation == 0 {
		return nil
	}
	for off := 0; off+8 <= len(b); off += 8 {
		want := place<<40 ^ uint64(generation)<<20 ^ uint64(off)
		if got := binary.LittleEndian.Uint64(b[off:]); got != want {
			return fmt.Errorf("verify: request %d, byte %d: read %#x, want %#x: the device returned other data than was written", place, off, got, want)
		}
	}
	return nil
}

// MedianBlock is the round with the median IOPS.
func MedianBlock(rounds []BlockResult) BlockResult {
	sorted := slices.SortedFunc(slices.Values(rounds), func(a, b BlockResult) int { return cmp.Compare(a.IOPS, b.IOPS) })
	return sorted[len(sorted)/2]
}
