package loopback

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/memory"
	"github.com/virtplug/virtplug/core/transport/lguest"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// LguestOptions make a Lguest.
type LguestOptions struct {
	// MemoryBytes is the size of the guest's RAM, rounded up to whole pages; 0: 16 MiB. The bus's pages come on top.
	MemoryBytes uint64
	// Log receives what the bus tells; nil: nothing is logged.
	Log hclog.Logger
	// Console receives the guest's early console; nil: dropped.
	Console func(text []byte)
	// Relay makes interrupts pass through the launcher, as with lguest's own kernel; otherwise the plugin raises them.
	Relay bool
	// Through wraps the host's requests, to watch them or to carry them some other way; nil: they are made directly. If what it
	// returns does not implement lguest.IRQFD, that is as Relay.
	Through func(lguest.Requests) lguest.Requests
}

// Lguest is a machine whose devices are on the lguest bus, and whose guest is Go code. It has RAM from address 0 on, the device
// page above it, and a host that knows the three requests. Notify may be called from any goroutine; the rest is for one.
type Lguest struct {
	devices []*device.Device
	ram     *memory.RAM
	mem     *guestmem.Memory
	arena   *driver.Arena
	host    *lguestHost
	bus     *lguest.Bus
	page    guestmem.GPA
	reached atomic.Uint64
}

// OpenLguest puts devices, which are open and stay the caller's, on a lguest bus. The guest has not looked at them yet: see
// Devices. On error nothing is left running.
func OpenLguest(ctx context.Context, devices []*device.Device, o LguestOptions) (*Lguest, error) {
	m := &Lguest{devices: devices, host: &lguestHost{}}
	if err := m.open(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("loopback machine: %w", err), m.Close(ctx))
	}
	return m, nil
}

func (m *Lguest) open(ctx context.Context, o LguestOptions) error {
	size := o.MemoryBytes
	if size == 0 {
		size = 16 << 20
	}
	size = (size + guestmem.PageSize - 1) &^ (guestmem.PageSize - 1)
	m.page = guestmem.GPA(size)
	onBus := make([]lguest.Device, len(m.devices))
	for i, d := range m.devices {
		onBus[i] = d
	}
	pages, err := lguest.Pages(onBus)
	if err != nil {
		return err
	}
	if m.ram, err = memory.New("loopback",
		memory.Span{Start: 0, Size: size},
		memory.Span{Start: m.page, Size: uint64(pages) * guestmem.PageSize}, //nolint:gosec // G115: small
	); err != nil {
		return err
	}
	if m.mem, err = m.ram.Map(); err != nil {
		return err
	}
	onlyRAM, err := guestmem.New(m.mem.Regions()[0])
	if err != nil {
		return err
	}
	m.arena = driver.NewArena(onlyRAM)
	var requests lguest.Requests = directHost{m.host}
	if o.Relay {
		requests = m.host
	}
	if o.Through != nil {
		requests = o.Through(requests)
	}
	if m.bus, err = lguest.New(ctx, onBus, lguest.Options{
		Log: o.Log, Memory: m.mem, Table: m.ram.Table(), Page: m.page, Requests: requests, Console: o.Console,
	}); err != nil {
		return err
	}
	return m.bus.Initialize(0, 0) // neither address means anything without a guest's code
}

// Bus is the launcher's side.
func (m *Lguest) Bus() *lguest.Bus { return m.bus }

// Memory is the guest's memory, the device page and the rings included.
func (m *Lguest) Memory() *guestmem.Memory { return m.mem }

// Page is where the device page is: the end of RAM, which a guest knows.
func (m *Lguest) Page() guestmem.GPA { return m.page }

// Arena hands out RAM for buffers.
func (m *Lguest) Arena() *driver.Arena { return m.arena }

// Notify is the guest's NOTIFY: an eventfd that is registered for the address, or else the launcher.
func (m *Lguest) Notify(ctx context.Context, address guestmem.GPA) {
	if !m.host.signalled(address) {
		m.reached.Add(1)
		m.bus.Notify(ctx, address)
	}
}

// Reached is how many notifications have reached the launcher; the others went straight to a plugin.
func (m *Lguest) Reached() uint64 { return m.reached.Load() }

// Close releases the devices and the memory. The devices stay open.
func (m *Lguest) Close(ctx context.Context) error {
	var errs []error
	if m.bus != nil {
		errs = append(errs, m.bus.Release(ctx))
	}
	errs = append(errs, m.host.close())
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	if m.ram != nil {
		errs = append(errs, m.ram.Close())
	}
	return errors.Join(errs...)
}
