package lguest

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Device is what the bus drives: *device.Device, whose methods these are, or a fake in tests. The bus makes one call at a time
// for each device.
type Device interface {
	// Name is the device's name, for messages.
	Name() string
	// ID is the virtio device type; the page has one byte for it.
	ID() virtio.DeviceID
	// Features are the bits that the device offers; those below 32 are shown.
	Features() virtio.Features
	// Legacy tells whether SetFeatures may leave out VIRTIO_F_VERSION_1.
	Legacy() bool
	QueueCount() int
	QueueSizeMax(i int) uint16
	SetFeatures(ctx context.Context, f virtio.Features) error
	SetStatus(s virtio.Status)
	ConfigSpace() []byte
	// SetMemory duplicates the files.
	SetMemory(ctx context.Context, regions []device.MemoryRegion) error
	SetQueue(i int, size uint16, desc, driver, device guestmem.GPA) error
	SetQueueBase(i int, next uint16) error
	// SetKick and SetCall own f.
	SetKick(ctx context.Context, i int, f *os.File) error
	SetCall(ctx context.Context, i int, f *os.File) error
	StartQueue(ctx context.Context, i int) error
	StopQueue(ctx context.Context, i int) (next uint16, err error)
	// Reset forgets features, status, and rings; memory and descriptors stay.
	Reset(ctx context.Context) error
	// Release is Reset, and forgets memory, descriptors and callbacks.
	Release(ctx context.Context) error
	OnConfigChange(f func(config []byte))
	OnNeedsReset(f func())
}

var _ Device = (*device.Device)(nil)

// ErrNotLegacy tells that the device's plugin serves only drivers that accept VIRTIO_F_VERSION_1, which this bus cannot offer.
var ErrNotLegacy = errors.New("does not serve legacy drivers")

// offered are the features of d that the page can show.
func offered(d Device) virtio.Features { return d.Features() & 0xffff_ffff }

// describe is d's record, with rings from address next on and interrupts from irq on. It returns where the next are.
func describe(d Device, next guestmem.GPA, irq uint16) (Descriptor, guestmem.GPA, error) {
	if !d.Legacy() {
		return Descriptor{}, 0, fmt.Errorf("%w: its plugin lacks CAPABILITY_LEGACY: use the mmio bus", ErrNotLegacy)
	}
	if d.ID() == 0 || d.ID() > maxByte {
		return Descriptor{}, 0, fmt.Errorf("virtio device type %d: the device page has one byte for it", uint32(d.ID()))
	}
	rec := Descriptor{Type: uint8(d.ID())} //nolint:gosec // G115: checked
	if n := d.QueueCount(); n > MaxRings {
		return rec, 0, fmt.Errorf("%w: it has %d, the bus at most %d", ErrTooManyRings, n, MaxRings)
	}
	for i := range d.QueueCount() {
		size := min(d.QueueSizeMax(i), RingSize)
		l := RingLayout(next, size)
		if next/PageSize > 1<<32-1 {
			return rec, 0, fmt.Errorf("ring %d: address %v: the device page has 32 bits for its page number", i, next)
		}
		rec.Rings = append(rec.Rings, Ring{Num: size, IRQ: irq, PFN: uint32(next / PageSize)})
		next += guestmem.GPA(l.Pages() * PageSize) //nolint:gosec // G115: small
		irq++
	}
	for n := range uint(32) {
		if offered(d)&(1<<n) != 0 {
			rec.AddFeature(n)
		}
	}
	config := d.ConfigSpace()
	rec.Config = config[:min(len(config), maxByte)]
	return rec, next, nil
}

// plan lays the page and all rings out, from address page on. It returns the first address behind them.
func plan(devices []Device, page guestmem.GPA) (*Builder, []Record, guestmem.GPA, error) {
	b := &Builder{}
	next, irq := page+PageSize, uint16(1)
	records := make([]Record, 0, len(devices))
	for _, d := range devices {
		rec, after, err := describe(d, next, irq)
		if err != nil {
			return nil, nil, 0, fmt.Errorf("lguest bus: %s: %w", d.Name(), err)
		}
		offset, err := b.Add(rec)
		if err != nil {
			return nil, nil, 0, fmt.Errorf("lguest bus: %s: %w", d.Name(), err)
		}
		records = append(records, Record{Descriptor: rec, Offset: offset})
		next, irq = after, irq+uint16(len(rec.Rings)) //nolint:gosec // G115: Add bounds it
	}
	return b, records, next, nil
}

// Pages is how many pages of PageSize the bus of these devices needs just above the highest RAM address: the device page, and
// the rings. The devices are open. It fails as New would: a device that is not legacy, too many of them, too many rings.
func Pages(devices []Device) (int, error) {
	_, _, end, err := plan(devices, 0)
	return int(end / PageSize), err //nolint:gosec // G115: at most 1+31*200
}
