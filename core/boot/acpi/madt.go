package acpi

import "encoding/binary"

// The MADT (ACPI 6.5, 5.2.12).
const (
	madtRevision  = 6
	pcatCompat    = 1 << 0 // there are two 8259s as well
	madtLocalAPIC = 0
	madtIOAPIC    = 1
	madtNMI       = 4
	madtX2APIC    = 9
	madtX2NMI     = 10
	cpuEnabled    = 1 << 0
	// maxAPICID is the largest identifier of a local APIC; 255 addresses all of them.
	maxAPICID = 254
	allCPUs   = 0xff
	allX2CPUs = 0xffffffff
	nmiLINT   = 1 // a PC has its NMI at LINT1
)

// madt describes c's processors, APIC identifiers 0 to CPUs-1, and its I/O APIC, whose first input is GSI 0. There are no
// interrupt source overrides: ISA interrupt n is GSI n.
func madt(c *Config) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, c.LocalAPIC)
	b = le.AppendUint32(b, pcatCompat)
	for id := range uint32(c.CPUs) { //nolint:gosec // G115: Build bounds it
		if id <= maxAPICID {
			b = append(b, madtLocalAPIC, 8, byte(id), byte(id))
			b = le.AppendUint32(b, cpuEnabled)
			continue
		}
		b = append(b, madtX2APIC, 16, 0, 0)
		b = le.AppendUint32(b, id)
		b = le.AppendUint32(b, cpuEnabled)
		b = le.AppendUint32(b, id)
	}
	b = append(b, madtIOAPIC, 12, 0, 0) // identifier 0
	b = le.AppendUint32(b, c.IOAPIC)
	b = le.AppendUint32(b, 0)
	b = append(b, madtNMI, 6, allCPUs, 0, 0, nmiLINT)
	if c.CPUs > maxAPICID+1 {
		b = append(b, madtX2NMI, 12, 0, 0)
		b = le.AppendUint32(b, allX2CPUs)
		b = append(b, nmiLINT, 0, 0, 0)
	}
	return table("APIC", madtRevision, b)
}
