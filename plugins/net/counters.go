package main

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// counters count one direction of a queue pair. They only grow; the queue's loop is their only writer.
type counters struct {
	packets atomic.Uint64
	bytes   atomic.Uint64 // the packets'
	// dropped by reason.
	link    atomic.Uint64 // the link was down; receiving: or the driver does not use the pair
	filter  atomic.Uint64 // the driver does not want it (receiving)
	header  atomic.Uint64 // its header or length makes no sense; receiving: the driver does not take such
	room    atomic.Uint64 // the driver's buffers were too small (receiving)
	backend atomic.Uint64 // the back-end dropped it (sending); its counters say why
	// buffers are chains that can hold no packet (receiving).
	buffers atomic.Uint64
	// waits counts how often the limits held packets up.
	waits atomic.Uint64
	_     [64]byte // pairs lie in one slice: keep their counters out of each other's cache lines
}

// Statistics implements sdk.StatsReader.
func (d *device) Statistics() map[string]uint64 {
	m := d.be.Statistics()
	if m == nil {
		m = map[string]uint64{}
	}
	for i := range d.pairs {
		rx, tx := &d.pairs[i].rx, &d.pairs[i].tx
		n := strconv.Itoa(i)
		for name, v := range map[string]*atomic.Uint64{
			"_packets": &rx.packets, "_bytes": &rx.bytes, "_dropped_link": &rx.link, "_dropped_filter": &rx.filter,
			"_dropped_header": &rx.header, "_dropped_room": &rx.room, "_bad_buffers": &rx.buffers, "_limit_waits": &rx.waits,
		} {
			m["rx"+n+name] = v.Load()
		}
		for name, v := range map[string]*atomic.Uint64{
			"_packets": &tx.packets, "_bytes": &tx.bytes, "_dropped_link": &tx.link, "_dropped_header": &tx.header,
			"_dropped_backend": &tx.backend, "_limit_waits": &tx.waits,
		} {
			m["tx"+n+name] = v.Load()
		}
	}
	m["control_ok"], m["control_refused"] = d.ctl.ok.Load(), d.ctl.refused.Load()
	return m
}

// trouble keeps what a back-end's port failed with, and tells it from time to time. The zero value is ready.
type trouble struct {
	now atomic.Pointer[error] // nil: it works

	mu   sync.Mutex
	told time.Time
}

// troubleEvery is how often a lasting failure is told; arbitrary: often enough to see that it lasts.
const troubleEvery = 10 * time.Second

// failed notes err and calls tell with it unless that was done lately.
func (t *trouble) failed(op string, err error, tell func(error)) {
	err = fmt.Errorf("%s: %w", op, err)
	t.now.Store(&err)
	t.mu.Lock()
	due := t.told.IsZero() || time.Since(t.told) >= troubleEvery
	if due {
		t.told = time.Now()
	}
	t.mu.Unlock()
	if due {
		tell(err)
	}
}

// worked ends a failure.
func (t *trouble) worked() {
	if t.now.Load() != nil {
		t.now.Store(nil)
	}
}

// Health implements sdk.HealthChecker: what the back-end failed with last, until it works again.
func (d *device) Health() error {
	for i := range d.pairs {
		for _, t := range []*trouble{&d.pairs[i].sending, &d.pairs[i].receiving} {
			if err := t.now.Load(); err != nil {
				return *err
			}
		}
	}
	return nil
}
