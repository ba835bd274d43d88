package boot

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"unicode/utf8"
)

// signature is how a kind of file begins.
type signature struct {
	off   int
	magic string
	what  string
}

// signatures of what people give for a kernel by mistake, and what to do.
func signatures() []signature {
	const unpack = "; unpack it first"
	return []signature{
		{0x38, "ARM\x64", "an arm64 kernel (Image); take one for x86-64 (amd64)"},
		{0x38, "RSC\x05", "a RISC-V kernel (Image); take one for x86-64 (amd64)"},
		{4, "zimg", "an EFI zboot kernel, as other processors have it; take one for x86-64 (amd64)"},
		{0, "MZ", "a Windows or EFI program (PE)"},
		{0, "070701", "an initrd (cpio archive): name it as the initrd, and a kernel as the kernel"},
		{0, "070702", "an initrd (cpio archive): name it as the initrd, and a kernel as the kernel"},
		{0, "#!", "a script"},
		{0, "\xfd7zXZ\x00", "an xz file (a compressed vmlinux or an initrd?)" + unpack},
		{0, "\x28\xb5\x2f\xfd", "a zstd file (a compressed vmlinux or an initrd?)" + unpack},
		{0, "\x02\x21\x4c\x18", "an lz4 file (a compressed vmlinux or an initrd?)" + unpack},
		{0, "\x04\x22\x4d\x18", "an lz4 file (a compressed vmlinux or an initrd?)" + unpack},
		{0, "BZh", "a bzip2 file (a compressed vmlinux or an initrd?)" + unpack},
		{0, "\x89LZO\x00", "an lzop file (a compressed vmlinux or an initrd?)" + unpack},
		{0, "\x5d\x00\x00", "an lzma file (a compressed vmlinux or an initrd?)" + unpack},
		{0, "\x27\x05\x19\x56", "a U-Boot image (uImage), of another processor; take one for x86-64 (amd64)"},
		{0, "\xd0\x0d\xfe\xed", "a device tree or FIT image; take a kernel for x86-64 (amd64)"},
		{0, "ANDROID!", "an Android boot image; take the kernel out of it"},
		{0, "!<arch>\n", "a Debian package or ar archive; take boot/vmlinuz-… out of it"},
		{0, "QFI\xfb", "a disk image (qcow2)"},
		{0, "hsqs", "a squashfs file system"},
		{257, "ustar", "a tar archive"},
		{510, "\x55\xaa", "a disk image (boot sector)"},
	}
}

// looksLike says what a file is that is no kernel, and what to do.
func looksLike(im image, head []byte) string {
	if bytes.HasPrefix(head, []byte("\x1f\x8b")) {
		return gzipped(im)
	}
	for _, s := range signatures() {
		if len(head) >= s.off && bytes.HasPrefix(head[s.off:], []byte(s.magic)) {
			return "it looks like " + s.what
		}
	}
	switch {
	case len(bytes.Trim(head, "\x00")) == 0:
		return "it begins with zeros (a disk image, or a download that failed?)"
	case isText(head):
		return "it looks like a text"
	}
	return "it is neither a bzImage nor an ELF file"
}

// gzipped says what is in a gzip file.
func gzipped(im image) string {
	z, err := gzip.NewReader(io.NewSectionReader(im.f, 0, int64(min(im.size, 1<<20))))
	if err != nil {
		return "it looks like a gzip file; unpack it first"
	}
	head := make([]byte, headSize)
	n, _ := io.ReadFull(z, head) // what is there will do
	switch head = head[:n]; {
	case isELF(head):
		return "it looks like a compressed vmlinux (gzip): unpack it first (gunzip)"
	case isBzImage(head):
		return "it looks like a compressed bzImage (gzip): unpack it first (gunzip)"
	}
	for _, s := range signatures() {
		if s.magic != "MZ" && len(head) >= s.off && bytes.HasPrefix(head[s.off:], []byte(s.magic)) {
			return "it looks like a gzip file of " + s.what
		}
	}
	return "it looks like a gzip file; unpack it first"
}

func isText(head []byte) bool {
	for len(head) > 0 && !utf8.FullRune(head[max(0, len(head)-utf8.UTFMax):]) {
		head = head[:len(head)-1]
	}
	return len(head) > 0 && utf8.Valid(head) && !strings.ContainsFunc(string(head), func(r rune) bool {
		return r < ' ' && !strings.ContainsRune("\t\n\r\f", r)
	})
}
