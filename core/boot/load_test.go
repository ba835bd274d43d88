package boot_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

func mustInspect(t *testing.T, b []byte) *boot.Kernel {
	t.Helper()
	k, err := inspect(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustLoad(t *testing.T, k *boot.Kernel, v *vm) boot.Entry {
	t.Helper()
	e, err := k.Load(v.Request)
	if err != nil {
		t.Fatal(err)
	}
	v.checkUntouched(t)
	checkEntry(t, v, e)
	return e
}

// checkEntry holds for whatever was loaded.
func checkEntry(t *testing.T, v *vm, e boot.Entry) {
	t.Helper()
	inMap := func(a uint64) bool {
		for _, m := range e.Map {
			if m.Type == boot.MapRAM && a >= uint64(m.Start) && a-uint64(m.Start) < m.Size {
				return true
			}
		}
		return false
	}
	if !inMap(e.RIP) || !inMap(e.RSP-8) || e.RSP%16 != 0 {
		t.Errorf("entered at %#x with stack %#x: not in RAM", e.RIP, e.RSP)
	}
	var last uint64
	for _, m := range e.Map {
		if uint64(m.Start) < last || m.Size == 0 {
			t.Errorf("memory map: %v: not ascending and disjoint: %v", m.Range, e.Map)
		}
		last = uint64(m.Start) + m.Size
	}
	checkGDT(t, v, e)
	if e.Mode == boot.Protected32 {
		if e.RBX == 0 || e.RSI != 0 || e.CR3 != 0 {
			t.Errorf("%+v", e)
		}
		return
	}
	if e.RSI == 0 || e.RBX != 0 {
		t.Errorf("%+v", e)
	}
	for _, a := range []uint64{0, e.RIP, e.RSI, e.RSP, 0xfee00000, 1<<32 - 1} {
		if got, ok := walk(t, v, e.CR3, a); !ok || got != a {
			t.Errorf("%#x is mapped to %#x, %v", a, got, ok)
		}
	}
}

func checkGDT(t *testing.T, v *vm, e boot.Entry) {
	t.Helper()
	g := v.at(t, uint64(e.GDT), uint64(e.GDTLimit)+1)
	code := le.Uint64(g[boot.SelectorCode:])
	data := le.Uint64(g[boot.SelectorData:])
	task := le.Uint64(g[boot.SelectorTask:])
	long, def := code>>53&1, code>>54&1
	if want := e.Mode == boot.Long64; (long == 1) != want || (def == 0) != want {
		t.Errorf("code segment %#x in %v", code, e.Mode)
	}
	for _, d := range []uint64{code, data} {
		if limit := d&0xffff | d>>32&0xf0000; limit != 0xfffff || d>>55&1 != 1 || d>>47&1 != 1 || d>>44&1 != 1 || d>>16&0xffffff != 0 || d>>56 != 0 {
			t.Errorf("segment %#x is not flat and present", d)
		}
	}
	if code>>41&5 != 5 || data>>41&5 != 1 || task>>40&0xff != 0x8b { // executable and readable; writable; busy task
		t.Errorf("code %#x, data %#x, task %#x", code, data, task)
	}
}

// walk translates a as the processor does.
func walk(t *testing.T, v *vm, cr3, a uint64) (uint64, bool) {
	t.Helper()
	table := cr3
	for _, shift := range []int{39, 30, 21} {
		e := le.Uint64(v.at(t, table+(a>>shift&511)*8, 8))
		if e&3 != 3 {
			return 0, false
		}
		if e&0x80 != 0 {
			return e&^(1<<shift-1) | a&(1<<shift-1), shift == 21
		}
		table = e &^ (page - 1)
	}
	return 0, false
}

func TestABzImageIsPlacedByTheBootProtocol(t *testing.T) {
	t.Parallel()
	file := goodBz().bytes()
	v := newVM(t, 8*mib).initrd(12345)
	e := mustLoad(t, mustInspect(t, file), v)
	if e.Mode != boot.Long64 || e.RIP != mib+0x200 || uint64(e.Kernel.Start) != mib || e.Kernel.Size != 0x10000 {
		t.Errorf("%+v", e)
	}
	if !bytes.Equal(v.at(t, mib, 0x2000), file[0x800:]) {
		t.Error("the code is not in memory")
	}
	p := v.at(t, e.RSI, page)
	// Of the setup header everything is the file's but what a loader is to fill in.
	want := bytes.Clone(file[0x1f1:0x26c])
	for off, n := range map[int]int{0x210: 1, 0x214: 4, 0x218: 8, 0x228: 4} {
		copy(want[off-0x1f1:], p[off:off+n])
	}
	if !bytes.Equal(p[0x1f1:0x26c], want) {
		t.Errorf("setup header % x, want % x", p[0x1f1:0x26c], want)
	}
	if p[0x210] != 0xff || le.Uint32(p[0x214:]) != mib || p[0x1ef] != 0 || le.Uint64(p[0x70:]) != acpiStart {
		t.Errorf("loader %#x, code32_start %#x, sentinel %#x, RSDP %#x", p[0x210], le.Uint32(p[0x214:]), p[0x1ef], le.Uint64(p[0x70:]))
	}
	if got := v.text(t, uint64(le.Uint32(p[0x228:]))); got != v.Cmdline {
		t.Errorf("command line %q", got)
	}
	at, n := uint64(le.Uint32(p[0x218:])), uint64(le.Uint32(p[0x21c:]))
	if n != 12345 || at != 8*mib-4*page || at != uint64(e.Initrd.Start) || v.at(t, at, n)[12344] != byte(12344%253)+1 {
		t.Errorf("initrd of %d bytes at %#x", n, at)
	}
	checkE820(t, p, e.Map)
	if len(bytes.Trim(v.at(t, 0, page), "\x00")) != 0 {
		t.Error("page 0 is not clear")
	}
	if got := fmt.Sprint(e.Map); got != "[0x0-0x9fbff RAM 0x9fc00-0xdffff reserved 0xe0000-0xeffff ACPI tables 0xf0000-0xfffff reserved 0x100000-0x7fffff RAM]" {
		t.Errorf("map %s", got)
	}
}

// checkE820 compares boot_params' table with the map.
func checkE820(t *testing.T, p []byte, m []boot.MapEntry) {
	t.Helper()
	if int(p[0x1e8]) != len(m) {
		t.Fatalf("%d entries, want %d", p[0x1e8], len(m))
	}
	for i, x := range m {
		b := p[0x2d0+20*i:]
		if le.Uint64(b) != uint64(x.Start) || le.Uint64(b[8:]) != x.Size || le.Uint32(b[16:]) != uint32(x.Type) {
			t.Errorf("entry %d: % x, want %v", i, b[:20], x)
		}
	}
	if len(bytes.Trim(p[0x2d0+20*len(m):], "\x00")) != 0 {
		t.Error("something is behind the map")
	}
}

func TestLoadingAgainGivesTheSame(t *testing.T) {
	t.Parallel()
	for name, file := range map[string][]byte{
		"bzImage": goodBz().bytes(), "ELF": makeELF(mib, load(mib, 4096, 0x90)), "PVH": makeELF(0, pvhNote(mib), load(mib, 4096, 0x90)),
	} {
		k := mustInspect(t, file)
		v := newVM(t, 8*mib).initrd(5000)
		e := mustLoad(t, k, v)
		first := bytes.Clone(v.data)
		for i := range v.data[:biosStart] { // the guest has used its memory
			v.data[i] ^= 0x55
		}
		for i := range v.data[mib : 8*mib] {
			v.data[mib+i] ^= 0x33
		}
		again := mustLoad(t, k, v)
		if fmt.Sprint(again) != fmt.Sprint(e) {
			t.Errorf("%s: %+v, then %+v", name, e, again)
		}
		info, size := e.RSI, uint64(page)
		if e.Mode == boot.Protected32 {
			info, size = e.RBX, 56+32+5*24
		}
		kernel := uint64(0x2000) // what is defined: a bzImage's code, an ELF's segment with its zeros
		for _, r := range [][2]uint64{{0, page}, {info, size}, {uint64(e.GDT), uint64(e.GDTLimit) + 1}, {mib, kernel}, {uint64(e.Initrd.Start), 5000}} {
			if !bytes.Equal(v.at(t, r[0], r[1]), first[r[0]:r[0]+r[1]]) {
				t.Errorf("%s: other bytes at %#x", name, r[0])
			}
		}
	}
}

func TestAKernelMovesIfItsPlaceIsTaken(t *testing.T) {
	t.Parallel()
	b := goodBz()
	b.alignment = 0x10000
	v := newVM(t, 8*mib)
	v.Reserved = []boot.Range{{Start: mib + 0x8000, Size: 0x9000}}
	if e := mustLoad(t, mustInspect(t, b.bytes()), v); uint64(e.Kernel.Start) != mib+0x20000 || e.RIP != mib+0x20200 {
		t.Errorf("at %v", e.Kernel)
	}
	b.reloc = 0
	_, err := mustInspect(t, b.bytes()).Load(v.Request)
	if err == nil || !strings.Contains(err.Error(), "kernel at 0x100000-0x10ffff: overlaps a reserved range at 0x108000-0x110fff") {
		t.Errorf("a kernel that cannot move: %v", err)
	}
}

func TestAPVHKernelIsToldItsMachine(t *testing.T) {
	t.Parallel()
	v := newVM(t, 8*mib).initrd(5000)
	v.Reserved = pieces(200) // more than boot_params could hold
	e := mustLoad(t, mustInspect(t, makeELF(5, pvhNote(mib+3), load(mib, 4096, 0x90), load(2*mib, 100, 0x91))), v)
	if e.Mode != boot.Protected32 || e.RIP != mib+3 {
		t.Fatalf("%+v", e)
	}
	if !bytes.Equal(v.at(t, mib, 8192), append(bytes.Repeat([]byte{0x90}, 4096), make([]byte, 4096)...)) || v.at(t, 2*mib, 101)[100] != 0 {
		t.Error("segments are not as the file has them")
	}
	s := v.at(t, e.RBX, 56)
	if le.Uint32(s) != 0x336ec578 || le.Uint32(s[4:]) != 1 || le.Uint32(s[8:]) != 0 || le.Uint32(s[12:]) != 1 || le.Uint64(s[32:]) != acpiStart {
		t.Errorf("start info % x", s)
	}
	if got := v.text(t, le.Uint64(s[24:])); got != v.Cmdline {
		t.Errorf("command line %q", got)
	}
	m := v.at(t, le.Uint64(s[16:]), 32)
	if le.Uint64(m) != uint64(e.Initrd.Start) || le.Uint64(m[8:]) != 5000 || v.at(t, le.Uint64(m), 1)[0] != 1 || le.Uint64(m[16:]) != 0 {
		t.Errorf("module % x", m)
	}
	if int(le.Uint32(s[48:])) != len(e.Map) || len(e.Map) < 400 {
		t.Errorf("%d ranges, %d told", len(e.Map), le.Uint32(s[48:]))
	}
	for i, x := range e.Map {
		b := v.at(t, le.Uint64(s[40:])+24*uint64(i), 24)
		if le.Uint64(b) != uint64(x.Start) || le.Uint64(b[8:]) != x.Size || le.Uint32(b[16:]) != uint32(x.Type) || le.Uint32(b[20:]) != 0 {
			t.Errorf("range %d: % x, want %v", i, b, x)
		}
	}
	v = newVM(t, 8*mib)
	e = mustLoad(t, mustInspect(t, makeELF(5, pvhNote(mib+3), load(mib, 4096, 0x90))), v)
	if s := v.at(t, e.RBX, 56); le.Uint32(s[12:]) != 0 || le.Uint64(s[16:]) != 0 {
		t.Errorf("modules without an initrd: % x", s)
	}
}

func TestAnotherELFIsEnteredAsABzImage(t *testing.T) {
	t.Parallel()
	v := newVM(t, 8*mib).initrd(77)
	e := mustLoad(t, mustInspect(t, makeELF(mib+7, load(mib, 4096, 0x90))), v)
	p := v.at(t, e.RSI, page)
	if e.RIP != mib+7 || string(p[0x202:0x206]) != "HdrS" || le.Uint16(p[0x1fe:]) != 0xaa55 || le.Uint16(p[0x206:]) != 0x20f || p[0x210] != 0xff || p[0x211]&1 == 0 {
		t.Errorf("%#x: % x", e.RIP, p[0x1f1:0x268])
	}
	if v.text(t, uint64(le.Uint32(p[0x228:]))) != v.Cmdline || le.Uint32(p[0x218:]) != 8*mib-page || le.Uint32(p[0x21c:]) != 77 || le.Uint64(p[0x70:]) != acpiStart {
		t.Errorf("% x", p[0x1f1:0x268])
	}
	checkE820(t, p, e.Map)
}

func TestAKernelMayUseLowMemory(t *testing.T) {
	t.Parallel()
	// Right where the boot structures would go, and at page 0.
	v := newVM(t, 8*mib)
	e := mustLoad(t, mustInspect(t, makeELF(0x1000, load(0x0, 0x4800, 0x90))), v)
	if uint64(e.GDT) < 0x9000 || !bytes.Equal(v.at(t, 0, 0x4800), bytes.Repeat([]byte{0x90}, 0x4800)) {
		t.Errorf("%+v", e)
	}
}

func TestMemoryAbove4GiBIsToldAndMapped(t *testing.T) {
	t.Parallel()
	const high = 1 << 32
	f, err := os.Create(filepath.Join(t.TempDir(), "ram")) // a sparse file
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // empty
	const low, above = 3 << 30, 2<<30 + 5*mib
	if err := f.Truncate(low + above); err != nil {
		t.Fatal(err)
	}
	mem, err := guestmem.Map([]guestmem.MapRegion{
		{Start: 0, Size: low, FD: int(f.Fd())}, {Start: high, Size: above, FD: int(f.Fd()), Offset: low},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close() //nolint:errcheck // the test's end
	v := &vm{data: mem.Regions()[0].Data}
	v.Memory, v.RSDP, v.ACPI = mem, acpiStart, boot.Range{Start: acpiStart, Size: 0x20000}
	v.RAM = []boot.Range{{Start: 0, Size: low}, {Start: high, Size: above}}
	v.Reserved = []boot.Range{{Start: 0xfec00000, Size: page}, {Start: 0xd0000000, Size: 2 * page}}
	v.initrd(page)
	b := goodBz()
	b.initrdMax = 0xffffffff
	e, err := mustInspect(t, b.bytes()).Load(v.Request)
	if err != nil {
		t.Fatal(err)
	}
	checkEntry(t, v, e)
	if uint64(e.Initrd.Start) != low-page {
		t.Errorf("initrd at %v", e.Initrd)
	}
	for _, a := range []uint64{high, high + above - 1, high + 3<<30 - 1} {
		if got, ok := walk(t, v, e.CR3, a); !ok || got != a {
			t.Errorf("%#x is mapped to %#x, %v", a, got, ok)
		}
	}
	if _, ok := walk(t, v, e.CR3, high+3<<30); ok {
		t.Error("more is mapped than there is")
	}
	want := "[0x0-0x9fbff RAM 0x9fc00-0xdffff reserved 0xe0000-0xfffff ACPI tables 0x100000-0xbfffffff RAM 0xd0000000-0xd0001fff reserved " +
		"0xfec00000-0xfec00fff reserved 0x100000000-0x1804fffff RAM]"
	if got := fmt.Sprint(e.Map); got != want {
		t.Errorf("map %s, want %s", got, want)
	}
}

func TestRAMOfSeveralRegionsIsOne(t *testing.T) {
	t.Parallel()
	// A region's border in the middle of the kernel, of its zeros and of the initrd.
	border := guestmem.GPA(mib + page)
	mem, err := guestmem.New(guestmem.Region{Start: 0, Data: make([]byte, border)}, guestmem.Region{Start: border, Data: make([]byte, 3*page)})
	if err != nil {
		t.Fatal(err)
	}
	v := newVM(t, mib)
	v.Memory = mem
	v.RAM = []boot.Range{{Start: 0, Size: uint64(border)}, {Start: border, Size: 3 * page}}
	code := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, page)[:3*page]
	e, err := mustInspect(t, makeELF(mib, prog{kind: ptLoad, paddr: mib, data: code, memSize: 3*page + 100})).Load(v.Request)
	if err != nil {
		t.Fatal(err)
	}
	if got := mem.Regions(); !bytes.Equal(got[0].Data[mib:], code[:page]) || !bytes.Equal(got[1].Data[:2*page], code[page:]) || e.Kernel.Size != 3*page+100 {
		t.Error("the kernel is not in memory")
	}
	v.RAM[1].Size += page
	if _, err := mustInspect(t, goodBz().bytes()).Load(v.Request); !errors.Is(err, guestmem.ErrRange) {
		t.Errorf("RAM without memory: %v", err)
	}
}
