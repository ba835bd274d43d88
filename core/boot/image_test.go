package boot_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

const (
	page = guestmem.PageSize
	mib  = 1 << 20
	// The BIOS area and the ACPI tables of the tests' machine.
	biosStart, biosEnd = 0x9fc00, mib
	acpiStart          = 0xe0000
)

var le = binary.LittleEndian

// bz is a bzImage of which each field may be spoilt.
type bz struct {
	sects      byte
	bootFlag   uint16
	jump       byte
	version    uint16
	versionAt  uint16
	loadFlags  byte
	initrdMax  uint32
	alignment  uint32
	reloc      byte
	xload      uint16
	cmdline    uint32
	payload    uint32
	payloadLen uint32
	pref       uint64
	initSize   uint32
	sysSize    uint32 // in units of 16 bytes
	code       int    // bytes of code in the file
}

// goodBz is a small kernel for 1 MiB that needs 64 KiB.
func goodBz() bz {
	return bz{
		sects: 3, bootFlag: 0xaa55, jump: 0x6a, version: 0x20f, versionAt: 0x300, loadFlags: 1, initrdMax: 0x7fffffff, alignment: 0x1000,
		reloc: 1, xload: 3, cmdline: 100, payload: 0x300, payloadLen: 0x100, pref: mib, initSize: 0x10000, sysSize: 0x200, code: 0x2000,
	}
}

func (k bz) bytes() []byte {
	setup := (int(k.sects) + 1) * 512
	if k.sects == 0 {
		setup = 5 * 512
	}
	b := make([]byte, max(setup, 0x400)+k.code)
	for i := range b[setup:] {
		b[setup+i] = byte(i%251) + 1
	}
	b[0x1ef] = 0xff // the sentinel, which no loader may copy
	b[0x1f1] = k.sects
	le.PutUint32(b[0x1f4:], k.sysSize)
	le.PutUint16(b[0x1fe:], k.bootFlag)
	b[0x200], b[0x201] = 0xeb, k.jump
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], k.version)
	le.PutUint16(b[0x20e:], k.versionAt)
	b[0x211] = k.loadFlags
	le.PutUint32(b[0x22c:], k.initrdMax)
	le.PutUint32(b[0x230:], k.alignment)
	b[0x234] = k.reloc
	le.PutUint16(b[0x236:], k.xload)
	le.PutUint32(b[0x238:], k.cmdline)
	le.PutUint32(b[0x248:], k.payload)
	le.PutUint32(b[0x24c:], k.payloadLen)
	le.PutUint64(b[0x258:], k.pref)
	le.PutUint32(b[0x260:], k.initSize)
	if k.versionAt != 0 && int(k.versionAt)+0x200 < setup {
		copy(b[int(k.versionAt)+0x200:], "6.1.0-test (a@b) #1 SMP\x00")
	}
	return b
}

// prog is a program header and what it loads.
type prog struct {
	kind          uint32
	paddr, vaddr  uint64
	data          []byte
	memSize       uint64
	off, fileSize uint64 // instead of data's, if not 0
}

const ptLoad, ptInterp, ptNote = uint32(elf.PT_LOAD), uint32(elf.PT_INTERP), uint32(elf.PT_NOTE)

