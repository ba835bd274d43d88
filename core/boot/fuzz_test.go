package boot_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// seeds are headers of each kind, whole and spoilt.
func seeds() [][]byte {
	old, small, moved, tiny := goodBz(), goodBz(), goodBz(), goodBz()
	old.version, small.initSize, moved.pref = 0x20b, 0, 64*mib
	// Of few bytes a mutation hits the header more often.
	tiny.sects, tiny.versionAt, tiny.code, tiny.sysSize, tiny.payload, tiny.payloadLen = 1, 0x100, 0x210, 0x21, 0x20, 0x10
	code := load(mib, 4096, 0x90)
	return [][]byte{
		tiny.bytes(), goodBz().bytes(), old.bytes(), small.bytes(), moved.bytes(), goodBz().bytes()[:0x1000],
		makeELF(mib, load(mib, 16, 1)), makeELF(mib, pvhNote(mib+1), load(mib, 16, 1)), makeELF(mib, pvhNote(mib+1), code), makeELF(mib, code, load(mib+100, 10, 1)), makeELF(mib, code)[:100],
		makeELF(0x1000, load(0, 0x4000, 1), load(0x9f000, 100, 2)), makeELF(1<<63, load(1<<63, 100, 1)),
		makeELF(mib, note("Xen", 18, make([]byte, 4), 8), interp("/lib"), code),
		gz(makeELF(mib, code)), []byte("#!/bin/sh\n"), []byte("070701"), nil,
	}
}

// sensible tells whether an error says more than nothing, in bounds.
func sensible(t *testing.T, err error, prefix string) {
	t.Helper()
	if text := err.Error(); !strings.HasPrefix(text, prefix) || len(text) > 500 || strings.ContainsAny(text, "\x00\x1b\n") || strings.Contains(text, "%!") {
		t.Errorf("error %q", text)
	}
}

func FuzzInspect(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, int64(0))
	}
	f.Add(goodBz().bytes(), int64(1<<40))
	f.Add(makeELF(mib, load(mib, 10, 1)), int64(1<<62))
	f.Fuzz(func(t *testing.T, file []byte, more int64) {
		// The size may be another than the file's.
		size := int64(len(file)) + max(more, -int64(len(file)))
		k, err := boot.Inspect(bytes.NewReader(file), size)
		if err != nil {
			sensible(t, err, "read kernel: ")
			if k != nil {
				t.Error("a kernel and an error")
			}
			known := false
			for _, e := range []error{boot.ErrNotKernel, boot.ErrUnsupported, boot.ErrTruncated, boot.ErrBroken} {
				known = known || errors.Is(err, e)
			}
			if !known {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		if k.Format != boot.BzImage && k.Format != boot.ELFPVH && k.Format != boot.ELF64 || k.CmdlineMax == 0 {
			t.Errorf("%+v", k)
		}
		for _, r := range k.Version {
			if r < ' ' || r > '~' {
				t.Errorf("version %q", k.Version)
			}
		}
	})
}

func FuzzLoad(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, uint16(512), uint16(5000), "console=ttyS0", uint32(2*mib), uint32(page))
	}
	f.Add(goodBz().bytes(), uint16(256+16), uint16(0), "", uint32(0), uint32(0))
	f.Add(goodBz().bytes(), uint16(256+17), uint16(4096), "", uint32(0x8000), uint32(0x98000))
	f.Add(makeELF(0x1000, load(0, 0x4000, 1)), uint16(20), uint16(1), "x", uint32(0), uint32(0))
	f.Fuzz(func(t *testing.T, file []byte, pages, initrd uint16, cmdline string, reserved, reservedSize uint32) {
		k, err := inspect(file)
		if err != nil {
			return
		}
		v := newVM(t, int(pages%600+1)*page)
		v.Cmdline = cmdline
		v.Reserved = []boot.Range{{Start: guestmem.GPA(reserved), Size: uint64(reservedSize)}}
		if initrd > 0 {
			v.initrd(int(initrd))
		}
		e, err := k.Load(v.Request)
		v.checkUntouched(t)
		if err != nil {
			sensible(t, err, "load kernel: ")
			if e.RIP != 0 || e.Map != nil {
				t.Errorf("an entry and an error: %+v", e)
			}
			return
		}
		checkEntry(t, v, e)
		checkDisjoint(t, v, e)
	})
}

// checkDisjoint tells whether what was placed lies in RAM and does not overlap.
func checkDisjoint(t *testing.T, v *vm, e boot.Entry) {
	t.Helper()
	info := e.RSI | e.RBX
	placed := []boot.Range{
		{Start: guestmem.GPA(info), Size: 56}, {Start: guestmem.GPA(e.RSP - 8), Size: 8}, {Start: e.GDT, Size: uint64(e.GDTLimit) + 1},
		e.Initrd, {Start: guestmem.GPA(e.CR3), Size: 6 * page},
	}
	if e.CR3 == 0 {
		placed = placed[:4]
	}
	if k := e.Kernel; k.Size > 0 && e.Mode == boot.Long64 && v.at(t, info+0x1f1, 1)[0] != 0 { // a bzImage, which is in one piece
		placed = append(placed, k)
	}
	for i, a := range placed {
		if a.Size == 0 {
			continue
		}
		v.at(t, uint64(a.Start), a.Size)
		for _, b := range append(placed[i+1:len(placed):len(placed)], v.ACPI, v.Reserved[0], boot.Range{Start: biosStart, Size: biosEnd - biosStart}) {
			if b.Size > 0 && uint64(a.Start) < uint64(b.Start)+b.Size && uint64(b.Start) < uint64(a.Start)+a.Size {
				t.Errorf("%v and %v overlap: %+v", a, b, e)
			}
		}
	}
}
