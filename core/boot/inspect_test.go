package boot_test

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/core/boot"
)

func gz(b []byte) []byte {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, err := w.Write(b)
	must(err)
	must(w.Close())
	return z.Bytes()
}

// set returns a copy of b with the bytes at off replaced.
func set(b []byte, off int, v ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[off:], v)
	return b
}

// behind returns a text behind n zeros.
func behind(n int, text string) []byte {
	return append(make([]byte, n), text+strings.Repeat("\x00", 600)...)
}

func TestWhatIsNoKernelIsNamed(t *testing.T) {
	t.Parallel()
	prog := makeELF(mib, load(mib, 100, 0x90))
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":              {nil, "an empty file"},
		"gzip of an ELF":     {gz(prog), "compressed vmlinux (gzip)"},
		"gzip of a bzImage":  {gz(goodBz().bytes()), "compressed bzImage"},
		"gzip of an initrd":  {gz([]byte("070701" + strings.Repeat("0", 200))), "gzip file of an initrd"},
		"gzip of a tar":      {gz(behind(257, "ustar")), "gzip file of a tar"},
		"gzip of something":  {gz([]byte("x")), "a gzip file; unpack it first"},
		"broken gzip":        {[]byte("\x1f\x8b\x00"), "a gzip file"},
		"initrd":             {[]byte("070701" + strings.Repeat("0", 200)), "an initrd (cpio archive)"},
		"script":             {[]byte("#!/bin/sh\necho\n"), "a script"},
		"text":               {[]byte("Linux wäre schön\n"), "a text"},
		"PE":                 {[]byte("MZ\x90\x00 This program cannot be run"), "(PE)"},
		"arm64":              {behind(0x38, "ARM\x64"), "an arm64 kernel"},
		"arm64 with EFI":     {set(behind(0x38, "ARM\x64"), 0, 'M', 'Z'), "an arm64 kernel"},
		"RISC-V":             {behind(0x38, "RSC\x05"), "a RISC-V kernel"},
		"EFI zboot":          {[]byte("MZ\x00\x00zimg" + strings.Repeat("\x00", 99)), "zboot"},
		"xz":                 {[]byte("\xfd7zXZ\x00..."), "an xz file"},
		"zstd":               {[]byte("\x28\xb5\x2f\xfd..."), "a zstd file"},
		"lz4":                {[]byte("\x02\x21\x4c\x18..."), "an lz4 file"},
		"package":            {[]byte("!<arch>\ndebian-binary"), "a Debian package"},
		"qcow2":              {[]byte("QFI\xfb\x00\x00\x00\x03"), "qcow2"},
		"disk":               {behind(510, "\x55\xaa"), "a disk image"},
		"zeros":              {make([]byte, 5000), "begins with zeros"},
		"noise":              {bytes.Repeat([]byte{1, 2, 200}, 1000), "neither a bzImage nor an ELF file"},
		"one byte":           {[]byte{200}, "neither a bzImage nor an ELF file"},
		"32-bit ELF":         {set(prog, elf.EI_CLASS, 1, 1), "a 32-bit ELF"},
		"i386 ELF":           {set(set(prog, elf.EI_CLASS, 1), 18, 3), "a 32-bit ELF"},
		"arm64 ELF":          {set(prog, 18, 183), "EM_AARCH64"},
		"big-endian ELF":     {set(prog, elf.EI_DATA, 2), "big-endian"},
		"object file":        {set(prog, 16, 1), "a kernel module?"},
		"core dump":          {set(prog, 16, 4), "a core dump"},
		"ELF of no type":     {set(prog, 16, 0), "ET_NONE"},
		"ELF without loads":  {makeELF(0, note("x", 1, nil, 4)), "nothing to load"},
		"ELF without header": {makeELF(0), "without segments"},
		"program":            {makeELF(mib, interp("/lib64/ld.so"), load(mib, 100, 0x90)), "has an interpreter"},
	} {
		k, err := inspect(c.file)
		if k != nil || !errors.Is(err, boot.ErrNotKernel) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v: want %q", name, k, err, c.want)
		}
	}
}

