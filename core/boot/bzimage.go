package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// Offsets in a bzImage, which are those of boot_params too (Linux, Documentation/arch/x86/boot.rst, and
// arch/x86/include/uapi/asm/bootparam.h).
const (
	offSetupSects   = 0x1f1
	offSysSize      = 0x1f4
	offBootFlag     = 0x1fe
	offJump         = 0x200 // its second byte is the length of the header behind 0x202
	offMagic        = 0x202
	offVersion      = 0x206
	offVersionText  = 0x20e
	offLoader       = 0x210
	offLoadFlags    = 0x211
	offCode32       = 0x214
	offRamdisk      = 0x218
	offRamdiskSize  = 0x21c
	offCmdline      = 0x228
	offInitrdMax    = 0x22c
	offAlignment    = 0x230
	offRelocatable  = 0x234
	offXLoadFlags   = 0x236
	offCmdlineSize  = 0x238
	offPayload      = 0x248
	offPayloadSize  = 0x24c
	offSetupData    = 0x250
	offPrefAddress  = 0x258
	offInitSize     = 0x260
	endSetupHeader  = 0x264 // through init_size: what protocol 2.10 has
	endSetupFields  = 0x290 // what follows in boot_params is no longer the header
	sectorSize      = 512
	defaultSects    = 4      // "if the setup_sects field contains 0, the real value is 4"
	bootFlag        = 0xaa55 // boot_flag
	headerMagic     = "HdrS"
	loadedHigh      = 1 << 0 // loadflags: the protected-mode code is at 1 MiB or above
	kernel64        = 1 << 0 // xloadflags: XLF_KERNEL_64
	entry64         = 0x200  // "the 64-bit entry point is at the load address plus 0x200"
	protocolMin     = 0x0206 // cmdline_size and hence all that was ever 64-bit and relocatable
	protocol64      = 0x020c // xloadflags
	protocolRSDP    = 0x020e // acpi_rsdp_addr
	maxVersionText  = 256    // arbitrary; Debian's has 110 bytes
	maxImageSize    = 1 << 32
	syssizeUnit     = 16
	defaultCmdlen   = 255        // cmdline_size 0: the limit of the oldest protocols
	defaultInitrd   = 0x37ffffff // initrd_addr_max of the oldest protocols
	minKernelAt     = 1 << 20    // loaded high
	maxKernelAt     = 1 << 32    // code32_start, command line and initrd have 32 bits
	maxAlignment    = 1 << 30    // arbitrary; MAX_PHYSICAL_ALIGN is 16 MiB
	linuxCmdlineMax = 2047       // COMMAND_LINE_SIZE of x86 less the NUL; for kernels that do not say
)

// setupHeader is what of a bzImage's header matters; checked.
type setupHeader struct {
	raw         []byte // 0x1f1 up to the end that the header states
	protocol    uint16
	code        uint64 // file offset of the protected-mode code
	codeSize    uint64
	initrdMax   uint64 // highest address of the initrd's last byte
	alignment   uint64
	relocatable bool
	prefAddress uint64
	initSize    uint64
}

// isBzImage tells whether the file has a setup header, also of a kind that cannot be booted.
func isBzImage(head []byte) bool {
	return len(head) >= offVersion && string(head[offMagic:offMagic+4]) == headerMagic
}

func inspectBzImage(im image, head []byte) (*Kernel, error) {
	if uint64(len(head)) < endSetupFields {
		return nil, fmt.Errorf("bzImage: setup header: %w: the file has %d bytes: copy or download it again", ErrTruncated, im.size)
	}
	h, err := parseSetupHeader(head)
	if err != nil {
		return nil, fmt.Errorf("bzImage: %w", err)
	}
	if err := h.fitFile(im, head); err != nil {
		return nil, fmt.Errorf("bzImage: %w", err)
	}
	k := &Kernel{Format: BzImage, Protocol: h.protocol, file: im, setup: h, Entry: guestmem.GPA(h.prefAddress) + entry64}
	k.CmdlineMax = binary.LittleEndian.Uint32(head[offCmdlineSize:])
	if k.CmdlineMax == 0 {
		k.CmdlineMax = defaultCmdlen
	}
	k.Version = versionText(im, head)
	return k, nil
}

