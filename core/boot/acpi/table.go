package acpi

import (
	"encoding/binary"
	"slices"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// System description tables (ACPI 6.5, 5.2.6): a header of 36 bytes, with the length of all at 4 and a checksum at 9.
const (
	headerSize  = 36
	offLength   = 4
	offChecksum = 9
	oemID       = "VIRTPL"   // 6 characters
	oemTableID  = "VIRTPLUG" // 8 characters
	creatorID   = "VPLG"
	rsdpSize    = 36
	rsdpV1Size  = 20 // what the first checksum covers
	tableAlign  = 16 // the specification wants none; the RSDP must have 16
	xsdtTables  = 2  // FADT and MADT
)

// table is a table of a signature and a revision.
func table(signature string, revision byte, body []byte) []byte {
	le := binary.LittleEndian
	t := append([]byte(nil), signature...)
	t = le.AppendUint32(t, uint32(headerSize+len(body))) //nolint:gosec // G115: Build bounds it
	t = append(t, revision, 0)
	t = append(t, oemID+oemTableID...)
	t = le.AppendUint32(t, 1) // OEM revision
	t = append(t, creatorID...)
	t = le.AppendUint32(t, 1) // creator revision
	t = append(t, body...)
	t[offChecksum] = checksum(t)
	return t
}

// checksum is the byte that makes the sum of t 0; its own place in t is 0.
func checksum(t []byte) byte {
	var sum byte
	for _, b := range t {
		sum += b
	}
	return -sum
}

// xsdt is the table of tables (5.2.8).
func xsdt(tables ...guestmem.GPA) []byte {
	var body []byte
	for _, a := range tables {
		body = binary.LittleEndian.AppendUint64(body, uint64(a))
	}
	return table("XSDT", 1, body)
}

// rsdp is the root pointer, revision 2 (5.2.5.3). There is no RSDT: who reads ACPI 2.0 takes the XSDT.
func rsdp(xsdt guestmem.GPA) []byte {
	le := binary.LittleEndian
	b := append([]byte("RSD PTR \x00"+oemID), 2)
	b = le.AppendUint32(b, 0) // RSDT
	b = le.AppendUint32(b, rsdpSize)
	b = le.AppendUint64(b, uint64(xsdt))
	b = append(b, make([]byte, rsdpSize-len(b))...)
	b[8] = checksum(b[:rsdpV1Size])
	b[32] = checksum(b)
	return b
}

// blob puts tables one behind the other.
type blob struct {
	at    guestmem.GPA
	bytes []byte
}

// add appends a table and returns its address.
func (b *blob) add(t []byte) guestmem.GPA {
	for len(b.bytes)%tableAlign != 0 {
		b.bytes = append(b.bytes, 0)
	}
	a := b.at + guestmem.GPA(len(b.bytes))
	b.bytes = append(slices.Clip(b.bytes), t...)
	return a
}
