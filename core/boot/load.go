package boot

import (
	"errors"
	"fmt"
	"strings"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

const (
	// lowStart is where the boot structures begin: page 0 is the real mode's interrupt table and the BIOS data area.
	lowStart = guestmem.PageSize
	// low4G is the end of what 32-bit fields can tell.
	low4G = 1 << 32
	// stackSize is arbitrary: kernels bring stacks of their own.
	stackSize = guestmem.PageSize
)

// plan is where everything goes; nothing is written before all of it has a place.
type plan struct {
	k      *Kernel
	r      Request
	memmap []MapEntry
	mapped uint64 // bytes of the identity tables

	kernel, initrd, cmdline, info, tables, gdt, stack, page0 Range
}

// Load places the kernel and everything it needs in guest memory. Nothing outside Request.RAM is written, and nothing in
// the BIOS area, the ACPI tables or the reserved ranges. It may be called again, for the same or other memory: what must be
// zero is made zero.
//
// Errors: ErrNoRoom, ErrTruncated, that of a file; else a request that contradicts itself. Guest memory may then be half
// written.
func (k *Kernel) Load(r Request) (Entry, error) {
	p := &plan{k: k, r: r}
	e, err := p.run()
	if err != nil {
		return Entry{}, fmt.Errorf("load kernel: %w", err)
	}
	return e, nil
}

// Fits tells whether Load will find a place for everything, before there is guest memory: r.Memory may be nil. Errors are
// those of Load.
func (k *Kernel) Fits(r Request) error {
	p := &plan{k: k, r: r}
	if err := p.plan(); err != nil {
		return fmt.Errorf("load kernel: %w", err)
	}
	return nil
}

func (p *plan) run() (Entry, error) {
	if p.r.Memory == nil {
		return Entry{}, fmt.Errorf("%w: the machine has no RAM", ErrNoRoom)
	}
	if err := p.plan(); err != nil {
		return Entry{}, err
	}
	if err := p.write(); err != nil {
		return Entry{}, err
	}
	return p.entry(), nil
}

// plan gives everything its place.
func (p *plan) plan() error {
	if err := p.checkCmdline(); err != nil {
		return err
	}
	s, err := newSpace(p.r)
	if err != nil {
		return err
	}
	p.memmap = memoryMap(p.r)
	return p.place(s)
}

func (p *plan) checkCmdline() error {
	if n := len(p.r.Cmdline); uint64(n) > uint64(p.k.CmdlineMax) {
		return fmt.Errorf("command line: %d bytes: the kernel takes %d at most: shorten it", n, p.k.CmdlineMax)
	}
	if i := strings.IndexByte(p.r.Cmdline, 0); i >= 0 {
		return fmt.Errorf("command line: NUL at byte %d", i)
	}
	if p.r.Initrd != nil && p.r.InitrdSize <= 0 {
		return errors.New("initrd: an empty file")
	}
	return nil
}

// mode is how the kernel is entered.
func (p *plan) mode() Mode {
	if p.k.Format == ELFPVH {
		return Protected32
	}
	return Long64
}

// place gives everything its place: the kernel where it wants to be, small things as low as possible, the initrd as high as
// possible.
func (p *plan) place(s *space) error {
	if page := (Range{0, guestmem.PageSize}); s.free(page) {
		p.page0 = page // cleared first: it may be the kernel's
	}
	var err error
	if p.k.Format == BzImage {
		p.kernel, err = p.k.placeBzImage(s)
	} else {
		p.kernel, err = p.k.placeELF(s)
	}
	if err != nil {
		return err
	}
	info := uint64(paramsSize)
	if p.k.Format == ELFPVH {
		info = startInfoBytes(len(p.memmap))
	}
	for _, x := range []struct {
		at   *Range
		what string
		size uint64
		skip bool
	}{
		{&p.gdt, "the GDT", uint64(len(gdt(p.mode()))), false},
		{&p.stack, "the stack", stackSize, false},
		{&p.info, "the boot parameters", info, false},
		{&p.cmdline, "the command line", uint64(len(p.r.Cmdline)) + 1, false},
		{&p.tables, "the page tables", pageTableBytes(mappedBytes(s.top)), p.mode() != Long64},
	} {
		if x.skip {
			continue
		}
		if *x.at, err = s.low(x.what, x.size, guestmem.PageSize, lowStart, low4G); err != nil {
			return err
		}
	}
	p.mapped = mappedBytes(s.top)
	return p.placeInitrd(s)
}

// placeInitrd puts the initrd as high as the kernel allows, below 4 GiB: there it is out of the way of a kernel that moves.
// Low memory it does not get: that is what a kernel starts its other processors in.
func (p *plan) placeInitrd(s *space) error {
	if p.r.Initrd == nil {
		return nil
	}
	limit := uint64(low4G)
	if p.k.Format == BzImage {
		limit = min(limit, p.k.setup.initrdMax+1)
	}
	var err error
	p.initrd, err = s.high("initrd", uint64(p.r.InitrdSize), guestmem.PageSize, biosEnd, limit) //nolint:gosec // G115: positive (checkCmdline)
	return err
}

// write fills guest memory according to the plan.
func (p *plan) write() error {
	mem := p.r.Memory
	if err := zero(mem, p.page0.Start, p.page0.Size); err != nil {
		return err
	}
	if p.k.Format == BzImage {
		h := &p.k.setup
		if err := p.k.file.load(mem, p.kernel.Start, h.code, h.codeSize, "kernel"); err != nil {
			return err
		}
	} else if err := p.k.loadELF(mem); err != nil {
		return err
	}
	if p.initrd.Size > 0 {
		if err := newImage(p.r.Initrd, p.r.InitrdSize).load(mem, p.initrd.Start, 0, p.initrd.Size, "initrd"); err != nil {
			return err
		}
	}
	info, err := p.bootInfo()
	if err != nil {
		return err
	}
	tables := []byte(nil)
	if p.tables.Size > 0 {
		tables = pageTables(p.tables.Start, p.mapped)
	}
	for _, x := range []struct {
		at    guestmem.GPA
		bytes []byte
	}{
		{p.gdt.Start, gdt(p.mode())},
		{p.info.Start, info},
		{p.cmdline.Start, append([]byte(p.r.Cmdline), 0)},
		{p.tables.Start, tables},
	} {
		if err := store(mem, x.at, x.bytes); err != nil {
			return err
		}
	}
	return nil
}

// bootInfo is what the kernel is told, in its format.
func (p *plan) bootInfo() ([]byte, error) {
	if p.k.Format == ELFPVH {
		return p.startInfo(), nil
	}
	return p.bootParams()
}

// entry is the state in which the kernel is entered.
func (p *plan) entry() Entry {
	e := Entry{
		Mode: p.mode(), RIP: uint64(p.k.Entry), RSP: p.stack.end(),
		GDT: p.gdt.Start, GDTLimit: uint16(p.gdt.Size - 1), //nolint:gosec // G115: a few descriptors
		Kernel: p.kernel, Initrd: p.initrd, Map: p.memmap,
	}
	if p.k.Format == BzImage {
		e.RIP = uint64(p.kernel.Start) + entry64
	}
	if e.Mode == Protected32 {
		e.RBX = uint64(p.info.Start)
	} else {
		e.RSI, e.CR3 = uint64(p.info.Start), uint64(p.tables.Start)
	}
	return e
}
