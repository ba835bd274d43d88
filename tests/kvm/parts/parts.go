// Package parts builds what the tests of the KVM machine run, into one directory, so that a machine inside a machine can have
// it too, where there is no compiler:
//
//	bin/      virtplug and its plugins, as `make build` makes them, and examples/entropy
//	guest/    the freestanding guest, and lguest_bus.ko
//	linux/    Debian's kernel for virtual machines, a RAM disk for it, and data that the RAM disk has as /test/data
//
// It is for tests only.
package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/virtplug/virtplug/core/initrd"
	"github.com/virtplug/virtplug/core/machine/kvm"
	"github.com/virtplug/virtplug/tests/session"
)

// Dir is the directory with the parts.
type Dir string

// Bin is the directory of virtplug and its plugins.
func (d Dir) Bin() string { return filepath.Join(string(d), "bin") }

// Guest is the freestanding guest, GuestPVH the same with a PVH note.
func (d Dir) Guest() string { return filepath.Join(string(d), "guest/virtplug-guest.elf") }

// GuestPVH is the freestanding guest, entered as PVH has it.
func (d Dir) GuestPVH() string { return filepath.Join(string(d), "guest/virtplug-guest-pvh.elf") }

// Module is Linux's driver of the lguest bus.
func (d Dir) Module() string { return filepath.Join(string(d), "guest/lguest_bus.ko") }

// Kernel is a bzImage.
func (d Dir) Kernel() string { return filepath.Join(string(d), "linux/vmlinuz") }

// Initrd is the RAM disk for Kernel. It has Module, and Data as /test/data.
func (d Dir) Initrd() string { return filepath.Join(string(d), "linux/initrd.gz") }

// Data is session.Pattern(DataSeed, DataBytes).
func (d Dir) Data() string { return filepath.Join(string(d), "linux/data") }

// What Data holds.
const (
	DataBytes = 1 << 20
	DataSeed  = 1
)

// Build makes the programs and the freestanding guest in dir, which must not have them yet. root is the repository.
func Build(ctx context.Context, root, dir string) (Dir, error) {
	d := Dir(dir)
	for _, sub := range []string{d.Bin(), filepath.Dir(d.Guest()), filepath.Dir(d.Kernel())} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return d, fmt.Errorf("build parts: %w", err)
		}
	}
	for name, pkg := range map[string]string{
		"virtplug": "./cmd/virtplug", "virtplug-plugin-block": "./plugins/block", "virtplug-plugin-console": "./plugins/console",
		"virtplug-plugin-net": "./plugins/net",
	} {
		if err := goBuild(ctx, root, filepath.Join(d.Bin(), name), pkg); err != nil {
			return d, err
		}
	}
	if err := d.buildExample(ctx, root, "entropy"); err != nil {
		return d, err
	}
	return d, run(ctx, root, "make", "--no-print-directory", "-C", "guest", "OUT="+filepath.Dir(d.Guest()))
}

// BuildLinux makes the parts for Linux guests: kernel, module, RAM disk. The error tells which Debian package is missing.
func (d Dir) BuildLinux(ctx context.Context, root string) error {
	kernel, headers, err := Kernel()
	if err != nil {
		return err
	}
	if err := run(ctx, root, "make", "--no-print-directory", "-C", "guest", "module", "KDIR="+headers, "OUT="+filepath.Dir(d.Guest())); err != nil {
		return err
	}
	image, err := os.ReadFile(kernel) //nolint:gosec // G304: the kernel of the distribution
	if err != nil {
		return fmt.Errorf("build parts: %w", err)
	}
	err = errors.Join(
		os.WriteFile(d.Kernel(), image, 0o600), //nolint:gosec // G703: a file of the test
		os.WriteFile(d.Data(), session.Pattern(DataSeed, DataBytes), 0o600),
	)
	if err != nil {
		return fmt.Errorf("build parts: %w", err)
	}
	return initrd.BuildFile(ctx, d.Initrd(), initrd.Options{
		Kernels: []string{kernel}, Modules: []string{d.Module()}, Add: []initrd.File{{Host: d.Data(), Guest: "/test/data"}},
	})
}

// Kernel finds the kernel that virtplug boots by default, and its headers; if those are not there, another of Debian's kernels for
// virtual machines that has them.
func Kernel() (kernel, headers string, err error) {
	kernel, err = kvm.DefaultKernel()
	if err != nil {
		return "", "", err
	}
	others, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64") // the pattern is good
	for _, k := range append([]string{kernel}, others...) {
		release, err := initrd.Release(k)
		if err != nil {
			return "", "", err
		}
		headers := filepath.Join("/lib/modules", release, "build")
		if _, err := os.Stat(headers); err == nil {
			return k, headers, nil
		}
	}
	return "", "", fmt.Errorf("no headers for %s: install the Debian packages linux-image-cloud-amd64 and linux-headers-cloud-amd64", kernel)
}

// buildExample builds a plugin of examples/, a module of its own, as its author would.
func (d Dir) buildExample(ctx context.Context, root, name string) error {
	module := filepath.Join(filepath.Join(string(d), "module"), name)
	if err := os.CopyFS(module, os.DirFS(filepath.Join(root, "examples", name))); err != nil {
		return fmt.Errorf("build parts: %w", err)
	}
	here, err := filepath.Abs(root)
	if err != nil {
		return fmt.Errorf("build parts: %w", err)
	}
	if err := run(ctx, module, "go", "mod", "edit", "-replace", "github.com/virtplug/virtplug="+here); err != nil {
		return err
	}
	if err := goBuild(ctx, module, filepath.Join(d.Bin(), "virtplug-plugin-"+name), "."); err != nil {
		return err
	}
	return os.RemoveAll(module)
}

// goBuild builds a program as `make build` does.
func goBuild(ctx context.Context, dir, output, pkg string) error {
	return run(ctx, dir, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", output, pkg)
}

// TestBinary compiles the tests of a package of the repository into a program.
func TestBinary(ctx context.Context, root, output, pkg string) error {
	return run(ctx, root, "go", "test", "-c", "-vet=off", "-trimpath", "-ldflags", "-s -w", "-o", output, pkg)
}

// run runs a program without cgo; its output is shown only if it fails.
func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // G204: programs that this package names
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
