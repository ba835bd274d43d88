package uml

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// requireUML skips loudly where a guest cannot be booted.
func requireUML(t *testing.T) {
	t.Helper()
	if _, err := findKernel(""); err != nil {
		t.Skipf("SKIPPED, no guest booted: %v", err)
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("SKIPPED, no guest booted: no busybox: apt-get install busybox-static")
	}
}

// initramfs writes an archive with busybox, kernel modules (by path below the modules' kernel directory) and an /init that
// runs script, and returns its path.
func initramfs(t *testing.T, script string, modules ...string) string {
	t.Helper()
	var b bytes.Buffer
	add := func(name string, mode uint32, data []byte, major, minor int) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
			b.Len()+1, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
		pad := func() { b.Write(make([]byte, -b.Len()&3)) }
		b.WriteString(name + "\x00")
		pad()
		b.Write(data)
		pad()
	}
	read := func(path string) []byte {
		data, err := os.ReadFile(path) //nolint:gosec // the test's own choice
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "lib"} {
		add(d, 0o40755, nil, 0, 0)
	}
	add("dev/console", 0o20600, nil, 5, 1)
	add("bin/busybox", 0o100755, read(busybox), 0, 0)
	init := "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\nmount -t devtmpfs dev /dev\nmount -t proc proc /proc\nmount -t sysfs sys /sys\n"
	for _, m := range modules {
		add("lib/"+filepath.Base(m), 0o100644, read(modulePath(t, m)), 0, 0)
		init += "insmod /lib/" + filepath.Base(m) + "\n"
	}
	add("init", 0o100755, []byte(init+script), 0, 0)
	add("TRAILER!!!", 0, nil, 0, 0)
	path := filepath.Join(t.TempDir(), "initramfs.cpio")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// modulePath finds a module of the installed kernel.
func modulePath(t *testing.T, m string) string {
	t.Helper()
	kernel, err := findKernel("")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), kernel, "--version").Output() //nolint:gosec // the kernel
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join("/usr/lib/uml/modules", strings.TrimSpace(string(out)), "kernel", m)
	if _, err := os.Stat(p); err != nil {
		t.Skipf("SKIPPED, no guest booted: %v: apt-get install user-mode-linux", err)
	}
	return p
}
