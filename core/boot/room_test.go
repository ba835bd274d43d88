package boot_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

func TestTheInitrdIsAsHighAsAllowed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		max      uint32
		reserved []boot.Range
		size     int
		want     uint64
	}{
		"top of RAM":            {0x7fffffff, nil, page, 8*mib - page},
		"one byte more":         {0x7fffffff, nil, page + 1, 8*mib - 2*page},
		"below initrd_addr_max": {4*mib - 1, nil, page + 1, 4*mib - 2*page},
		"odd initrd_addr_max":   {4*mib - 2, nil, page, 4*mib - 2*page},
		"last byte allowed":     {4*mib - 2, nil, page - 1, 4*mib - page},
		"below what is taken":   {0x7fffffff, []boot.Range{{Start: 7 * mib, Size: mib}}, page, 7*mib - page},
		"all there is":          {0x7fffffff, nil, 8*mib - mib - 0x10000, mib + 0x10000},
	} {
		b := goodBz()
		b.initrdMax = c.max
		v := newVM(t, 8*mib).initrd(c.size)
		v.Reserved = c.reserved
		e := mustLoad(t, mustInspect(t, b.bytes()), v)
		if uint64(e.Initrd.Start) != c.want || v.at(t, c.want, 1)[0] != 1 {
			t.Errorf("%s: at %v, want %#x", name, e.Initrd, c.want)
		}
	}
}

