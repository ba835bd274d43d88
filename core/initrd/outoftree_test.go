package initrd

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// moduleFile makes a relocatable ELF file with a section of a name.
func moduleFile(section, text string) []byte {
	names := "\x00" + section + "\x00.shstrtab\x00"
	const head, entry = 64, 64
	le := binary.LittleEndian
	b := make([]byte, head)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)  // ET_REL
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[40:], uint64(head+len(text)+len(names)))
	le.PutUint16(b[52:], head)
	le.PutUint16(b[58:], entry)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	b = append(b, text+names...) //nolint:makezero // the header is filled above
	header := func(name, kind uint32, offset, size uint64) {
		s := make([]byte, entry)
		le.PutUint32(s, name)
		le.PutUint32(s[4:], kind)
		le.PutUint64(s[24:], offset)
		le.PutUint64(s[32:], size)
		b = append(b, s...) //nolint:makezero // as above
	}
	size := uint64(len(text))
	header(0, 0, 0, 0)
	header(1, 1, head, size)
	header(uint32(len(section)+2), 3, head+size, uint64(len(names))) //nolint:gosec // G115: a short name
	return b
}

const busInfo = "license=GPL\x00alias=acpi*:VPLG0001:*\x00depends=virtio,virtio_ring\x00name=lguest_bus\x00vermagic=9.9-cloud SMP preempt \x00"

// kernelTree makes a kernel image and its directory of modules.
func kernelTree(t *testing.T, files map[string]string) (image, dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return write(t, "vmlinux", "Linux version 9.9-cloud (x)", 0o600), dir
}

// compressed compresses with one of the ways of distributions.
func compressed(t *testing.T, end, text string) string {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch end {
	case ".gz":
		w = gzip.NewWriter(&b)
	case ".xz": // as scripts/Makefile.modinst of Linux does
		w, err = xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20}.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	default:
		return text
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCompressedModulesAreInTheArchiveAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"", ".gz", ".xz", ".zst"} {
		image, dir := kernelTree(t, map[string]string{
			"modules.dep":           "k/virtio_blk.ko" + end + ": k/virtio.ko" + end + "\nk/virtio.ko" + end + ":\n",
			"k/virtio_blk.ko" + end: compressed(t, end, "the disk's"),
			"k/virtio.ko" + end:     compressed(t, end, "the core's"),
		})
		tr := tree{}
		if err := addKernelModules(tr, Options{Kernels: []string{image}, ModuleDir: dir}); err != nil {
			t.Fatalf("%s: %v", end, err)
		}
		for name, want := range map[string]string{
			"lib/modules/9.9-cloud/k/virtio_blk.ko": "the disk's",
			"lib/modules/9.9-cloud/k/virtio.ko":     "the core's",
			"lib/modules/9.9-cloud/modules.dep":     "k/virtio.ko: \nk/virtio_blk.ko: k/virtio.ko\n",
		} {
			if got := string(tr[name].data); got != want {
				t.Errorf("%s: %s is %q, want %q", end, name, got, want)
			}
		}
	}
}

func TestABrokenCompressedModuleIsNamed(t *testing.T) {
	t.Parallel()
	for _, end := range compressions {
		name := write(t, "x.ko"+end, "nonsense", 0o600)
		if _, err := readModule(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", end, err)
		}
		cut := compressed(t, end, strings.Repeat("a module ", 1000))
		if _, err := readModule(write(t, "x.ko"+end, cut[:len(cut)-9], 0o600)); err == nil {
			t.Errorf("%s: a cut file is not noticed", end)
		}
	}
}

func TestAFurtherModuleIsLoadedAtBoot(t *testing.T) {
	t.Parallel()
	image, dir := kernelTree(t, map[string]string{
		"modules.dep":      "k/virtio.ko: k/virtio_ring.ko\nk/virtio_ring.ko:\nk/other.ko:\n",
		"modules.alias":    "alias x other\n",
		"k/virtio.ko":      "v",
		"k/virtio_ring.ko": "r",
		"k/other.ko":       "o",
	})
	file := write(t, "bus.ko", string(moduleFile(".modinfo", busInfo)), 0o600)
	tr := tree{}
	if err := addKernelModules(tr, Options{Kernels: []string{image, image}, ModuleDir: dir, Modules: []string{file}}); err == nil {
		t.Error("one module directory for several kernels is not refused")
	}
	if err := addKernelModules(tr, Options{Kernels: []string{image}, ModuleDir: dir, Modules: []string{file}}); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for name, e := range tr {
		if e.mode&typeMask == typeRegular && !strings.HasSuffix(name, ".ko") {
			got[name] = string(e.data)
		}
	}
	want := map[string]string{
		"etc/modules": "lguest_bus\n",
		"lib/modules/9.9-cloud/modules.dep": "k/virtio.ko: k/virtio_ring.ko\nk/virtio_ring.ko: \n" +
			"updates/lguest_bus.ko: k/virtio.ko k/virtio_ring.ko\n",
		"lib/modules/9.9-cloud/modules.alias":   "alias acpi*:VPLG0001:* lguest_bus\n",
		"lib/modules/9.9-cloud/modules.symbols": "",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	if !tr.has("lib/modules/9.9-cloud/updates/lguest_bus.ko") || tr.has("lib/modules/9.9-cloud/k/other.ko") {
		t.Error("the wrong modules are there")
	}
}

func TestAModuleThatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	image, dir := kernelTree(t, map[string]string{"modules.dep": "k/virtio.ko:\n", "k/virtio.ko": "v"})
	file := func(section, info string) string { return write(t, "m.ko", string(moduleFile(section, info)), 0o600) }
	for _, c := range []struct{ name, file, want string }{
		{"another kernel's", file(".modinfo", "name=m\x00vermagic=6.1.0-1-amd64 SMP\x00"), "is for kernel 6.1.0-1-amd64, but the archive is for 9.9-cloud"},
		{"needs what is not there", file(".modinfo", busInfo), "virtio_ring, which kernel 9.9-cloud does not have"},
		{"no kernel named", file(".modinfo", "name=m\x00"), "which kernel it is for"},
		{"no information", file(".text", "x"), "no section .modinfo"},
		{"a bad alias", file(".modinfo", "vermagic=9.9-cloud \x00alias=a b\x00"), "blank"},
		{"a bad name", file(".modinfo", "vermagic=9.9-cloud \x00name=../m\x00"), "none"},
		{"text", write(t, "m.ko", "no module", 0o600), "not an ELF file"},
		{"nothing", "/no/such.ko", "no such file"},
	} {
		err := addKernelModules(tree{}, Options{Kernels: []string{image}, ModuleDir: dir, Modules: []string{c.file}})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.file) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func FuzzModuleInformation(f *testing.F) {
	f.Add([]byte(busInfo))
	f.Add([]byte("vermagic=1\x00name=a/b\x00alias= \x00depends=,,a\x00"))
	f.Fuzz(func(t *testing.T, info []byte) {
		x, err := parseModinfo(info)
		if err != nil {
			return
		}
		if strings.ContainsAny(x.name+x.release, "/ \n") || strings.ContainsAny(strings.Join(x.aliases, ""), " \n") {
			t.Errorf("%+v", x)
		}
	})
}
