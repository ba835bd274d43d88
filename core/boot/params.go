package boot

import (
	"encoding/binary"
	"fmt"
)

// Offsets in boot_params that a bzImage has not (Linux, Documentation/arch/x86/zero-page.rst).
const (
	paramsSize      = 0x1000
	offRSDP         = 0x070
	offExtRamdisk   = 0x0c0
	offExtRamdiskSz = 0x0c4
	offExtCmdline   = 0x0c8
	offE820Entries  = 0x1e8
	offE820         = 0x2d0
	maxE820         = 128 // E820_MAX_ENTRIES_ZEROPAGE
	// loaderOther is type_of_loader of a loader without a number of its own.
	loaderOther = 0xff
	// elfProtocol is what an ELF kernel is told that it has: 2.15, the newest.
	elfProtocol = 0x020f
)

// bootParams builds the "zero page".
func (p *plan) bootParams() ([]byte, error) {
	if len(p.memmap) > maxE820 {
		return nil, fmt.Errorf("memory map: %d ranges: a kernel takes %d at most", len(p.memmap), maxE820)
	}
	le := binary.LittleEndian
	b := make([]byte, paramsSize)
	protocol := uint16(elfProtocol)
	if p.k.Format == BzImage {
		protocol = p.k.setup.protocol
		copy(b[offSetupSects:endSetupFields], p.k.setup.raw)
	} else {
		le.PutUint16(b[offBootFlag:], bootFlag)
		copy(b[offMagic:], headerMagic)
		le.PutUint16(b[offVersion:], elfProtocol)
		le.PutUint16(b[offXLoadFlags:], kernel64)
		le.PutUint32(b[offCmdlineSize:], p.k.CmdlineMax)
		le.PutUint64(b[offPrefAddress:], uint64(p.kernel.Start))
	}
	b[offLoader] = loaderOther
	b[offLoadFlags] |= loadedHigh
	le.PutUint64(b[offSetupData:], 0)
	put := func(low, high int, v uint64) { // a 64-bit value in two words
		le.PutUint32(b[low:], uint32(v&0xffffffff))
		le.PutUint32(b[high:], uint32(v>>32))
	}
	le.PutUint32(b[offCode32:], uint32(p.kernel.Start&0xffffffff))
	put(offRamdisk, offExtRamdisk, uint64(p.initrd.Start))
	put(offRamdiskSize, offExtRamdiskSz, p.initrd.Size)
	put(offCmdline, offExtCmdline, uint64(p.cmdline.Start))
	if protocol >= protocolRSDP {
		le.PutUint64(b[offRSDP:], uint64(p.r.RSDP))
	}
	b[offE820Entries] = byte(len(p.memmap)) //nolint:gosec // G115: at most maxE820
	e820(b[:offE820], p.memmap)             // in place: b has room for maxE820
	return b, nil
}
