package acpi

import "encoding/binary"

// Resource descriptors (ACPI 6.5, 6.4): small ones have tag and length in a byte, large ones two bytes of length.
const (
	tagIO        = 0x47 // 6.4.2.5
	tagEnd       = 0x79 // 6.4.2.9
	tagFixed32   = 0x86 // 6.4.3.4
	tagQword     = 0x8a // 6.4.3.5.1
	tagInterrupt = 0x89 // 6.4.3.6
	decode16     = 1    // I/O: all 16 address bits are decoded
	readWrite    = 1
	minMaxFixed  = 1<<2 | 1<<3 // _MIF, _MAF
	consumer     = 1 << 0
	edge         = 1 << 1 // active high is the clear bit 2
	shared       = 1 << 3
	exclusive    = 0
	cacheable    = 1 << 1 // memory type of an address space descriptor
)

// resources is a resource template: the descriptors and the end tag, whose checksum of 0 means "not computed".
func resources(descriptors ...[]byte) term {
	var b []byte
	for _, d := range descriptors {
		b = append(b, d...)
	}
	return buffer(append(b, tagEnd, 0))
}

// ioPorts are size ports from port on.
func ioPorts(port uint16, size byte) []byte {
	b := []byte{tagIO, decode16}
	b = binary.LittleEndian.AppendUint16(b, port)
	b = binary.LittleEndian.AppendUint16(b, port)
	return append(b, 1, size) // aligned to 1
}

// large is a large descriptor.
func large(tag byte, body []byte) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{tag}, uint16(len(body))) //nolint:gosec // G115: a few hundred at most
	return append(b, body...)
}

// interrupt is one edge-triggered, active-high interrupt, shared or exclusive. The descriptor could hold more, but one for
// each keeps the order plain for drivers that take them by index.
func interrupt(gsi uint32, sharing byte) []byte {
	return large(tagInterrupt, binary.LittleEndian.AppendUint32([]byte{consumer | edge | sharing, 1}, gsi))
}

// memory is size bytes of registers at base: Memory32Fixed below 4 GiB, QWordMemory above.
func memory(base, size uint64) []byte {
	if size >= 1<<32 || base+size > 1<<32 {
		return qwordMemory(base, size, 0)
	}
	b := binary.LittleEndian.AppendUint32([]byte{readWrite}, uint32(base&0xffffffff))
	return large(tagFixed32, binary.LittleEndian.AppendUint32(b, uint32(size&0xffffffff)))
}

// qwordMemory is size bytes of memory at base, of type cacheable or 0.
func qwordMemory(base, size uint64, kind byte) []byte {
	b := []byte{0, consumer | minMaxFixed, kind | readWrite} // resource type 0: memory
	for _, v := range []uint64{0, base, base + size - 1, 0, size} {
		b = binary.LittleEndian.AppendUint64(b, v) // granularity, minimum, maximum, translation, length
	}
	return large(tagQword, b)
}
