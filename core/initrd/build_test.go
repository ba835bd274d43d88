package initrd

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// needBusybox returns Debian's static busybox.
func needBusybox(t *testing.T) string {
	t.Helper()
	p, err := findBusybox("")
	if err != nil {
		t.Skipf("MISSING: %v", err)
	}
	return p
}

func write(t *testing.T, name, text string, mode fs.FileMode) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTheSameFilesGiveTheSameBytes(t *testing.T) {
	t.Parallel()
	needBusybox(t)
	var sums [2][32]byte
	for i := range sums {
		var b bytes.Buffer
		o := Options{NoModules: true, Add: []File{{Host: write(t, "x", "data", 0o755), Guest: "/x"}}}
		if err := Build(t.Context(), &b, o); err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(b.Bytes())
	}
	if sums[0] != sums[1] {
		t.Error("two builds differ")
	}
}

func TestArchiveIsBootable(t *testing.T) {
	t.Parallel()
	needBusybox(t)
	o := Options{NoModules: true, Hostname: "h", Add: []File{
		{Host: write(t, "mine", "#!/bin/sh\n", 0o700), Guest: "/bin/ls"},
		{Host: write(t, "rc", "true\n", 0o600), Guest: "etc/rc.local"},
	}}
	var b bytes.Buffer
	if err := Build(t.Context(), &b, o); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	files := readCpio(t, z)
	for name, mode := range map[string]uint32{
		"init": typeRegular | 0o755, "bin/busybox": typeRegular | 0o755, "bin/sh": typeSymlink | 0o777,
		"dev/console": typeChar | 0o600, "tmp": typeDir | 0o1777, "bin/ls": typeRegular | 0o700,
		"etc/rc.local": typeRegular | 0o600, "sbin/modprobe": typeSymlink | 0o777,
	} {
		if got := files[name].mode; got != mode {
			t.Errorf("/%s: mode %o, want %o", name, got, mode)
		}
	}
	if e := files["dev/console"]; e.major != 5 || e.minor != 1 {
		t.Errorf("/dev/console is %d:%d", e.major, e.minor)
	}
	if got := string(files["etc/hostname"].data); got != "h\n" {
		t.Errorf("hostname %q", got)
	}
}

func TestADynamicProgramBringsItsLibraries(t *testing.T) {
	t.Parallel()
	program := "/bin/true"
	libs, err := libraries(program)
	if err != nil {
		t.Fatal(err)
	}
	if len(libs) < 2 || !strings.Contains(strings.Join(libs, " "), "/ld-linux") || !strings.Contains(strings.Join(libs, " "), "libc.so.6") {
		t.Fatalf("libraries of %s: %v", program, libs)
	}
	tr := tree{}
	if err := addFile(tr, File{Host: program}); err != nil {
		t.Fatal(err)
	}
	for _, l := range append(libs, program) {
		if !tr.has(l) {
			t.Errorf("%s is not in the archive", l)
		}
	}
	if libs, err := libraries(write(t, "script", "#!/bin/sh\n", 0o700)); err != nil || len(libs) != 0 {
		t.Errorf("a script: %v, %v", libs, err)
	}
}

func TestADirectoryIsAddedWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a/b/f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b/f", filepath.Join(dir, "a/l")); err != nil {
		t.Fatal(err)
	}
	tr := tree{}
	if err := addFile(tr, File{Host: dir, Guest: "/opt"}); err != nil {
		t.Fatal(err)
	}
	if string(tr["opt/a/b/f"].data) != "x" || tr["opt/a/b/f"].mode != typeRegular|0o600 || string(tr["opt/a/l"].data) != "b/f" || tr["opt/a/b"].mode != typeDir|0o750 {
		t.Errorf("tree: %+v", tr)
	}
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	t.Parallel()
	needBusybox(t)
	text := write(t, "text", "no program", 0o700)
	for _, c := range []struct {
		name string
		o    Options
		is   error
		want string
	}{
		{"no such busybox", Options{Busybox: "/no/such"}, fs.ErrNotExist, "/no/such"},
		{"dynamic busybox", Options{Busybox: "/bin/true"}, ErrNoBusybox, "busybox-static"},
		{"busybox is text", Options{Busybox: text}, nil, "not an ELF program"},
		{"no such kernel", Options{Kernels: []string{"/no/such"}}, fs.ErrNotExist, "read kernel"},
		{"kernel is text", Options{Kernels: []string{text}}, nil, "Linux version"},
		{"kernel is a directory", Options{Kernels: []string{"/"}}, nil, "not a regular file"},
		{"kernel without modules", Options{Kernels: []string{write(t, "k", "Linux version 0.0.1 x", 0o600)}}, ErrNoModules, "0.0.1"},
		{"no such file to add", Options{NoModules: true, Add: []File{{Host: "/no/such"}}}, fs.ErrNotExist, "add /no/such"},
		{"a device to add", Options{NoModules: true, Add: []File{{Host: "/dev/null"}}}, nil, "neither a regular file"},
		{"a place outside", Options{NoModules: true, Add: []File{{Host: text, Guest: "../x"}}}, nil, `".."`},
	} {
		err := Build(t.Context(), &bytes.Buffer{}, c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || (c.is != nil && !errors.Is(err, c.is)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestAFailedBuildLeavesNoFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := filepath.Join(dir, "initrd")
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := BuildFile(t.Context(), old, Options{Busybox: "/no/such"}); err == nil {
		t.Fatal("no error")
	}
	if err := BuildFile(t.Context(), filepath.Join(dir, "no/such/dir"), Options{}); err == nil {
		t.Fatal("no such directory: no error")
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("directory holds %v (%v), want only the old file", names, err)
	}
	if b, err := os.ReadFile(old); err != nil || string(b) != "old" { //nolint:gosec // G304: a file of this test
		t.Errorf("the old file holds %q (%v)", b, err)
	}
}

func TestParseFile(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		want File
		ok   bool
	}{
		{"/a", File{Host: "/a"}, true},
		{"/a:/b", File{Host: "/a", Guest: "/b"}, true},
		{"a:/b", File{Host: "a", Guest: "/b"}, true},
		{"a", File{}, false},
		{":/b", File{}, false},
		{"", File{}, false},
	} {
		if got, err := ParseFile(c.in); got != c.want || (err == nil) != c.ok {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		}
	}
}
