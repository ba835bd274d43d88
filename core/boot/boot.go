package boot

import (
	"errors"
	"fmt"
	"io"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// What is wrong with a kernel; for errors.Is.
var (
	// ErrNotKernel means that the file is something else.
	ErrNotKernel = errors.New("not an x86-64 kernel")
	// ErrUserModeLinux means that the file is a User-Mode Linux program; it is an ErrNotKernel too.
	ErrUserModeLinux = errors.New("a User-Mode Linux program: it runs on machine uml (--machine uml)")
	// ErrUnsupported means a kernel that cannot be entered in 64-bit mode.
	ErrUnsupported = errors.New("kernel not supported")
	// ErrTruncated means that the file ends too early.
	ErrTruncated = errors.New("the file is truncated")
	// ErrBroken means that the headers contradict themselves.
	ErrBroken = errors.New("broken kernel image")
	// ErrNoRoom means that something does not fit into guest memory.
	ErrNoRoom = errors.New("no room in guest memory")
)

// Format is the kind of a kernel file.
type Format int

// Formats.
const (
	// BzImage is Linux's compressed kernel, entered by the 64-bit boot protocol.
	BzImage Format = iota + 1
	// ELFPVH is an ELF program with a PVH entry (XEN_ELFNOTE_PHYS32_ENTRY).
	ELFPVH
	// ELF64 is any other x86-64 ELF program, entered in long mode with RSI = boot_params.
	ELF64
)

// String names the format.
func (f Format) String() string {
	switch f {
	case BzImage:
		return "bzImage"
	case ELFPVH:
		return "ELF with PVH entry"
	case ELF64:
		return "64-bit ELF"
	}
	return fmt.Sprintf("Format(%d)", int(f))
}

// Mode is the processor mode in which a kernel is entered.
type Mode int

// Modes.
const (
	// Long64 is 64-bit mode: paging with Entry.CR3, CS = SelectorCode, the others SelectorData, interrupts off.
	Long64 Mode = iota + 1
	// Protected32 is 32-bit protected mode: no paging, flat segments, interrupts off.
	Protected32
)

// String names the mode.
func (m Mode) String() string {
	switch m {
	case Long64:
		return "64-bit mode"
	case Protected32:
		return "32-bit protected mode"
	}
	return fmt.Sprintf("Mode(%d)", int(m))
}

// Range is a piece of guest-physical memory, in bytes.
type Range struct {
	Start guestmem.GPA
	Size  uint64
}

// String prints the first and the last address.
func (r Range) String() string {
	if r.Size == 0 {
		return fmt.Sprintf("%v (empty)", r.Start)
	}
	return fmt.Sprintf("%v-%v", r.Start, r.Start+guestmem.GPA(r.Size-1))
}

// Kernel is a kernel file whose headers have been read and checked. It is immutable, and safe for concurrent use if its
// file is.
type Kernel struct {
	Format Format
	// Version is what a bzImage says of itself, "6.1.0-56-cloud-amd64 (debian…) #1 SMP …"; "" if it says nothing.
	Version string
	// Protocol is the boot protocol of a bzImage, 0x020f for 2.15; 0 for ELF.
	Protocol uint16
	// CmdlineMax is the longest command line, in bytes without the NUL.
	CmdlineMax uint32
	// Entry is the guest-physical address of the first instruction; of a bzImage that may move, where it would like to be.
	Entry guestmem.GPA

	file   image
	setup  setupHeader // bzImage
	pieces []segment   // ELF, ascending
}

// Request says where a kernel is to be placed, and with what.
type Request struct {
	// Memory is guest memory; it holds at least RAM.
	Memory *guestmem.Memory
	// RAM is what the guest is told to use, ascending and disjoint, page-aligned.
	RAM []Range
	// Reserved is what the guest must not use as RAM, in RAM or elsewhere; listed in the memory map as such.
	Reserved []Range
	// ACPI is where the ACPI tables are, listed in the memory map as such; Size 0: none.
	ACPI Range
	// Initrd is the initial RAM disk of InitrdSize bytes; nil: none.
	Initrd     io.ReaderAt
	InitrdSize int64
	// Cmdline is the command line, without a NUL.
	Cmdline string
	// RSDP is where the ACPI root pointer is; 0: no ACPI.
	RSDP guestmem.GPA
}

// Selectors of the GDT that Entry points to.
const (
	// SelectorCode is a flat code segment of Entry.Mode (__BOOT_CS of the 64-bit boot protocol).
	SelectorCode = 0x10
	// SelectorData is a flat data segment (__BOOT_DS).
	SelectorData = 0x18
	// SelectorTask is a task state segment at address 0: KVM wants one to be loaded; nothing uses it.
	SelectorTask = 0x20
)

// Entry is the state in which the first virtual CPU enters the kernel. Registers that are not named are 0; interrupts are
// off, and there is no interrupt table.
type Entry struct {
	Mode Mode
	// RIP is the first instruction; RSP the end of a page that may serve as a stack.
	RIP, RSP uint64
	// RSI is boot_params (Long64), RBX is hvm_start_info (Protected32).
	RSI, RBX uint64
	// CR3 is the root of identity page tables (Long64; 0 otherwise).
	CR3 uint64
	// GDT and GDTLimit are what LGDT would load.
	GDT      guestmem.GPA
	GDTLimit uint16
	// Kernel is where the kernel is: from its first byte to the end of what it needs until it manages memory itself.
	Kernel Range
	// Initrd is where the initrd is; Size 0: none.
	Initrd Range
	// Map is the memory map that the kernel is told, ascending and disjoint.
	Map []MapEntry
}

// Inspect reads the headers of a kernel file of size bytes. It reads some MiB at most, whatever the headers say.
// f must stay open as long as the Kernel is used.
//
// Errors: ErrNotKernel (the text says what the file looks like), ErrUserModeLinux, ErrTruncated, ErrUnsupported, ErrBroken;
// else that of f.
func Inspect(f io.ReaderAt, size int64) (*Kernel, error) {
	k, err := inspect(newImage(f, size))
	if err != nil {
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	return k, nil
}

func inspect(im image) (*Kernel, error) {
	head, err := im.head()
	if err != nil {
		return nil, err
	}
	switch {
	case isBzImage(head):
		return inspectBzImage(im, head)
	case isELF(head):
		return inspectELF(im, head)
	}
	return nil, fmt.Errorf("%w: %s", ErrNotKernel, looksLike(im, head))
}
