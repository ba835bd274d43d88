package lguest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// ErrClosed tells that the bus was released.
var ErrClosed = errors.New("lguest bus closed")

// Options make a Bus.
type Options struct {
	// Log receives what happens; what a guest can cause is limited in rate. nil: nothing is logged.
	Log hclog.Logger
	// Memory is all guest memory, mapped into this process: RAM, and the bus's pages in one region. It stays the caller's and
	// must not be closed before Release has returned.
	Memory *guestmem.Memory
	// Table is the same memory as devices are told it.
	Table []device.MemoryRegion
	// Page is where the device page goes, a multiple of PageSize: just above the highest RAM address. Pages tells how many pages
	// there must be.
	Page guestmem.GPA
	// Requests is the host.
	Requests Requests
	// Console receives what the guest writes for its early console, a piece at a time, from the goroutine of Notify; it may keep
	// the slice. nil: dropped.
	Console func(text []byte)
}

// Bus is the launcher's side of the bus for one life of a guest. A guest that starts again gets a new Bus, after Release of the
// old one. Its methods may be called from any goroutine.
type Bus struct {
	log      hclog.Logger
	quiet    *limiter
	opts     Options
	page     []byte // aliases guest memory
	pfnLimit uint64
	slots    []*slot
	records  map[guestmem.GPA]*slot
	rings    map[guestmem.GPA]*ring

	// life is held for reading by whoever uses guest memory or devices, and for writing while closed changes.
	life   sync.RWMutex
	closed bool
	// initialized is set by Initialize, with life held.
	initialized bool
	workers     sync.WaitGroup
}

// New puts devices, which are open, on a bus: it writes the device page, clears the rings, and gives each device the memory and
// its notifications. The devices stay the caller's. On error nothing of the bus is left.
func New(ctx context.Context, devices []Device, o Options) (*Bus, error) {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	switch {
	case o.Page == 0 || o.Page%PageSize != 0:
		return nil, fmt.Errorf("lguest bus: page %v: not a multiple of %d above 0", o.Page, PageSize)
	case o.Memory == nil || o.Requests == nil:
		return nil, errors.New("lguest bus: no memory, or no host")
	}
	builder, records, end, err := plan(devices, o.Page)
	if err != nil {
		return nil, err
	}
	region, err := o.Memory.Slice(o.Page, int(end-o.Page)) //nolint:gosec // G115: small
	if err != nil {
		return nil, fmt.Errorf("lguest bus: %d pages for the device page and rings: %w", (end-o.Page)/PageSize, err)
	}
	clear(region)
	b := &Bus{
		log: o.Log, quiet: &limiter{log: o.Log}, opts: o, page: region[:PageSize], pfnLimit: uint64(end / PageSize),
		records: map[guestmem.GPA]*slot{}, rings: map[guestmem.GPA]*ring{},
	}
	copy(b.page, builder.Page())
	for i, d := range devices {
		s := &slot{bus: b, dev: d, rec: records[i], log: o.Log.With("device", d.Name())}
		b.slots = append(b.slots, s)
		b.records[o.Page+guestmem.GPA(s.rec.Offset)] = s //nolint:gosec // G115: below PageSize
		if err := s.connect(ctx, region); err != nil {
			return nil, errors.Join(fmt.Errorf("lguest bus: %s: %w", d.Name(), err), b.Release(ctx))
		}
		for _, r := range s.rings {
			b.rings[r.layout.Desc] = r
		}
	}
	return b, nil
}

// Initialize tells the host where memory is and where the guest starts (Requests.Initialize), then connects the interrupts. To be
// called once, before the guest runs. base is the address of guest-physical 0 in this process.
func (b *Bus) Initialize(base, start uint64) error {
	b.life.Lock()
	defer b.life.Unlock()
	switch {
	case b.closed:
		return fmt.Errorf("initialize: %w", ErrClosed)
	case b.initialized:
		return errors.New("lguest bus: initialize: done already: a guest that starts again needs a new bus")
	}
	if err := b.opts.Requests.Initialize(base, b.pfnLimit, start); err != nil {
		return fmt.Errorf("lguest bus: %w", err)
	}
	direct, ok := b.opts.Requests.(IRQFD)
	for _, s := range b.slots {
		for _, r := range s.rings {
			if !ok {
				r.relay()
				continue
			}
			if err := direct.IRQFD(r.irq, r.call); err != nil {
				return fmt.Errorf("lguest bus: %s: ring %d: interrupt %d: %w", s.dev.Name(), r.index, r.irq, err)
			}
		}
	}
	b.initialized = true
	return nil
}

