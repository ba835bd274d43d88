package lguest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/memory"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// syncBuffer is a log that a test may read meanwhile.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// rig is a bus with a guest's memory.
type rig struct {
	tb      testing.TB
	mem     *guestmem.Memory
	bus     *Bus
	host    *fakeHost
	log     *syncBuffer
	page    []byte
	at      guestmem.GPA
	console *syncBuffer
}

// newRig puts devices on a bus above ramPages of RAM, which starts at 0.
func newRig(tb testing.TB, ramPages int, requests func(*fakeHost) Requests, devices ...*fakeDevice) *rig {
	tb.Helper()
	at := guestmem.GPA(ramPages * PageSize) //nolint:gosec // G115: small
	onBus := make([]Device, len(devices))
	for i, d := range devices {
		onBus[i] = d
	}
	pages, err := Pages(onBus)
	if err != nil {
		tb.Fatal(err)
	}
	// Mapped memory: the race detector does not see it, rightly, for a guest writes when it likes.
	ram, err := memory.New("lguest-test", memory.Span{Size: uint64(at)}, memory.Span{Start: at, Size: uint64(pages) * PageSize}) //nolint:gosec // G115: small
	if err != nil {
		tb.Fatal(err)
	}
	mem, err := ram.Map()
	if err = errors.Join(err, ram.Close()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := mem.Close(); err != nil {
			tb.Error(err)
		}
	})
	region := mem.Regions()[1]
	copy(region.Data, bytes.Repeat([]byte{0xa5}, len(region.Data))) // of a former guest
	r := &rig{tb: tb, mem: mem, host: newHost(), log: &syncBuffer{}, page: region.Data[:PageSize], at: at, console: &syncBuffer{}}
	for _, d := range devices {
		d.mem = mem
	}
	var req Requests = r.host
	if requests != nil {
		req = requests(r.host)
	}
	r.bus, err = New(tb.Context(), onBus, Options{
		Log: hclog.New(&hclog.LoggerOptions{Output: r.log, Level: hclog.Debug}), Memory: mem, Page: at, Requests: req,
		Console: func(b []byte) { _, _ = r.console.Write(b) },
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.bus.Release(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	if err := r.bus.Initialize(0x1000, 0x2000); err != nil {
		tb.Fatal(err)
	}
	for _, d := range devices {
		d.took()
	}
	r.host.took()
	return r
}

// record is what the guest reads.
func (r *rig) record(i int) *Record {
	r.tb.Helper()
	p, err := ParseMemory(r.mem, r.at)
	if err != nil || len(p.Problems) > 0 || i >= len(p.Records) {
		r.tb.Fatalf("page: %v, %v", p, err)
	}
	return &p.Records[i]
}

// status writes a device's status and notifies.
func (r *rig) status(i int, s virtio.Status) {
	r.tb.Helper()
	rec := r.record(i)
	r.page[rec.StatusOffset()] = byte(s)
	r.bus.Notify(r.tb.Context(), r.at+guestmem.GPA(rec.Offset)) //nolint:gosec // G115: small
}

// accept writes the first device's bitmap of accepted features.
func (r *rig) accept(f virtio.Features) {
	r.tb.Helper()
	rec := r.record(0)
	b := r.page[rec.GuestOffset():rec.ConfigOffset()]
	for k := range b {
		b[k] = byte(f >> (8 * k) & 0xff)
	}
}

// notify is the guest's NOTIFY as its kernel carries it out.
func (r *rig) notify(a guestmem.GPA) {
	if !r.host.kicked(a) {
		r.bus.Notify(r.tb.Context(), a)
	}
}

func (r *rig) logged(want string) {
	r.tb.Helper()
	if !bytes.Contains([]byte(r.log.String()), []byte(want)) {
		r.tb.Errorf("the log does not say %q:\n%s", want, r.log)
	}
}

func sameCalls(tb testing.TB, what string, got []string, want ...string) {
	tb.Helper()
	if !slices.Equal(got, want) {
		tb.Errorf("%s: %q, want %q", what, got, want)
	}
}
