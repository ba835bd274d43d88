package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/control"
	"github.com/virtplug/virtplug/core/transport/lguest"
)

// idleGuest is a guest that does nothing.
type idleGuest struct{}

func (idleGuest) State() control.State        { return control.StateRunning }
func (idleGuest) Pause() error                { return nil }
func (idleGuest) Resume() error               { return nil }
func (idleGuest) Counters() map[string]uint64 { return nil }

// TestLguestDumpOfARunningVM: the page comes through the control socket of a VM, found by its name.
func TestLguestDumpOfARunningVM(t *testing.T) {
	t.Parallel()
	root, err := os.MkdirTemp("/tmp", "vl") //nolint:usetesting // the test's own is too long for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	serve := func(name string, page func() ([]byte, error)) {
		dir := filepath.Join(root, "virtplug", name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s, err := control.Serve(dir, control.VM{Name: name, Machine: "kvm", Guest: idleGuest{}, LguestPage: page}, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
	}
	var b lguest.Builder
	if _, err := b.Add(lguest.Descriptor{Type: 4, Status: 0x87, Rings: []lguest.Ring{{Num: 8, IRQ: 1, PFN: 5}}}); err != nil {
		t.Fatal(err)
	}
	serve("good", func() ([]byte, error) { return b.Page(), nil })
	serve("mmio", nil)
	serve("early", func() ([]byte, error) { return nil, errors.New("the guest does not run yet") })
	dump := func(args ...string) (string, string, int) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(os.Getenv(binEnv), "virtplug"), append([]string{"lguest", "dump"}, args...)...) //nolint:gosec // our own program
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+root)
		cmd.Dir = root
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
	if err := os.WriteFile(filepath.Join(root, "good"), nil, 0o600); err != nil { // a file of the VM's name
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{[]string{"good"}, 0, "entropy", ""},
		{[]string{"good"}, 0, "87     ACKNOWLEDGE DRIVER DRIVER_OK FAILED", ""},
		{[]string{"good"}, 0, "num 8, irq 1, pfn 0x5: ring at 0x5000", ""},
		{[]string{"./good"}, 1, "", "only 0 of 4096 bytes"},
		{[]string{"good", "--offset", "4K"}, 2, "", "--offset is for files, and good is a running VM: write ./good for the file"},
		{[]string{"mmio"}, 1, "", "mmio: lguest page: mmio has no lguest bus"},
		{[]string{"early"}, 1, "", "early: lguest page: the guest does not run yet"},
		{[]string{"other"}, 1, "", "nor is there such a file"},
	} {
		stdout, stderr, code := dump(c.args...)
		squeezed := strings.Join(strings.Fields(stdout), " ")
		if code != c.code || !strings.Contains(squeezed, strings.Join(strings.Fields(c.stdout), " ")) || !strings.Contains(stderr, c.stderr) {
			t.Errorf("dump %q: status %d, want %d\n%s%s", c.args, code, c.code, stdout, stderr)
		}
	}
}
