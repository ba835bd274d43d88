package uml

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/core/machine"
)

func TestCheckSaysWhatToDo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "vmlinuz")
	if err := os.WriteFile(text, []byte("MZ not an ELF file, like a bzImage"), 0o700); err != nil { //nolint:gosec // a program, it claims
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := findKernel("")
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	good := machine.Guest{Kernel: kernel, MemoryBytes: 64 << 20, RunDir: dir}
	if err := New(Options{}).Check(good); err != nil {
		t.Errorf("good guest refused: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*machine.Guest)
		want   string
	}{
		"no such kernel":  {func(g *machine.Guest) { g.Kernel = filepath.Join(dir, "none") }, "apt-get install user-mode-linux"},
		"a bzImage":       {func(g *machine.Guest) { g.Kernel = text }, "not an ELF program"},
		"another program": {func(g *machine.Guest) { g.Kernel = self }, "not a User-Mode Linux kernel"},
		"a directory":     {func(g *machine.Guest) { g.Kernel = dir }, "not a regular file"},
		"two CPUs":        {func(g *machine.Guest) { g.VCPUs = 2 }, "one CPU only"},
		"no memory":       {func(g *machine.Guest) { g.MemoryBytes = 0 }, "at least 32 MiB"},
		"little memory":   {func(g *machine.Guest) { g.MemoryBytes = 31 << 20 }, "at least 32 MiB"},
		"16 TiB":          {func(g *machine.Guest) { g.MemoryBytes = 16 << 40 }, "ask for less"},
		"absurd memory":   {func(g *machine.Guest) { g.MemoryBytes = 1 << 63 }, "ask for less"},
		"no such initrd":  {func(g *machine.Guest) { g.Initrd = filepath.Join(dir, "none") }, "no such file"},
		"initrd a folder": {func(g *machine.Guest) { g.Initrd = dir }, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := good
			c.change(&g)
			if err := New(Options{}).Check(g); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v: want %q in it", err, c.want)
			}
		})
	}
}

func TestCheckWithoutTheKernelNamesThePackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := New(Options{}).Check(machine.Guest{MemoryBytes: 64 << 20})
	if err == nil || !strings.Contains(err.Error(), "apt-get install user-mode-linux") {
		t.Errorf("error %v: does not say what to install", err)
	}
}

func TestRunDirTooLongForSocketsIsRefused(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"/" + strings.Repeat("x", 100), "relative"} {
		if err := prepareRunDir(machine.Guest{RunDir: dir}); err == nil {
			t.Errorf("run directory %q was taken", dir)
		}
	}
}

func TestCommandLineTooLongIsRefused(t *testing.T) {
	t.Parallel()
	_, err := arguments(machine.Guest{Cmdline: strings.Repeat("a=b ", 2000)}, nil)
	if err == nil || !strings.Contains(err.Error(), "shorten") {
		t.Errorf("error %v: want the command line refused", err)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		code  int
		lines []string
		want  machine.Reason
		text  string
	}{
		"power off":              {0, []string{"reboot: System halted"}, machine.PowerOff, "halted"},
		"reboot":                 {0, []string{"reboot: Restarting system"}, machine.Reboot, "Restarting"},
		"panic":                  {134, []string{"Kernel panic - not syncing: oh no", "trace"}, machine.Panic, "oh no"},
		"abort after power off":  {134, []string{"reboot: System halted", "Aborted"}, machine.PowerOff, "halted; then linux.uml: ended by signal 6"},
		"abort after restart":    {134, []string{"reboot: Restarting system", "Aborted"}, machine.Reboot, "SIGABRT"},
		"panic while restarting": {134, []string{"reboot: Restarting system", "Kernel panic - not syncing: late"}, machine.Panic, "late"},
		"signal":                 {139, []string{"last words"}, machine.Crashed, "SIGSEGV"},
		"failure before booting": {1, []string{"tmpfs too small"}, machine.Crashed, "tmpfs too small"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if e := explain(c.code, c.lines); e.Reason != c.want || !strings.Contains(e.Detail, c.text) {
				t.Errorf("%+v: want reason %d with %q", e, c.want, c.text)
			}
		})
	}
}