// parseSetupHeader checks the header for itself; fitFile checks it against the file.
func parseSetupHeader(head []byte) (setupHeader, error) {
	le := binary.LittleEndian
	h := setupHeader{protocol: le.Uint16(head[offVersion:])}
	if f := le.Uint16(head[offBootFlag:]); f != bootFlag {
		return h, fmt.Errorf("setup header: %w: boot flag is %#x, want %#x", ErrBroken, f, bootFlag)
	}
	switch {
	case h.protocol < protocolMin:
		return h, fmt.Errorf("%w: boot protocol %s: the kernel is from before 2007; take a 64-bit kernel of Linux 3.8 or later", ErrUnsupported, protocolText(h.protocol))
	case h.protocol < protocol64:
		return h, fmt.Errorf("%w: boot protocol %s: the 64-bit entry needs 2.12; take a 64-bit kernel of Linux 3.8 or later", ErrUnsupported, protocolText(h.protocol))
	case head[offLoadFlags]&loadedHigh == 0:
		return h, fmt.Errorf("%w: a zImage, to be loaded below 1 MiB; take a bzImage", ErrUnsupported)
	case le.Uint16(head[offXLoadFlags:])&kernel64 == 0:
		return h, fmt.Errorf("%w: a 32-bit kernel (no XLF_KERNEL_64): take one for amd64", ErrUnsupported)
	}
	end := offMagic + int(head[offJump+1])
	if end < endSetupHeader || end > endSetupFields {
		return h, fmt.Errorf("setup header: %w: it ends at %#x, want %#x to %#x", ErrBroken, end, endSetupHeader, endSetupFields)
	}
	h.raw = bytes.Clone(head[offSetupSects:end])
	h.initrdMax = uint64(le.Uint32(head[offInitrdMax:]))
	if h.initrdMax == 0 {
		h.initrdMax = defaultInitrd
	}
	h.alignment = uint64(le.Uint32(head[offAlignment:]))
	h.relocatable = head[offRelocatable] != 0
	h.prefAddress = le.Uint64(head[offPrefAddress:])
	h.initSize = uint64(le.Uint32(head[offInitSize:]))
	switch {
	case h.relocatable && (bits.OnesCount64(h.alignment) != 1 || h.alignment < guestmem.PageSize || h.alignment > maxAlignment):
		return h, fmt.Errorf("setup header: %w: kernel_alignment is %#x", ErrBroken, h.alignment)
	case h.prefAddress < minKernelAt || h.prefAddress >= maxKernelAt || h.prefAddress%guestmem.PageSize != 0:
		return h, fmt.Errorf("setup header: %w: pref_address is %#x", ErrBroken, h.prefAddress)
	case h.relocatable && h.prefAddress%h.alignment != 0:
		return h, fmt.Errorf("setup header: %w: pref_address %#x is no multiple of kernel_alignment %#x", ErrBroken, h.prefAddress, h.alignment)
	}
	return h, nil
}

// fitFile finds the protected-mode code in the file, and checks that it is all there.
func (h *setupHeader) fitFile(im image, head []byte) error {
	le := binary.LittleEndian
	sects := uint64(head[offSetupSects])
	if sects == 0 {
		sects = defaultSects
	}
	h.code = (sects + 1) * sectorSize
	size := uint64(le.Uint32(head[offSysSize:])) * syssizeUnit
	if size <= entry64 || size >= maxImageSize {
		return fmt.Errorf("setup header: %w: syssize says %d bytes of code", ErrBroken, size)
	}
	// The last unit may be incomplete.
	if err := im.check(h.code, size-syssizeUnit+1, "kernel code"); err != nil {
		return err
	}
	h.codeSize = min(size, im.size-h.code)
	off, n := uint64(le.Uint32(head[offPayload:])), uint64(le.Uint32(head[offPayloadSize:]))
	if off+n > h.codeSize {
		return fmt.Errorf("setup header: %w: the payload of %d bytes at %#x is not within the %d bytes of code", ErrBroken, n, off, h.codeSize)
	}
	if h.initSize < h.codeSize {
		return fmt.Errorf("setup header: %w: init_size %d is less than the %d bytes of code", ErrBroken, h.initSize, h.codeSize)
	}
	return nil
}

// versionText reads kernel_version: a pointer, less 0x200, to a NUL-terminated text in the setup code. Whatever is wrong
// with it, the kernel boots.
func versionText(im image, head []byte) string {
	at := binary.LittleEndian.Uint16(head[offVersionText:])
	if at == 0 {
		return ""
	}
	off := uint64(at) + sectorSize
	if off >= im.size {
		return ""
	}
	b, err := im.read(off, min(maxVersionText, im.size-off), "version")
	if err != nil {
		return ""
	}
	text, _, found := bytes.Cut(b, []byte{0})
	if !found {
		return ""
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' { // it goes to terminals and logs
			return -1
		}
		return r
	}, string(text)))
}

func protocolText(v uint16) string { return fmt.Sprintf("%d.%02d", v>>8, v&0xff) }

// placeBzImage claims the memory that the kernel needs until it has unpacked itself.
func (k *Kernel) placeBzImage(s *space) (Range, error) {
	h := &k.setup
	if r := (Range{guestmem.GPA(h.prefAddress), h.initSize}); s.free(r) || !h.relocatable {
		return r, s.claim("kernel", r)
	}
	r, err := s.low("kernel", h.initSize, h.alignment, guestmem.GPA(h.prefAddress), maxKernelAt)
	if err != nil {
		return r, fmt.Errorf("%w (it wants to be at %#x or above)", err, h.prefAddress)
	}
	return r, nil
}