// interp is a PT_INTERP.
func interp(name string) prog { return prog{kind: ptInterp, data: []byte(name + "\x00")} }

func TestUserModeLinuxIsToldItsMachine(t *testing.T) {
	t.Parallel()
	uml, err := exec.LookPath("linux.uml")
	if err != nil {
		t.Skip("MISSING: no User-Mode Linux: apt-get install user-mode-linux")
	}
	f, size := openFile(t, uml)
	_, err = boot.Inspect(f, size)
	if !errors.Is(err, boot.ErrUserModeLinux) || !errors.Is(err, boot.ErrNotKernel) || !strings.Contains(err.Error(), "runs on machine uml") {
		t.Error(err)
	}
}

// withSection appends section headers: one of that name, which is at index.
func withSection(file []byte, name string, index uint32) []byte {
	file = bytes.Clone(file)
	names := uint64(len(file))
	file = append(append(append(file, 0), name...), 0)
	table := uint64(len(file))
	section := func(name uint32, off, size uint64) []byte {
		b := make([]byte, 64)
		le.PutUint32(b, name)
		le.PutUint64(b[24:], off)
		le.PutUint64(b[32:], size)
		return b
	}
	file = append(file, section(0, names, table-names)...)
	file = append(file, section(index, 0, 0)...)
	le.PutUint64(file[40:], table)
	copy(file[58:], []byte{64, 0, 2, 0, 0, 0})
	return file
}

func TestSectionsAreReadWithCare(t *testing.T) {
	t.Parallel()
	program := makeELF(mib, load(mib, 100, 0x90))
	uml := withSection(program, ".uml.setup.init", 1)
	if _, err := inspect(uml); !errors.Is(err, boot.ErrUserModeLinux) {
		t.Error(err)
	}
	for name, file := range map[string][]byte{
		"another name":           withSection(program, ".uml.setup.fini", 1),
		"a longer name":          withSection(program, ".uml.setup.init.x", 1),
		"name beyond the names":  withSection(program, ".uml.setup.init", 1000),
		"names that do not end":  set(uml, len(uml)-128+32, 16),
		"names beyond the file":  set(uml, len(uml)-128+24, 0, 0, 0, 0, 0, 0, 0, 0xff),
		"names without an end":   set(uml, len(uml)-128+32, 0, 0, 0, 0, 0, 0, 0, 0xff),
		"table beyond the file":  set(uml, 40, 0, 0, 0, 0, 0, 0, 0, 0xff),
		"names in no section":    set(uml, 62, 2),
		"sections of other size": set(uml, 58, 32),
	} {
		if k, err := inspect(file); err != nil || k.Format != boot.ELF64 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func openFile(t *testing.T, name string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(name) //nolint:gosec // G304: the test's choice
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}

func TestBrokenBzImagesAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*bz)
		is    error
		want  string
	}{
		"boot flag":                  {func(k *bz) { k.bootFlag = 0 }, boot.ErrBroken, "boot flag"},
		"ancient protocol":           {func(k *bz) { k.version = 0x205 }, boot.ErrUnsupported, "protocol 2.05"},
		"old protocol":               {func(k *bz) { k.version = 0x20b }, boot.ErrUnsupported, "2.11: the 64-bit entry needs 2.12"},
		"zImage":                     {func(k *bz) { k.loadFlags = 0 }, boot.ErrUnsupported, "zImage"},
		"32-bit kernel":              {func(k *bz) { k.xload = 2 }, boot.ErrUnsupported, "32-bit kernel"},
		"short header":               {func(k *bz) { k.jump = 0x20 }, boot.ErrBroken, "ends at 0x222"},
		"long header":                {func(k *bz) { k.jump = 0xff }, boot.ErrBroken, "ends at 0x301"},
		"alignment 0":                {func(k *bz) { k.alignment = 0 }, boot.ErrBroken, "kernel_alignment"},
		"odd alignment":              {func(k *bz) { k.alignment = 0x3000 }, boot.ErrBroken, "kernel_alignment"},
		"huge alignment":             {func(k *bz) { k.alignment = 1 << 31 }, boot.ErrBroken, "kernel_alignment"},
		"low pref_address":           {func(k *bz) { k.pref = 0x1000 }, boot.ErrBroken, "pref_address"},
		"high pref_address":          {func(k *bz) { k.pref = 1<<64 - page }, boot.ErrBroken, "pref_address"},
		"pref_address not aligned":   {func(k *bz) { k.pref = mib + 1 }, boot.ErrBroken, "pref_address"},
		"pref_address off alignment": {func(k *bz) { k.alignment = 2 * mib }, boot.ErrBroken, "no multiple of kernel_alignment"},
		"no code":                    {func(k *bz) { k.sysSize = 0 }, boot.ErrBroken, "syssize"},
		"no code at the entry":       {func(k *bz) { k.sysSize = 0x20 }, boot.ErrBroken, "syssize"},
		"more code than memory":      {func(k *bz) { k.sysSize = 1<<32 - 1 }, boot.ErrBroken, "syssize"},
		"truncated code":             {func(k *bz) { k.code = 0x1ff0 }, boot.ErrTruncated, "kernel code"},
		"setup beyond the file":      {func(k *bz) { k.code, k.sects = 0, 3; k.sysSize = 0x20000 }, boot.ErrTruncated, "kernel code"},
		"payload beyond the code":    {func(k *bz) { k.payload = 0x1f01 }, boot.ErrBroken, "payload"},
		"payload that wraps":         {func(k *bz) { k.payload, k.payloadLen = 1<<32-1, 1<<32-1 }, boot.ErrBroken, "payload"},
		"init_size too small":        {func(k *bz) { k.initSize = 0x1fff }, boot.ErrBroken, "init_size"},
		"init_size 0":                {func(k *bz) { k.initSize = 0 }, boot.ErrBroken, "init_size"},
	} {
		b := goodBz()
		c.spoil(&b)
		k, err := inspect(b.bytes())
		if k != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v: want %q", name, k, err, c.want)
		}
	}
}

