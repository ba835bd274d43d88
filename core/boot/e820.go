package boot

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// MapType is the type of a range in the memory map (ACPI 6.5, 15; the same in boot_params and hvm_start_info).
type MapType uint32

// Map types.
const (
	MapRAM      MapType = 1
	MapReserved MapType = 2
	MapACPI     MapType = 3
)

// String names the type.
func (t MapType) String() string {
	switch t {
	case MapRAM:
		return "RAM"
	case MapReserved:
		return "reserved"
	case MapACPI:
		return "ACPI tables"
	}
	return fmt.Sprintf("MapType(%d)", uint32(t))
}

// MapEntry is a range of the memory map.
type MapEntry struct {
	Range
	Type MapType
}

// String prints the range and its type.
func (e MapEntry) String() string { return e.Range.String() + " " + e.Type.String() }

// memoryMap is what the kernel is told: ascending and disjoint.
func memoryMap(r Request) []MapEntry {
	ram := union(r.RAM)
	reserved := r.Reserved
	for _, x := range ram {
		// The BIOS area, as far as the machine has memory there.
		start, end := max(uint64(x.Start), biosStart), min(x.end(), biosEnd)
		if start < end {
			reserved = append(slices.Clip(reserved), Range{guestmem.GPA(start), end - start})
		}
	}
	reserved = subtract(union(reserved), r.ACPI)
	for _, x := range append(slices.Clip(reserved), r.ACPI) {
		ram = subtract(ram, x)
	}
	var m []MapEntry
	add := func(t MapType, ranges ...Range) {
		for _, x := range ranges {
			if x.Size > 0 {
				m = append(m, MapEntry{x, t})
			}
		}
	}
	add(MapRAM, ram...)
	add(MapReserved, reserved...)
	add(MapACPI, r.ACPI)
	slices.SortFunc(m, func(a, b MapEntry) int { return cmp.Compare(a.Start, b.Start) })
	return m
}

// e820 appends the map in the layout of boot_params.e820_table: 20 bytes an entry.
func e820(b []byte, m []MapEntry) []byte {
	for _, e := range m {
		b = binary.LittleEndian.AppendUint64(b, uint64(e.Start))
		b = binary.LittleEndian.AppendUint64(b, e.Size)
		b = binary.LittleEndian.AppendUint32(b, uint32(e.Type))
	}
	return b
}