// makeELF puts an ELF64 program together.
func makeELF(entry uint64, progs ...prog) []byte {
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: entry, Phoff: 64, Ehsize: 64, Phentsize: 56,
		Phnum: uint16(len(progs)), //nolint:gosec // G115: a few
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var b bytes.Buffer
	must(binary.Write(&b, le, &h))
	off := uint64(64 + 56*len(progs))
	for _, p := range progs {
		ph := elf.Prog64{
			Type: p.kind, Flags: 7, Off: off, Vaddr: p.vaddr, Paddr: p.paddr, Filesz: uint64(len(p.data)), Memsz: p.memSize,
		}
		off += uint64(len(p.data))
		if p.off != 0 {
			ph.Off = p.off
		}
		if p.fileSize != 0 {
			ph.Filesz = p.fileSize
		}
		must(binary.Write(&b, le, &ph))
	}
	for _, p := range progs {
		b.Write(p.data)
	}
	return b.Bytes()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// load is a PT_LOAD of n bytes of fill at addr, with as many zeros behind.
func load(addr uint64, n int, fill byte) prog {
	return prog{kind: ptLoad, paddr: addr, vaddr: addr, data: bytes.Repeat([]byte{fill}, n), memSize: 2 * uint64(n)} //nolint:gosec // G115: positive
}

// note is a PT_NOTE with one note.
func note(name string, kind uint32, desc []byte, align int) prog {
	pad := func(b []byte) []byte {
		for len(b)%align != 0 {
			b = append(b, 0)
		}
		return b
	}
	n := append([]byte(name), 0)
	b := le.AppendUint32(nil, uint32(len(n))) //nolint:gosec // G115: short
	b = le.AppendUint32(b, uint32(len(desc))) //nolint:gosec // G115: short
	b = pad(append(le.AppendUint32(b, kind), n...))
	return prog{kind: ptNote, data: pad(append(b, desc...))}
}

// pvhNote is the note that names a PVH entry.
func pvhNote(entry uint64) prog { return note("Xen", 18, le.AppendUint64(nil, entry), 4) }

func inspect(b []byte) (*boot.Kernel, error) { return boot.Inspect(bytes.NewReader(b), int64(len(b))) }

// vm is a machine with RAM from 0 and, below and above what may be written, bytes that must not change.
type vm struct {
	boot.Request

	data []byte
}

const untouched = 0xa5

// newVM makes a machine of size bytes; its memory is not zero, as after a reboot. The last page is not RAM.
func newVM(t *testing.T, size int) *vm {
	t.Helper()
	v := &vm{data: bytes.Repeat([]byte{untouched}, size+page)}
	mem, err := guestmem.New(guestmem.Region{Start: 0, Data: v.data})
	if err != nil {
		t.Fatal(err)
	}
	v.Memory = mem
	v.RAM = []boot.Range{{Start: 0, Size: uint64(size)}} //nolint:gosec // G115: positive
	v.RSDP = acpiStart
	v.ACPI = boot.Range{Start: acpiStart, Size: 0x10000}
	v.Cmdline = "console=ttyS0"
	return v
}

func (v *vm) initrd(n int) *vm {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i%253) + 1
	}
	v.Initrd, v.InitrdSize = bytes.NewReader(b), int64(n)
	return v
}

// checkUntouched tells what was written outside RAM or in the BIOS area, the tables and the reserved ranges.
func (v *vm) checkUntouched(t *testing.T) {
	t.Helper()
	ram := v.RAM[0].Size
	keep := append([]boot.Range{{Start: biosStart, Size: biosEnd - biosStart}, {Start: guestmem.GPA(ram), Size: page}, v.ACPI}, v.Reserved...)
	for _, r := range keep {
		end := min(uint64(r.Start)+r.Size, uint64(len(v.data)))
		if uint64(r.Start) >= end {
			continue
		}
		if b := v.data[r.Start:end]; bytes.Count(b, []byte{untouched}) != len(b) {
			t.Fatalf("%d bytes written in %v", len(b)-bytes.Count(b, []byte{untouched}), r)
		}
	}
}

// at returns n bytes of guest memory.
func (v *vm) at(t *testing.T, a, n uint64) []byte {
	t.Helper()
	if a > uint64(len(v.data)) || n > uint64(len(v.data))-a {
		t.Fatalf("%#x+%#x: outside memory", a, n)
	}
	return v.data[a : a+n]
}

// text returns the NUL-terminated string at a.
func (v *vm) text(t *testing.T, a uint64) string {
	t.Helper()
	s, _, found := bytes.Cut(v.at(t, a, uint64(len(v.data))-a), []byte{0})
	if !found {
		t.Fatalf("no NUL behind %#x", a)
	}
	return string(s)
}