func TestGoodBzImagesAreDescribed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*bz)
		want   boot.Kernel
	}{
		"as is":        {func(*bz) {}, boot.Kernel{Version: "6.1.0-test (a@b) #1 SMP", Protocol: 0x20f, CmdlineMax: 100, Entry: mib + 0x200}},
		"oldest":       {func(k *bz) { k.version, k.jump = 0x20c, 0x62 }, boot.Kernel{Version: "6.1.0-test (a@b) #1 SMP", Protocol: 0x20c, CmdlineMax: 100, Entry: mib + 0x200}},
		"newer":        {func(k *bz) { k.version = 0x230 }, boot.Kernel{Version: "6.1.0-test (a@b) #1 SMP", Protocol: 0x230, CmdlineMax: 100, Entry: mib + 0x200}},
		"no version":   {func(k *bz) { k.versionAt = 0 }, boot.Kernel{Protocol: 0x20f, CmdlineMax: 100, Entry: mib + 0x200}},
		"version away": {func(k *bz) { k.versionAt = 0xffff }, boot.Kernel{Protocol: 0x20f, CmdlineMax: 100, Entry: mib + 0x200}},
		"no limit":     {func(k *bz) { k.cmdline, k.versionAt = 0, 0 }, boot.Kernel{Protocol: 0x20f, CmdlineMax: 255, Entry: mib + 0x200}},
		"no sectors":   {func(k *bz) { k.sects, k.versionAt = 0, 0 }, boot.Kernel{Protocol: 0x20f, CmdlineMax: 100, Entry: mib + 0x200}},
		"not movable":  {func(k *bz) { k.reloc, k.alignment, k.versionAt = 0, 0, 0 }, boot.Kernel{Protocol: 0x20f, CmdlineMax: 100, Entry: mib + 0x200}},
		"last unit":    {func(k *bz) { k.code, k.versionAt = 0x1ff1, 0 }, boot.Kernel{Protocol: 0x20f, CmdlineMax: 100, Entry: mib + 0x200}},
	} {
		b := goodBz()
		c.change(&b)
		k, err := inspect(b.bytes())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if k.Format != boot.BzImage || k.Version != c.want.Version || k.Protocol != c.want.Protocol || k.CmdlineMax != c.want.CmdlineMax || k.Entry != c.want.Entry {
			t.Errorf("%s: %v %q %#x %d %v", name, k.Format, k.Version, k.Protocol, k.CmdlineMax, k.Entry)
		}
	}
}