func TestWhatDoesNotFitIsTold(t *testing.T) {
	t.Parallel()
	plain := func() []byte { return goodBz().bytes() }
	for name, c := range map[string]struct {
		file   []byte
		change func(*vm)
		is     error
		want   string
	}{
		"initrd": {
			plain(), func(v *vm) { v.initrd(8*mib - mib - 0x10000 + 1) }, boot.ErrNoRoom,
			fmt.Sprintf("initrd does not fit: no room in guest memory: %d bytes, %d free: give the VM more memory", 7*mib-0x10000+1, 7*mib-0x10000),
		},
		"initrd below the limit": {
			func() []byte { b := goodBz(); b.initrdMax = 2*mib - 1; return b.bytes() }(), func(v *vm) { v.initrd(mib) }, boot.ErrNoRoom,
			fmt.Sprintf("%d bytes, %d free", mib, mib-0x10000),
		},
		"huge initrd":  {plain(), func(v *vm) { v.initrd(1); v.InitrdSize = 1<<63 - 1 }, boot.ErrNoRoom, "initrd does not fit"},
		"empty initrd": {plain(), func(v *vm) { v.initrd(0) }, nil, "initrd: an empty file"},
		"truncated initrd": {
			plain(), func(v *vm) { v.initrd(5000); v.InitrdSize = 9000 }, boot.ErrTruncated, "initrd: the file is truncated: it ended at byte 5000",
		},
		"long command line": {plain(), func(v *vm) { v.Cmdline = strings.Repeat("x", 101) }, nil, "command line: 101 bytes: the kernel takes 100 at most"},
		"long for an ELF": {
			makeELF(mib, load(mib, 10, 0x90)), func(v *vm) { v.Cmdline = strings.Repeat("x", 2048) }, nil, "2048 bytes: the kernel takes 2047",
		},
		"NUL in the command line": {plain(), func(v *vm) { v.Cmdline = "a\x00b" }, nil, "NUL at byte 1"},
		"init_size": {
			func() []byte { b := goodBz(); b.initSize = 7*mib + 1; return b.bytes() }(), func(*vm) {}, boot.ErrNoRoom, "kernel does not fit",
		},
		"a kernel that cannot move": {
			func() []byte { b := goodBz(); b.reloc, b.pref = 0, 16*mib; return b.bytes() }(), func(*vm) {}, boot.ErrNoRoom, "give the VM at least 17 MiB of memory",
		},
		"pref_address above RAM": {
			func() []byte { b := goodBz(); b.pref = 1<<32 - page; return b.bytes() }(), func(*vm) {}, boot.ErrNoRoom, "it wants to be at 0xfffff000 or above",
		},
		"segment above RAM":   {makeELF(16*mib, load(16*mib, 10, 1)), func(*vm) {}, boot.ErrNoRoom, "outside RAM, which ends at 0x800000: give the VM at least 17 MiB of memory"},
		"segment at the end":  {makeELF(8*mib-10, load(8*mib-10, 10, 1)), func(*vm) {}, boot.ErrNoRoom, "outside RAM"},
		"segment in the BIOS": {makeELF(0xf0000, load(0xf0000, 10, 1)), func(*vm) {}, nil, "overlaps the BIOS area"},
		"segment in a table": {
			makeELF(2*mib, load(2*mib, 10, 1)), func(v *vm) { v.ACPI = boot.Range{Start: 2 * mib, Size: 100} }, nil, "overlaps the ACPI tables",
		},
		"no RAM":               {plain(), func(v *vm) { v.RAM = nil }, boot.ErrNoRoom, "no RAM"},
		"no memory":            {plain(), func(v *vm) { v.Memory = nil }, boot.ErrNoRoom, "no RAM"},
		"RAM that is not":      {plain(), func(v *vm) { v.RAM[0].Size = 64 * mib }, guestmem.ErrRange, "RAM 0x0-0x3ffffff"},
		"odd RAM":              {plain(), func(v *vm) { v.RAM[0].Size-- }, nil, "not a range of pages"},
		"RAM that wraps":       {plain(), func(v *vm) { v.RAM[0].Size = 1<<64 - page }, nil, "not a range of pages"},
		"RAM that overlaps":    {plain(), func(v *vm) { v.RAM = append(v.RAM, boot.Range{Start: page, Size: page}) }, nil, "not above the range before it"},
		"little RAM":           {plain(), func(v *vm) { v.RAM[0].Size = page }, boot.ErrNoRoom, "kernel does not fit"},
		"reserved that wraps":  {plain(), func(v *vm) { v.Reserved = []boot.Range{{Start: 1 << 63, Size: 1 << 63}} }, nil, "beyond the address space"},
		"tables that wrap":     {plain(), func(v *vm) { v.ACPI = boot.Range{Start: 1 << 63, Size: 1 << 63} }, nil, "beyond the address space"},
		"a map of many pieces": {plain(), func(v *vm) { v.Reserved = pieces(130) }, nil, "a kernel takes 128 at most"},
		"no place for tables": {
			makeELF(mib, load(mib, 10, 1)), func(v *vm) {
				v.Reserved = []boot.Range{{Start: 0x2000, Size: 0x9d000}, {Start: mib + page, Size: 7*mib - page}}
			},
			boot.ErrNoRoom, "does not fit",
		},
	} {
		v := newVM(t, 8*mib)
		c.change(v)
		e, err := mustInspect(t, c.file).Load(v.Request)
		if err == nil || e.RIP != 0 || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %+v, %v: want %q", name, e, err, c.want)
		}
	}
}

// pieces are reserved pages with pages between them.
func pieces(n int) []boot.Range {
	var r []boot.Range
	for i := range n {
		r = append(r, boot.Range{Start: guestmem.GPA(4*mib + 2*i*page), Size: page})
	}
	return r
}

func TestGuestMemoryOfAnotherSizeIsNoSurprise(t *testing.T) {
	t.Parallel()
	// All sizes around those at which something no longer fits.
	k := mustInspect(t, goodBz().bytes())
	for pages := 1; pages < 300; pages++ {
		v := newVM(t, pages*page).initrd(3 * page)
		e, err := k.Load(v.Request)
		v.checkUntouched(t)
		if fits := pages >= 256+16+3; (err == nil) != fits {
			t.Errorf("%d pages: %+v, %v", pages, e, err)
		}
		if err != nil && !errors.Is(err, boot.ErrNoRoom) {
			t.Errorf("%d pages: %v", pages, err)
		}
	}
}
