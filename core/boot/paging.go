package boot

import (
	"encoding/binary"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// Page tables (Intel SDM 3A, 4.5): one PML4, one PDPT, and a page directory of 2 MiB pages for each GiB. Pages of 1 GiB would
// need fewer tables, but not every processor, or software that emulates one, has them.
const (
	ptePresent = 1 << 0
	pteWrite   = 1 << 1
	pteLarge   = 1 << 7
	gib        = 1 << 30
	largePage  = 2 << 20
	ptesOfPage = guestmem.PageSize / 8
	// minMapped is mapped always: the boot protocol's structures, the APICs and the devices are below 4 GiB.
	minMapped = 4 * gib
	// maxMapped bounds the tables to 130 pages, so that they fit below 1 MiB, where no kernel unpacks itself. Kernels make
	// tables of their own before they touch memory above.
	maxMapped = 128 * gib
)

// mappedBytes is how much is mapped: all RAM, within bounds.
func mappedBytes(top uint64) uint64 {
	return min(max(alignUp(top, gib), minMapped), maxMapped)
}

// pageTableBytes is the size of the tables that map n bytes.
func pageTableBytes(n uint64) uint64 { return (2 + n/gib) * guestmem.PageSize }

// pageTables are identity tables of n bytes, to be placed at at; CR3 = at.
func pageTables(at guestmem.GPA, n uint64) []byte {
	const rw = ptePresent | pteWrite
	le := binary.LittleEndian
	b := make([]byte, pageTableBytes(n))
	pdpt := uint64(at) + guestmem.PageSize
	le.PutUint64(b, pdpt|rw)
	for i := range n / gib {
		directory := pdpt + (1+i)*guestmem.PageSize
		le.PutUint64(b[guestmem.PageSize+i*8:], directory|rw)
		table := b[(2+i)*guestmem.PageSize:]
		for j := range uint64(ptesOfPage) {
			le.PutUint64(table[j*8:], (i*gib+j*largePage)|rw|pteLarge)
		}
	}
	return b
}

// Segment descriptors (Intel SDM 3A, 3.4.5 and 7.2.2): flat, 4 GiB, present, accessed already (so that the processor need
// not write to them).
const (
	descriptorCode64 = 0x00af9b000000ffff // execute and read, L
	descriptorCode32 = 0x00cf9b000000ffff // execute and read, D
	descriptorData   = 0x00cf93000000ffff // read and write
	descriptorTask   = 0x00008b0000000067 // busy TSS of 0x68 bytes at address 0; its upper half in 64-bit mode is 0
)

// gdt is the descriptor table of mode, for the Selector constants.
func gdt(m Mode) []byte {
	code := uint64(descriptorCode64)
	if m == Protected32 {
		code = descriptorCode32
	}
	var b []byte
	for _, d := range []uint64{0, 0, code, descriptorData, descriptorTask, 0} {
		b = binary.LittleEndian.AppendUint64(b, d)
	}
	return b
}