func TestTruncationIsToldAtAnyPoint(t *testing.T) {
	t.Parallel()
	bzImage := goodBz().bytes()
	program := makeELF(mib, pvhNote(mib), load(mib, 5000, 0x90))
	for n := 1; n < len(bzImage)-15; n += 7 { // the last unit of syssize may be incomplete
		if _, err := inspect(bzImage[:n]); !errors.Is(err, boot.ErrTruncated) && !errors.Is(err, boot.ErrNotKernel) {
			t.Fatalf("bzImage of %d bytes: %v", n, err)
		} else if n >= 0x206 && !errors.Is(err, boot.ErrTruncated) {
			t.Fatalf("bzImage of %d bytes is not told to be truncated: %v", n, err)
		}
	}
	for n := 4; n < len(program); n += 7 {
		if _, err := inspect(program[:n]); !errors.Is(err, boot.ErrTruncated) {
			t.Fatalf("ELF of %d bytes: %v", n, err)
		}
	}
	// A size that is not the file's: it shrank meanwhile.
	if _, err := boot.Inspect(bytes.NewReader(program[:100]), int64(len(program))); !errors.Is(err, boot.ErrTruncated) {
		t.Error(err)
	}
	if _, err := boot.Inspect(bytes.NewReader(nil), -1); !errors.Is(err, boot.ErrNotKernel) {
		t.Error(err)
	}
	failing := io.NewSectionReader(failingReader{}, 0, 5000)
	if _, err := boot.Inspect(failing, 5000); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a read error: %v", err)
	}
}

// failingReader fails as a bad disk does.
type failingReader struct{}

