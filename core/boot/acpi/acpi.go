package acpi

import (
	"errors"
	"fmt"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// ErrTooLarge means that the tables do not fit where they are to go.
var ErrTooLarge = errors.New("the ACPI tables do not fit")

// The sleep control register (ACPI 6.5, 4.8.3.7) and what a guest writes to it to switch off.
const (
	// SleepTypeOff is SLP_TYPx of the state S5.
	SleepTypeOff = 5
	// SleepEnable is SLP_EN: the state in SLP_TYPx is to be entered.
	SleepEnable = 1 << 5
	// SleepTypeShift and SleepTypeMask are where SLP_TYPx is.
	SleepTypeShift = 2
	SleepTypeMask  = 7 << SleepTypeShift
)

// maxCPUs is what an x2APIC of KVM numbers (KVM_MAX_VCPU_IDS is 4096).
const maxCPUs = 4096

// Config is what the guest is told of its machine.
type Config struct {
	// CPUs is the number of processors; their APIC identifiers are 0 to CPUs-1.
	CPUs int
	// LocalAPIC and IOAPIC are guest-physical addresses.
	LocalAPIC, IOAPIC uint32
	// SleepControl and SleepStatus are byte ports; 0: the guest cannot switch itself off.
	SleepControl, SleepStatus uint16
	// Reset is a byte port that restarts the machine when ResetValue is written; 0: none.
	Reset      uint16
	ResetValue byte
	// PanicPort is that of pvpanic; 0: none.
	PanicPort uint16
	// SerialPort is the first of the eight ports of a 16550, with its interrupt; 0: none.
	SerialPort uint16
	SerialGSI  uint32
	// ButtonGSI is the interrupt that presses the power button; 0: there is no button.
	ButtonGSI uint32
	// MMIO are the virtio-mmio devices, in the order in which the guest is to find them.
	MMIO []MMIODevice
	// Lguest is the lguest bus; nil: none.
	Lguest *LguestBus
}

// MMIODevice is a virtio-mmio device: Size bytes of registers at Base and an edge-triggered interrupt.
type MMIODevice struct {
	UID        int
	Base, Size uint64
	GSI        uint32
}

// LguestBus is the lguest bus: Size bytes of device page and rings at Page, twelve ports from Port on, and the interrupt of
// each lguest interrupt, from 1 on.
type LguestBus struct {
	Page, Size uint64
	Port       uint16
	GSIs       []uint32
}

// Build makes the tables for guest-physical address at, a multiple of 16, of at most limit bytes. The root pointer is at
// rsdp. The same c gives the same bytes.
//
// Errors: ErrTooLarge, which says how many devices fit; else a c that makes no sense.
func Build(at guestmem.GPA, limit int, c Config) (tables []byte, rsdpAt guestmem.GPA, err error) {
	if err := c.check(); err != nil {
		return nil, 0, fmt.Errorf("acpi tables: %w", err)
	}
	if at%tableAlign != 0 || limit < 0 || at+guestmem.GPA(limit) < at {
		return nil, 0, fmt.Errorf("acpi tables: %#x+%#x: not a place for them", uint64(at), limit)
	}
	fixed := len(assemble(at, &c, nil))
	var devices []byte
	for i, d := range c.MMIO {
		devices = append(devices, mmioDevice(i, d)...)
		// The length of the scope around the devices grows by up to 3 bytes, the next table moves to a multiple of tableAlign.
		if i >= deviceNames || fixed+len(devices)+3+tableAlign > limit {
			return nil, 0, fmt.Errorf("acpi tables: %w: %d devices, room for %d in %d bytes: use fewer", ErrTooLarge, len(c.MMIO), i, limit)
		}
	}
	b := assemble(at, &c, devices)
	if len(b) > limit {
		return nil, 0, fmt.Errorf("acpi tables: %w: %d bytes for %d processors and no device, room for %d", ErrTooLarge, len(b), c.CPUs, limit)
	}
	return b, at, nil
}

// assemble puts all tables at at: the root pointer first, where it is found.
func assemble(at guestmem.GPA, c *Config, devices []byte) []byte {
	b := &blob{at: at}
	b.add(rsdp(0)) // their places; the addresses are not known yet
	x := b.add(xsdt(make([]guestmem.GPA, xsdtTables)...))
	d := b.add(dsdt(c, devices))
	f := b.add(fadt(c, d))
	m := b.add(madt(c))
	copy(b.bytes, rsdp(x))
	copy(b.bytes[x-at:], xsdt(f, m))
	return b.bytes
}

func (c *Config) check() error {
	switch {
	case c.CPUs < 1 || c.CPUs > maxCPUs:
		return fmt.Errorf("%d CPUs: want 1 to %d", c.CPUs, maxCPUs)
	case c.LocalAPIC == 0 || c.IOAPIC == 0:
		return errors.New("no address of the local APIC or the I/O APIC")
	case (c.SleepControl == 0) != (c.SleepStatus == 0):
		return errors.New("sleep control and sleep status registers go together")
	}
	for i, d := range c.MMIO {
		if d.UID < 0 || d.Size == 0 || d.Base+d.Size-1 < d.Base {
			return fmt.Errorf("virtio-mmio device %d: %d: registers at %#x+%#x: makes no sense", i, d.UID, d.Base, d.Size)
		}
	}
	if l := c.Lguest; l != nil {
		switch {
		case l.Size == 0 || l.Page+l.Size-1 < l.Page:
			return fmt.Errorf("lguest bus: page at %#x+%#x: makes no sense", l.Page, l.Size)
		case int(l.Port)+lguestPorts > 1<<16:
			return fmt.Errorf("lguest bus: ports from %#x on: there are no twelve", l.Port)
		case len(l.GSIs) > maxLguestInterrupts:
			return fmt.Errorf("lguest bus: %d interrupts: want at most %d", len(l.GSIs), maxLguestInterrupts)
		}
	}
	return nil
}

// maxLguestInterrupts is LGUEST_IRQS less one: interrupt 0 is the timer's.
const maxLguestInterrupts = 31