// PFNLimit is the number of the first page that is not the guest's any more: what Initialize tells the host.
func (b *Bus) PFNLimit() uint64 { return b.pfnLimit }

// Interrupts is how many interrupts the bus uses: 1 to this number, one a ring.
func (b *Bus) Interrupts() int { return len(b.rings) }

// Page is a copy of the device page as it is now. The guest writes to it too. ErrClosed after Release.
func (b *Bus) Page() ([]byte, error) {
	b.life.RLock()
	defer b.life.RUnlock()
	if b.closed {
		return nil, fmt.Errorf("device page: %w", ErrClosed)
	}
	return append([]byte(nil), b.page...), nil
}

// Notify takes a notification of the guest: see the package comment. What it means is carried out when it returns; that may
// take as long as a plugin takes to start or stop its queues. It never fails for the guest's sake: what a guest does wrong
// is logged. After Release, or if ctx has ended, it does nothing.
func (b *Bus) Notify(ctx context.Context, address guestmem.GPA) {
	b.life.RLock()
	defer b.life.RUnlock()
	if b.closed || ctx.Err() != nil {
		return
	}
	ctx = context.WithoutCancel(ctx) // half a reset would be worse than a late one
	if s, ok := b.records[address]; ok {
		s.statusChanged(ctx)
		return
	}
	if r, ok := b.rings[address]; ok {
		r.slot.kicked(ctx, r)
		return
	}
	b.earlyConsole(address)
}

// earlyConsoleMax is the longest string of one notification, in bytes; arbitrary. Linux wrote 16 at a time.
const earlyConsoleMax = 4096

// earlyConsole passes the string at address on, up to its zero byte, the end of its memory, or earlyConsoleMax.
func (b *Bus) earlyConsole(address guestmem.GPA) {
	if address >= b.opts.Page && uint64(address/PageSize) < b.pfnLimit {
		b.quiet.warn("guest notified an address of the bus that is no device and no ring: ignored", "address", address)
		return
	}
	text := make([]byte, 0, 64)
	for at := address; len(text) < earlyConsoleMax; {
		// To the end of a page at a time: regions consist of whole pages.
		part, err := b.opts.Memory.Slice(at, int(PageSize-at%PageSize))
		if err != nil {
			break
		}
		start := len(text)
		text = append(text, part[:min(len(part), earlyConsoleMax-start)]...) // the copy is what is looked at
		if end := indexZero(text[start:]); end >= 0 {
			text = text[:start+end]
			break
		}
		if at += guestmem.GPA(len(part)); at == 0 {
			break
		}
	}
	if len(text) == 0 {
		if _, err := b.opts.Memory.Slice(address, 1); err != nil {
			b.quiet.warn("guest notified an address that is not in its memory: ignored", "address", address)
		}
		return
	}
	if b.opts.Console != nil {
		b.opts.Console(text)
	}
}

func indexZero(b []byte) int {
	for i, c := range b {
		if c == 0 {
			return i
		}
	}
	return -1
}

// Release stops all queues, resets and releases the devices, and frees what the bus made. Guest memory is not used any more when
// it returns; the devices stay open. Idempotent.
func (b *Bus) Release(ctx context.Context) error {
	b.life.Lock()
	was := b.closed
	b.closed = true
	b.life.Unlock()
	if was {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // a plugin bounds its time
	released := make([]error, len(b.slots))
	var devices sync.WaitGroup
	for i, s := range b.slots {
		devices.Go(func() { released[i] = s.release(ctx) })
	}
	devices.Wait()
	b.workers.Wait()
	errs := []error{errors.Join(released...)}
	for _, s := range b.slots {
		for _, r := range s.rings {
			errs = append(errs, r.close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lguest bus: release: %w", err)
	}
	return nil
}
