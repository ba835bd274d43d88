package kvm

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/core/boot/acpi"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/kvm"
	"github.com/virtplug/virtplug/core/transport/lguest"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// Ports of the lguest bus, 32 bits wide. What was a hypercall, NOTIFY(address), is a write to one of them.
const (
	// doorbellPort takes a page number. KVM turns the writes for rings that are started into counts on eventfds.
	doorbellPort = 0x1f10
	// notifyPort takes the lower half of any address.
	notifyPort = 0x1f14
	// highPort takes the upper half of the address that the same virtual CPU writes to notifyPort next; 0 afterwards.
	highPort = 0x1f18
)

// lguestBus is the bus of lguest's Launcher, with its requests to /dev/lguest translated to KVM's.
type lguestBus struct {
	devices []*device.Device
	at      guestmem.GPA // of the device page: just above memory
	pages   int
	run     *run
	life    context.Context //nolint:containedctx // the guest's life, not of a call
	bus     *lguest.Bus
	entry   *boot.Entry // set during begin

	mu      sync.Mutex
	pending map[*vcpu]uint32 // what came to highPort
}

var (
	_ lguest.Requests = (*lguestBus)(nil)
	_ lguest.IRQFD    = (*lguestBus)(nil)
)

func (b *lguestBus) list() []lguest.Device {
	out := make([]lguest.Device, len(b.devices))
	for i, d := range b.devices {
		out[i] = d
	}
	return out
}

func (b *lguestBus) memory() (boot.Range, error) {
	n, err := lguest.Pages(b.list())
	if err != nil {
		return boot.Range{}, err
	}
	b.pages = n
	return boot.Range{Start: b.at, Size: uint64(n) * lguest.PageSize}, nil //nolint:gosec // G115: not negative
}

func (b *lguestBus) attach(ctx context.Context, r *run) (err error) {
	b.run, b.life, b.pending = r, ctx, map[*vcpu]uint32{}
	b.bus, err = lguest.New(ctx, b.list(), lguest.Options{
		Log: r.log, Memory: r.mem, Table: r.ram.Table(), Page: b.at, Requests: b,
		Console: func(p []byte) {
			for _, c := range p {
				r.sink.put(c)
			}
		},
	})
	return err
}

func (b *lguestBus) begin(r *run, entry *boot.Entry) error {
	b.entry = entry
	defer func() { b.entry = nil }()
	return b.bus.Initialize(kvm.AddressOf(r.mem.Regions()[0].Data), entry.RIP)
}

// Initialize implements lguest.Requests: LHREQ_INITIALIZE makes memory the guest's and says where it begins. With memory above
// 4 GiB, base is that of the part below.
func (b *lguestBus) Initialize(base, pfnLimit, start uint64) error {
	regions := b.run.mem.Regions()
	last := regions[len(regions)-1]
	end := uint64(last.Start) + uint64(len(last.Data))
	if base != kvm.AddressOf(regions[0].Data) || pfnLimit != end/lguest.PageSize {
		return fmt.Errorf("LHREQ_INITIALIZE: memory at %#x to page %#x: the guest's is at %#x to page %#x",
			base, pfnLimit, kvm.AddressOf(regions[0].Data), end/lguest.PageSize)
	}
	b.entry.RIP = start
	return b.run.mapMemory()
}

// IRQ implements lguest.Requests: LHREQ_IRQ is an edge of the interrupt's line.
func (b *lguestBus) IRQ(irq uint32) error { return b.run.pulse(interruptGSI(irq)) }

// IRQFD implements lguest.IRQFD: the same without this process.
func (b *lguestBus) IRQFD(irq uint32, fd int) error { return b.run.vm.IRQFD(fd, interruptGSI(irq)) }

// EventFD implements lguest.Requests: LHREQ_EVENTFD is a doorbell that KVM hears.
func (b *lguestBus) EventFD(address guestmem.GPA, fd int) error {
	return b.run.vm.IOEventFD(fd, kvm.Doorbell{
		PIO: true, Addr: doorbellPort, Len: 4, Match: true, Value: uint64(address / lguest.PageSize),
	})
}

// interruptGSI is the line of an interrupt of the bus, from 1.
func interruptGSI(irq uint32) uint32 { return lineGSI(int(irq) - 1) }

func (b *lguestBus) describe(c *acpi.Config) {
	l := &acpi.LguestBus{Page: uint64(b.at), Size: uint64(b.pages) * lguest.PageSize, Port: doorbellPort} //nolint:gosec // G115: not negative
	for irq := 1; irq <= b.bus.Interrupts(); irq++ {
		l.GSIs = append(l.GSIs, interruptGSI(uint32(irq)))
	}
	c.Lguest = l
}

func (b *lguestBus) port(v *vcpu, port uint16, out bool, p []byte) bool {
	if !out || len(p) != 4 {
		return false
	}
	n := binary.LittleEndian.Uint32(p)
	switch port {
	case doorbellPort:
		b.notify(guestmem.GPA(n) * lguest.PageSize)
	case notifyPort:
		b.notify(guestmem.GPA(b.takeHigh(v))<<32 | guestmem.GPA(n))
	case highPort:
		b.mu.Lock()
		b.pending[v] = n
		b.mu.Unlock()
	default:
		return false
	}
	return true
}

func (b *lguestBus) takeHigh(v *vcpu) uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.pending[v]
	delete(b.pending, v)
	return n
}

func (b *lguestBus) notify(at guestmem.GPA) {
	b.run.count.add(countKicks)
	b.bus.Notify(b.life, at)
}

func (b *lguestBus) access(uint64, bool, []byte) bool { return false }

func (b *lguestBus) detach(ctx context.Context) error {
	if b.bus == nil {
		return nil
	}
	return b.bus.Release(ctx)
}
