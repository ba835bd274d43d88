package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
)

// pvhEntry looks for XEN_ELFNOTE_PHYS32_ENTRY in the note segments.
func (k *Kernel) pvhEntry(table []byte) (entry uint64, found bool, err error) {
	le := binary.LittleEndian
	budget := uint64(maxNotes)
	for ; len(table) >= elfProgSize; table = table[elfProgSize:] {
		if elf.ProgType(le.Uint32(table)) != elf.PT_NOTE {
			continue
		}
		off, size := le.Uint64(table[8:]), le.Uint64(table[32:])
		if size > budget {
			return 0, false, fmt.Errorf("ELF notes: %w: more than %d bytes", ErrBroken, maxNotes)
		}
		budget -= size
		notes, err := k.file.read(off, size, "ELF notes")
		if err != nil {
			return 0, false, err
		}
		// Linkers align notes to 4 bytes, or to 8 if one of the inputs was; some then say 8 and mean 4.
		for _, align := range []uint64{4, 8} {
			if entry, found := phys32Entry(notes, align); found {
				return entry, true, nil
			}
		}
	}
	return 0, false, nil
}

// phys32Entry walks notes: name size, description size, type, then name and description, each padded to align.
func phys32Entry(notes []byte, align uint64) (uint64, bool) {
	const header = 12
	le := binary.LittleEndian
	for len(notes) >= header {
		nameSize, descSize, kind := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
		desc := alignUp(header+nameSize, align)
		if desc+descSize > uint64(len(notes)) {
			return 0, false
		}
		name, d := bytes.TrimRight(notes[header:header+nameSize], "\x00"), notes[desc:desc+descSize]
		if kind == notePhys32Entry && string(name) == noteNameXen {
			switch len(d) {
			case 4:
				return uint64(le.Uint32(d)), true
			case 8:
				return le.Uint64(d), true
			}
		}
		notes = notes[min(alignUp(desc+descSize, align), uint64(len(notes))):]
	}
	return 0, false
}

// hasSection tells whether the ELF file has a section of that name. A file whose section headers make no sense has none.
func hasSection(im image, head []byte, name string) bool {
	le := binary.LittleEndian
	off, n, strings := le.Uint64(head[40:]), uint64(le.Uint16(head[60:])), uint64(le.Uint16(head[62:]))
	if le.Uint16(head[58:]) != elfSectionSize || strings >= n {
		return false
	}
	table, err := im.read(off, n*elfSectionSize, "ELF sections")
	if err != nil {
		return false
	}
	s := table[strings*elfSectionSize:]
	textOff, textSize := le.Uint64(s[24:]), le.Uint64(s[32:])
	if textSize > maxSections {
		return false
	}
	text, err := im.read(textOff, textSize, "ELF section names")
	if err != nil {
		return false
	}
	want := append([]byte(name), 0)
	for ; len(table) >= elfSectionSize; table = table[elfSectionSize:] {
		at := uint64(le.Uint32(table))
		if at < textSize && bytes.HasPrefix(text[at:], want) {
			return true
		}
	}
	return false
}
