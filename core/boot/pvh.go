package boot

import "encoding/binary"

// hvm_start_info, version 1 (Xen, public/arch-x86/hvm/start_info.h).
const (
	startInfoMagic    = 0x336ec578
	startInfoVersion  = 1
	startInfoSize     = 56
	modlistEntrySize  = 32
	memmapEntrySize   = 24
	pvhMaxAddress     = 1 << 32 // "Xen on x86 will always try to place all the data below the 4GiB boundary"
	noteNameXen       = "Xen"
	notePhys32Entry   = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	startInfoModlists = startInfoSize
)

// startInfoBytes is the size of hvm_start_info with its module list and memory map behind it.
func startInfoBytes(mapEntries int) uint64 {
	return startInfoSize + modlistEntrySize + uint64(mapEntries)*memmapEntrySize //nolint:gosec // G115: a length
}

// startInfo builds hvm_start_info, to be placed at p.info.
func (p *plan) startInfo() []byte {
	le := binary.LittleEndian
	at := uint64(p.info.Start)
	var modules uint32
	var modlist uint64
	if p.initrd.Size > 0 {
		modules, modlist = 1, at+startInfoModlists
	}
	b := le.AppendUint32(nil, startInfoMagic)
	b = le.AppendUint32(b, startInfoVersion)
	b = le.AppendUint32(b, 0) // flags
	b = le.AppendUint32(b, modules)
	b = le.AppendUint64(b, modlist)
	b = le.AppendUint64(b, uint64(p.cmdline.Start))
	b = le.AppendUint64(b, uint64(p.r.RSDP))
	b = le.AppendUint64(b, at+startInfoModlists+modlistEntrySize)
	b = le.AppendUint32(b, uint32(len(p.memmap))) //nolint:gosec // G115: a few
	b = le.AppendUint32(b, 0)
	// The module list: the initrd, without a command line.
	b = le.AppendUint64(b, uint64(p.initrd.Start))
	b = le.AppendUint64(b, p.initrd.Size)
	b = append(b, make([]byte, 16)...)
	for _, e := range p.memmap {
		b = le.AppendUint64(b, uint64(e.Start))
		b = le.AppendUint64(b, e.Size)
		b = le.AppendUint32(b, uint32(e.Type))
		b = le.AppendUint32(b, 0)
	}
	return b
}
