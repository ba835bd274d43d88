package lguest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// Limits of the bus.
const (
	// PageSize is the size of the device page, in bytes, and LGUEST_VRING_ALIGN, the alignment of rings and of used rings.
	PageSize = 4096
	// MaxRings is how many rings there can be: LGUEST_IRQS is 32, and interrupt 0 is the timer's.
	MaxRings = 31
	// RingSize is VIRTQUEUE_NUM, the size of a ring in entries if its device takes as many.
	RingSize = 256

	// maxByte is the largest num_vq, feature_len and config_len.
	maxByte = 0xff
)

// Sizes and offsets of struct lguest_device_desc and struct lguest_vqconfig, in bytes.
const (
	descSize     = 5
	vqconfigSize = 8

	offNumVQ      = 1
	offFeatureLen = 2
	offConfigLen  = 3
	offStatus     = 4

	offIRQ = 2
	offPFN = 4
)

// Errors of Builder.Add.
var (
	// ErrTooManyDevices: the record does not fit into what is left of the page.
	ErrTooManyDevices = errors.New("too many devices")
	// ErrTooManyRings: there are more than MaxRings.
	ErrTooManyRings = errors.New("too many virtqueues")
)

// Ring is one struct lguest_vqconfig: Num entries at page PFN of guest memory, whose used buffers raise interrupt IRQ.
type Ring struct {
	Num, IRQ uint16
	PFN      uint32
}

// Descriptor is one record of the page.
type Descriptor struct {
	// Type is the virtio device ID, not 0.
	Type uint8
	// Status is the device status field, the guest's.
	Status virtio.Status
	Rings  []Ring
	// Host and Guest are the bitmaps of features offered and accepted; both have feature_len bytes.
	Host, Guest []byte
	Config      []byte
}

// AddFeature offers feature bit n; the bitmaps become as long as that needs, and no longer.
func (d *Descriptor) AddFeature(n uint) {
	for uint(len(d.Host)) <= n/8 {
		d.Host = append(d.Host, 0)
	}
	for len(d.Guest) < len(d.Host) {
		d.Guest = append(d.Guest, 0)
	}
	d.Host[n/8] |= 1 << (n % 8)
}

// Size is the length of the record, in bytes.
func (d *Descriptor) Size() int {
	return descSize + vqconfigSize*len(d.Rings) + len(d.Host) + len(d.Guest) + len(d.Config)
}

// Offered are the features that a guest sees: it looks at the first 32 bits only.
func (d *Descriptor) Offered() virtio.Features { return features(d.Host) }

// Accepted are the features that the guest accepted, of the first 32 bits.
func (d *Descriptor) Accepted() virtio.Features { return features(d.Guest) }

// features reads a bitmap's first 32 bits.
func features(bitmap []byte) virtio.Features {
	var f virtio.Features
	for i, b := range bitmap[:min(len(bitmap), 4)] {
		f |= virtio.Features(b) << (8 * i)
	}
	return f
}

// ringsAt, hostAt, guestAt and configAt are the offsets of a record's parts from its start.
func (d *Descriptor) ringsAt() int  { return descSize }
func (d *Descriptor) hostAt() int   { return descSize + vqconfigSize*len(d.Rings) }
func (d *Descriptor) guestAt() int  { return d.hostAt() + len(d.Host) }
func (d *Descriptor) configAt() int { return d.guestAt() + len(d.Guest) }

// check tells whether d can be written as a record.
func (d *Descriptor) check() error {
	tooLong := func(field string, n int) error {
		return fmt.Errorf("%s %d: the field has one byte: at most %d", field, n, maxByte)
	}
	switch {
	case d.Type == 0:
		return errors.New("type 0 ends the list of devices")
	case len(d.Rings) > maxByte:
		return tooLong("num_vq", len(d.Rings))
	case len(d.Host) > maxByte:
		return tooLong("feature_len", len(d.Host))
	case len(d.Host) != len(d.Guest):
		return fmt.Errorf("%d bytes of features offered, %d of features accepted: there is one feature_len", len(d.Host), len(d.Guest))
	case len(d.Config) > maxByte:
		return tooLong("config_len", len(d.Config))
	}
	for i, r := range d.Rings {
		if why := r.fault(); why != "" {
			return fmt.Errorf("ring %d: %s", i, why)
		}
	}
	return nil
}

// fault says what is wrong with a ring by itself; empty: nothing.
func (r Ring) fault() string {
	switch {
	case r.Num == 0 || r.Num&(r.Num-1) != 0 || r.Num > virtio.QueueSizeMax:
		return fmt.Sprintf("%d entries: not a power of two up to %d", r.Num, virtio.QueueSizeMax)
	case r.IRQ == 0:
		return "irq 0 is the timer's"
	case r.IRQ > MaxRings:
		return fmt.Sprintf("irq %d: at most %d", r.IRQ, MaxRings)
	}
	return ""
}

// append writes the record behind b.
func (d *Descriptor) append(b []byte) []byte {
	b = append(b, d.Type, byte(len(d.Rings)), byte(len(d.Host)), byte(len(d.Config)), byte(d.Status)) //nolint:gosec // G115: check
	for _, r := range d.Rings {
		b = binary.LittleEndian.AppendUint16(b, r.Num)
		b = binary.LittleEndian.AppendUint16(b, r.IRQ)
		b = binary.LittleEndian.AppendUint32(b, r.PFN)
	}
	b = append(b, d.Host...)
	b = append(b, d.Guest...)
	return append(b, d.Config...)
}

// Builder makes a device page, record after record. The zero value is an empty page.
type Builder struct {
	b       []byte
	devices int
	rings   int
}

// Add puts a record behind the others and returns its offset in the page. The byte that ends the list stays free.
// ErrTooManyDevices or ErrTooManyRings if there is no room, with the numbers; other errors say what is wrong with d.
func (b *Builder) Add(d Descriptor) (offset int, err error) {
	number := b.devices + 1
	if left := MaxRings - b.rings; len(d.Rings) > left {
		return 0, fmt.Errorf("device page: %w: device %d needs %d, %d of %d left: leave devices out, or use the mmio bus",
			ErrTooManyRings, number, len(d.Rings), left, MaxRings)
	}
	if err := d.check(); err != nil {
		return 0, fmt.Errorf("device page: device %d: %w", number, err)
	}
	if left := PageSize - 1 - len(b.b); d.Size() > left {
		return 0, fmt.Errorf("device page: %w: device %d needs %d bytes, %d left: leave devices out, or use the mmio bus",
			ErrTooManyDevices, number, d.Size(), left)
	}
	offset = len(b.b)
	b.b = d.append(b.b)
	b.devices, b.rings = number, b.rings+len(d.Rings)
	return offset, nil
}

// Page is a copy of the page so far: PageSize bytes.
func (b *Builder) Page() []byte {
	page := make([]byte, PageSize)
	copy(page, b.b)
	return page
}