func (failingReader) ReadAt([]byte, int64) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestBrokenELFFilesAreRefused(t *testing.T) {
	t.Parallel()
	code := load(mib, 4096, 0x90)
	many := make([]prog, 600)
	for i := range many {
		many[i] = load(mib+uint64(i)<<16, 16, 1)
	}
	for name, c := range map[string]struct {
		file []byte
		is   error
		want string
	}{
		"overlapping segments":     {makeELF(mib, code, load(mib+8191, 16, 1)), boot.ErrBroken, "overlap"},
		"the same segment twice":   {makeELF(mib, code, code), boot.ErrBroken, "overlap"},
		"one within another":       {makeELF(mib, load(mib, 1<<16, 1), load(mib+0x800, 16, 1)), boot.ErrBroken, "overlap"},
		"segment that wraps":       {makeELF(mib, code, load(1<<64-16, 16, 1)), boot.ErrBroken, "outside what a processor can address"},
		"segment at a high half":   {makeELF(mib, load(0xffffffff81000000, 16, 1)), boot.ErrBroken, "outside what a processor can address"},
		"more file than memory":    {makeELF(mib, prog{kind: ptLoad, paddr: mib, data: make([]byte, 100), memSize: 99}), boot.ErrBroken, "100 bytes in the file"},
		"truncated segment":        {makeELF(mib, prog{kind: ptLoad, paddr: mib, data: make([]byte, 100), fileSize: 101, memSize: 200}), boot.ErrTruncated, "ELF segment 0"},
		"segment beyond the file":  {makeELF(mib, prog{kind: ptLoad, paddr: mib, data: make([]byte, 100), off: 1<<64 - 50, memSize: 200}), boot.ErrTruncated, "ELF segment 0"},
		"entry nowhere":            {makeELF(0, code), boot.ErrBroken, "the entry 0x0 is in no segment"},
		"entry in what is cleared": {makeELF(mib+4096, code), boot.ErrBroken, "is in no segment"},
		"PVH entry nowhere":        {makeELF(mib, pvhNote(2*mib), code), boot.ErrBroken, "PVH note"},
		"PVH entry above 4 GiB":    {makeELF(mib, pvhNote(1<<32), load(1<<32, 16, 1)), boot.ErrBroken, "PVH note"},
		"odd header size":          {set(makeELF(mib, code), 54, 32), boot.ErrBroken, "program header of 32 bytes"},
		"too many headers":         {makeELF(mib, many...), boot.ErrBroken, "600 program headers"},
		"headers beyond the file":  {set(makeELF(mib, code), 32, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), boot.ErrTruncated, "ELF program headers"},
		"notes beyond the file":    {makeELF(mib, prog{kind: ptNote, off: 1 << 40, fileSize: 16}, code), boot.ErrTruncated, "ELF notes"},
		"too many notes":           {makeELF(mib, prog{kind: ptNote, fileSize: 2 * mib}, code), boot.ErrBroken, "ELF notes"},
	} {
		k, err := inspect(c.file)
		if k != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v: want %q", name, k, err, c.want)
		}
	}
}

func TestTheEntryOfAnELFIsFound(t *testing.T) {
	t.Parallel()
	code := load(mib, 4096, 0x90)
	virtual := code
	virtual.vaddr = 0xffffffff80100000
	other := note("GNU", 18, make([]byte, 8), 4)
	padded := note("GNU", 3, make([]byte, 4), 8) // as long as none of the next is aligned to 4
	padded.data = append(padded.data, note("Xen", 18, le.AppendUint64(nil, mib+8), 8).data...)
	for name, c := range map[string]struct {
		file   []byte
		format boot.Format
		entry  uint64
	}{
		"physical":                     {makeELF(mib+5, code), boot.ELF64, mib + 5},
		"virtual":                      {makeELF(0xffffffff80100007, virtual), boot.ELF64, mib + 7},
		"PVH":                          {makeELF(mib+5, pvhNote(mib+9), code), boot.ELFPVH, mib + 9},
		"PVH of 32 bits":               {makeELF(0, note("Xen", 18, []byte{3, 0, 0x10, 0}, 4), code), boot.ELFPVH, mib + 3},
		"PVH behind other notes":       {makeELF(0, other, note("Xen", 5, make([]byte, 3), 4), pvhNote(mib+2), code), boot.ELFPVH, mib + 2},
		"PVH with notes aligned to 8":  {makeELF(0, padded, code), boot.ELFPVH, mib + 8},
		"another's note of that type":  {makeELF(mib, other, code), boot.ELF64, mib},
		"a Xen note of odd size":       {makeELF(mib, note("Xen", 18, []byte{1, 2}, 4), code), boot.ELF64, mib},
		"a note with a wild name size": {makeELF(mib, prog{kind: ptNote, data: []byte{0xff, 0xff, 0xff, 0xff, 8, 0, 0, 0, 18, 0, 0, 0, 'X', 'e', 'n', 0}}, code), boot.ELF64, mib},
		"an empty segment":             {makeELF(mib, prog{kind: ptLoad, paddr: 1 << 60}, code), boot.ELF64, mib},
		"position-independent":         {set(makeELF(mib, code), 16, 3), boot.ELF64, mib},
	} {
		k, err := inspect(c.file)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if k.Format != c.format || uint64(k.Entry) != c.entry {
			t.Errorf("%s: %v at %v, want %v at %#x", name, k.Format, k.Entry, c.format, c.entry)
		}
	}
}
