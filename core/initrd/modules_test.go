package initrd

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDependenciesComeAlong(t *testing.T) {
	t.Parallel()
	deps, err := parseDeps(strings.NewReader(`kernel/a/virtio-net.ko: kernel/n/failover.ko.xz kernel/n/core.ko
kernel/n/failover.ko.xz: kernel/n/core.ko
kernel/n/core.ko:
kernel/x/other.ko:

kernel/l/virtio_blk.ko: kernel/l/loop.ko
kernel/l/loop.ko: kernel/l/virtio_blk.ko
`))
	if err != nil {
		t.Fatal(err)
	}
	got := resolve(deps, []string{"virtio_net", "virtio_blk", "no_such"})
	want := []string{"kernel/a/virtio-net.ko", "kernel/l/loop.ko", "kernel/l/virtio_blk.ko", "kernel/n/core.ko", "kernel/n/failover.ko.xz"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("modules (-want +got):\n%s", d)
	}
}

func TestModuleListIsChecked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, want string }{
		{"kernel/a.ko kernel/b.ko\n", "line 1: no colon"},
		{"a.ko:\n../../../etc/passwd:\n", "line 2"},
		{"a.ko: /etc/shadow\n", "line 1"},
		{strings.Repeat("x", 2<<20), "too long"},
	} {
		if _, err := parseDeps(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.30q: got %v, want %q", c.text, err, c.want)
		}
	}
}

func TestModuleFilesOfAKernel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep":   "k/virtio_blk.ko:\nk/big.ko:\n",
		"modules.alias": "# comment\nalias virtio:d00000002v* virtio_blk\nalias pci:1 big\n",
		"k.ko":          "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tr := tree{}
	add := func() error {
		m, err := findModules(dir, "9.9", nil)
		if err != nil {
			return err
		}
		return m.addTo(tr)
	}
	err := add()
	if err == nil || !strings.Contains(err.Error(), "virtio_blk.ko") {
		t.Fatalf("a listed module is missing: got %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "k"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "k/virtio_blk.ko"), []byte("elf"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"lib/modules/9.9/k/virtio_blk.ko": "elf",
		"lib/modules/9.9/modules.dep":     "k/virtio_blk.ko: \n",
		"lib/modules/9.9/modules.alias":   "alias virtio:d00000002v* virtio_blk\n",
	} {
		if got := string(tr[name].data); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if tr.has("lib/modules/9.9/k/big.ko") {
		t.Error("an unwanted module is in the archive")
	}
}

func TestMissingModulesNameThePackage(t *testing.T) {
	t.Parallel()
	_, err := ModuleDir("0.0.0-no-such")
	if !errors.Is(err, ErrNoModules) || !strings.Contains(err.Error(), "0.0.0-no-such") || !strings.Contains(err.Error(), "user-mode-linux") {
		t.Errorf("got %v", err)
	}
}

func TestReleaseOfAKernelImage(t *testing.T) {
	t.Parallel()
	bz := make([]byte, 0x1000)
	copy(bz[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(bz[0x20e:], 0x700)
	copy(bz[0x900:], "6.12.1-amd64 (x@y) #1\x00")
	short := append([]byte{}, bz[:0x900]...)
	for _, c := range []struct{ name, image, want string }{
		{"elf", "..Linux version 6.1.176 (buildd) ..", "6.1.176"},
		{"format text first", "Linux version %s (x)\x00Linux version 6.1.0-9+x (y)", "6.1.0-9+x"},
		{"bzImage", string(bz), "6.12.1-amd64"},
		{"bzImage cut short", string(short), ""},
		{"nothing", strings.Repeat("Linux versio", 99), ""},
		{"no end", "Linux version 6.1", ""},
		{"a path", "Linux version 6/../../etc x", ""},
		{"empty", "", ""},
	} {
		if got := parseRelease([]byte(c.image)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func FuzzRelease(f *testing.F) {
	f.Add([]byte("Linux version 6.1.176 (x)"))
	f.Add(append(make([]byte, 0x202), "HdrS........\xff\xff"...))
	f.Fuzz(func(t *testing.T, image []byte) {
		r := parseRelease(image)
		if strings.ContainsAny(r, "/ \x00\n") || len(r) > maxReleaseLen {
			t.Errorf("release %q", r)
		}
	})
}

func FuzzModuleDependencies(f *testing.F) {
	f.Add("a.ko: b.ko\nb.ko:\n")
	f.Add("a.ko: ../b\n")
	f.Fuzz(func(t *testing.T, text string) {
		deps, err := parseDeps(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, file := range resolve(deps, wantedModules[:]) {
			if !filepath.IsLocal(file) {
				t.Errorf("file %q leaves the module directory", file)
			}
		}
	})
}
