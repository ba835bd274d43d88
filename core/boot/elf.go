package boot

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// Sizes of the ELF64 structures (System V ABI, "Object Files"), in bytes.
const (
	elfHeaderSize  = 64
	elfProgSize    = 56
	elfSectionSize = 64
	// maxSegments, maxNotes and maxSections bound what Inspect reads, in entries, bytes and bytes. Arbitrary, and far above
	// what a kernel has.
	maxSegments = 512
	maxNotes    = 1 << 20
	maxSections = 8 << 20
)

// segment is a PT_LOAD: fileSize bytes at off go to at, and zeros up to memSize.
type segment struct {
	at                guestmem.GPA
	virtual           uint64
	off               uint64
	fileSize, memSize uint64
}

func (g segment) where() Range { return Range{g.at, g.memSize} }

func isELF(head []byte) bool { return len(head) >= len(elf.ELFMAG) && string(head[:4]) == elf.ELFMAG }

func inspectELF(im image, head []byte) (*Kernel, error) {
	if err := checkELFHeader(im, head); err != nil {
		return nil, err
	}
	if hasSection(im, head, ".uml.setup.init") {
		return nil, fmt.Errorf("%w: %w", ErrNotKernel, ErrUserModeLinux)
	}
	le := binary.LittleEndian
	progs, n := le.Uint64(head[32:]), uint64(le.Uint16(head[56:]))
	switch size := le.Uint16(head[54:]); {
	case n == 0:
		return nil, fmt.Errorf("%w: an ELF file without segments", ErrNotKernel)
	case size != elfProgSize:
		return nil, fmt.Errorf("ELF header: %w: a program header of %d bytes, want %d", ErrBroken, size, elfProgSize)
	case n > maxSegments:
		return nil, fmt.Errorf("ELF header: %w: %d program headers, want at most %d", ErrBroken, n, maxSegments)
	}
	table, err := im.read(progs, n*elfProgSize, "ELF program headers")
	if err != nil {
		return nil, err
	}
	k := &Kernel{Format: ELF64, CmdlineMax: linuxCmdlineMax, file: im}
	if err := k.readSegments(table); err != nil {
		return nil, err
	}
	if err := k.findEntry(table, le.Uint64(head[24:])); err != nil {
		return nil, err
	}
	return k, nil
}

// checkELFHeader tells which programs are for this processor, and not for an operating system.
func checkELFHeader(im image, head []byte) error {
	if len(head) < elfHeaderSize {
		return fmt.Errorf("ELF header: %w: the file has %d bytes: copy or download it again", ErrTruncated, im.size)
	}
	le := binary.LittleEndian
	machine := elf.Machine(le.Uint16(head[18:]))
	switch class := elf.Class(head[elf.EI_CLASS]); {
	case elf.Data(head[elf.EI_DATA]) != elf.ELFDATA2LSB:
		return fmt.Errorf("%w: an ELF file for a big-endian processor; take one for x86-64", ErrNotKernel)
	case machine == elf.EM_386 || class == elf.ELFCLASS32 && machine == elf.EM_X86_64:
		return fmt.Errorf("%w: a 32-bit ELF file; take one for x86-64", ErrNotKernel)
	case class != elf.ELFCLASS64 || machine != elf.EM_X86_64:
		return fmt.Errorf("%w: an ELF file for %v; take one for x86-64", ErrNotKernel, machine)
	}
	switch t := elf.Type(le.Uint16(head[16:])); t { //nolint:exhaustive // the default
	case elf.ET_EXEC, elf.ET_DYN:
		return nil
	case elf.ET_REL:
		return fmt.Errorf("%w: an ELF object file (a kernel module?), not a linked program", ErrNotKernel)
	case elf.ET_CORE:
		return fmt.Errorf("%w: a core dump", ErrNotKernel)
	default:
		return fmt.Errorf("%w: an ELF file of type %v", ErrNotKernel, t)
	}
}

