package kvm

import (
	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/core/memory"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// The guest-physical map. Addresses that are not fixed by the architecture are our choice, and are told by ACPI.
const (
	// tablesStart is where the ACPI tables are, to the end of a PC's BIOS area, where a guest without another hint looks.
	tablesStart = 0xE_0000
	tablesEnd   = 0x10_0000
	// holeStart is where memory ends below 4 GiB; what does not fit goes on at holeEnd.
	holeStart = 0xC000_0000
	holeEnd   = 0x1_0000_0000
	// windowsStart is where the virtio-mmio windows are, one page for each device.
	windowsStart = 0xD000_0000
	// ioapicAddr and lapicAddr are where KVM has its interrupt controllers.
	ioapicAddr = 0xFEC0_0000
	lapicAddr  = 0xFEE0_0000
	// identityMap and tss are pages that KVM needs for Intel's processors (KVM_SET_TSS_ADDR).
	identityMap = 0xFFFB_C000
	tss         = 0xFFFB_D000
)

// Interrupt lines.
const (
	serialGSI = 4
	buttonGSI = 23
	// Devices have lines 5 to 22, one after another, and share when there are more.
	deviceGSI   = 5
	deviceLines = 18
)

// lineGSI is the interrupt line of device line n, from 0.
func lineGSI(n int) uint32 {
	return deviceGSI + uint32(n%deviceLines) //nolint:gosec // G115: n is not negative
}

// ramRanges is where n bytes of guest memory are, whole pages of them.
func ramRanges(n uint64) []boot.Range {
	n -= n % guestmem.PageSize
	if n <= holeStart {
		return []boot.Range{{Start: 0, Size: n}}
	}
	return []boot.Range{{Start: 0, Size: holeStart}, {Start: holeEnd, Size: n - holeStart}}
}

// ramEnd is the first address above memory.
func ramEnd(ram []boot.Range) guestmem.GPA {
	last := ram[len(ram)-1]
	return last.Start + guestmem.GPA(last.Size)
}

func spans(ranges []boot.Range) []memory.Span {
	out := make([]memory.Span, len(ranges))
	for i, r := range ranges {
		out[i] = memory.Span{Start: r.Start, Size: r.Size}
	}
	return out
}
