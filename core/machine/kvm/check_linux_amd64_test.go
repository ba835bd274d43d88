package kvm

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/machine"
)

func TestCheckSaysWhatIsWrongWithAGuest(t *testing.T) {
	t.Parallel()
	needKVM(t)
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 64<<20); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\necho I am no kernel\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := machine.Guest{Kernel: kernelFile(t, ud2(), nil), MemoryBytes: 64 << 20}
	if err := New(Options{}).Check(good); err != nil {
		t.Errorf("good guest refused: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*machine.Guest)
		want   string
	}{
		"no such kernel":        {func(g *machine.Guest) { g.Kernel = filepath.Join(dir, "none") }, "no such file"},
		"a folder":              {func(g *machine.Guest) { g.Kernel = dir }, "not a regular file"},
		"a text":                {func(g *machine.Guest) { g.Kernel = text }, "not an x86-64 kernel"},
		"too many CPUs":         {func(g *machine.Guest) { g.VCPUs = 1 << 20 }, "ask for fewer"},
		"a negative number":     {func(g *machine.Guest) { g.VCPUs = -1 }, "ask for fewer"},
		"no memory":             {func(g *machine.Guest) { g.MemoryBytes = 0 }, "want 2 MiB"},
		"absurd memory":         {func(g *machine.Guest) { g.MemoryBytes = 1 << 63 }, "want 2 MiB"},
		"more than there is":    {func(g *machine.Guest) { g.MemoryBytes = 900 << 30 }, "ask for less"},
		"unknown bus":           {func(g *machine.Guest) { g.Bus = "pci" }, "want mmio or lguest"},
		"no such initrd":        {func(g *machine.Guest) { g.Initrd = filepath.Join(dir, "none") }, "no such file"},
		"an initrd that is big": {func(g *machine.Guest) { g.Initrd = big }, "do not fit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := good
			c.change(&g)
			err := New(Options{}).Check(g)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "kvm: ") {
				t.Errorf("error %v: want %q in it", err, c.want)
			}
		})
	}
}

func TestCheckSaysHowToGetKVM(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, want string }{
		"missing":      {filepath.Join(dir, "kvm"), "modprobe kvm-intel"},
		"another file": {other, "not the KVM interface"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := New(Options{Path: c.path})
			for _, err := range []error{m.Probe(), m.Check(machine.Guest{})} {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v: want %q in it", err, c.want)
				}
			}
		})
	}
}

func TestCheckTellsWhoMayUseKVM(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error)
	go func() {
		if os.Getuid() == 0 { // who may open anything, as this thread may not any more
			runtime.LockOSThread() // never unlocked: it ends with the goroutine
			if err := unix.Setfsuid(65534); err != nil {
				answer <- err
				return
			}
		}
		answer <- New(Options{Path: path}).Probe()
	}()
	if err := <-answer; err == nil || !strings.Contains(err.Error(), "group kvm") {
		t.Errorf("error %v: want the group in it", err)
	}
}

// Which of the two it is depends on the host; that there is an answer, soon, does not.
func TestTheProbeTellsWhetherAnOrdinaryKernelCanRun(t *testing.T) {
	t.Parallel()
	needKVM(t)
	before := time.Now()
	err := New(Options{}).Probe()
	if took := time.Since(before); took > patience/2 {
		t.Errorf("the probe took %v", took)
	}
	switch {
	case err == nil:
		t.Log("this host runs ordinary kernels")
	case errors.Is(err, ErrEmulated) && strings.Contains(err.Error(), "use machine uml"):
		t.Log(err)
	default:
		t.Errorf("error %v", err)
	}
}