// readSegments takes the PT_LOADs of the program headers, and checks them against the file and each other.
func (k *Kernel) readSegments(table []byte) error {
	le := binary.LittleEndian
	for i := 0; len(table) >= elfProgSize; i++ {
		p := table[:elfProgSize]
		table = table[elfProgSize:]
		switch elf.ProgType(le.Uint32(p)) { //nolint:exhaustive // others do not matter
		case elf.PT_INTERP:
			return fmt.Errorf("%w: a program for an operating system (it has an interpreter)", ErrNotKernel)
		case elf.PT_LOAD:
		default:
			continue
		}
		g := segment{guestmem.GPA(le.Uint64(p[24:])), le.Uint64(p[16:]), le.Uint64(p[8:]), le.Uint64(p[32:]), le.Uint64(p[40:])}
		if g.memSize == 0 && g.fileSize == 0 {
			continue
		}
		if g.fileSize > g.memSize {
			return fmt.Errorf("ELF segment %d: %w: %d bytes in the file, %d in memory", i, ErrBroken, g.fileSize, g.memSize)
		}
		if !g.where().valid() {
			return fmt.Errorf("ELF segment %d: %w: physical address %v, %#x bytes: outside what a processor can address", i, ErrBroken, g.at, g.memSize)
		}
		if err := k.file.check(g.off, g.fileSize, fmt.Sprintf("ELF segment %d", i)); err != nil {
			return err
		}
		k.pieces = append(k.pieces, g)
	}
	if len(k.pieces) == 0 {
		return fmt.Errorf("%w: an ELF file with nothing to load", ErrNotKernel)
	}
	slices.SortFunc(k.pieces, func(a, b segment) int { return cmp.Compare(a.at, b.at) })
	for i := range k.pieces[1:] {
		if a, b := k.pieces[i].where(), k.pieces[i+1].where(); a.overlaps(b) {
			return fmt.Errorf("ELF segments: %w: %v and %v overlap", ErrBroken, a, b)
		}
	}
	return nil
}

// findEntry takes the PVH entry if there is one, else that of the ELF header. The latter is a physical address in Linux;
// elsewhere it may be a virtual one.
func (k *Kernel) findEntry(table []byte, entry uint64) error {
	pvh, found, err := k.pvhEntry(table)
	if err != nil {
		return err
	}
	if found {
		k.Format, k.Entry = ELFPVH, guestmem.GPA(pvh)
		if pvh >= pvhMaxAddress || !k.executes(pvh) {
			return fmt.Errorf("PVH note: %w: the entry %#x is in no segment below 4 GiB", ErrBroken, pvh)
		}
		return nil
	}
	k.Entry = guestmem.GPA(entry)
	if k.executes(entry) {
		return nil
	}
	for _, g := range k.pieces {
		if entry >= g.virtual && entry-g.virtual < g.fileSize {
			k.Entry = g.at + guestmem.GPA(entry-g.virtual)
			return nil
		}
	}
	return fmt.Errorf("ELF header: %w: the entry %#x is in no segment", ErrBroken, entry)
}

// executes tells whether a byte of the file is loaded at the physical address.
func (k *Kernel) executes(at uint64) bool {
	return slices.ContainsFunc(k.pieces, func(g segment) bool {
		return at >= uint64(g.at) && at-uint64(g.at) < g.fileSize
	})
}

// placeELF claims all segments.
func (k *Kernel) placeELF(s *space) (Range, error) {
	for _, g := range k.pieces {
		if err := s.claim("ELF segment", g.where()); err != nil {
			return Range{}, err
		}
	}
	first, last := k.pieces[0].at, k.pieces[len(k.pieces)-1].where()
	return Range{first, last.end() - uint64(first)}, nil
}

// loadELF copies all segments and clears what is not in the file.
func (k *Kernel) loadELF(mem *guestmem.Memory) error {
	for _, g := range k.pieces {
		if err := k.file.load(mem, g.at, g.off, g.fileSize, "ELF segment"); err != nil {
			return err
		}
		if err := zero(mem, g.at+guestmem.GPA(g.fileSize), g.memSize-g.fileSize); err != nil {
			return err
		}
	}
	return nil
}
