package kvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheDefaultKernelIsTheNewestForVirtualMachines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		files []string
		want  string
	}{
		{"numbers, not letters", []string{"vmlinuz-6.9.1-amd64", "vmlinuz-6.10.1-amd64"}, "vmlinuz-6.10.1-amd64"},
		{"a package's revision", []string{"vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-56-amd64"}, "vmlinuz-6.1.0-56-amd64"},
		{"cloud before newer", []string{"vmlinuz-6.12.0-amd64", "vmlinuz-6.1.0-9-cloud-amd64", "vmlinuz-6.1.0-10-cloud-amd64"}, "vmlinuz-6.1.0-10-cloud-amd64"},
		{"leftovers", []string{"vmlinuz-6.1.0-9", "vmlinuz-6.1.0-10.old", "vmlinuz-6.1.0-11.dpkg-new"}, "vmlinuz-6.1.0-9"},
		{"a release after its candidate's first digits", []string{"vmlinuz-6.1", "vmlinuz-6.1.2"}, "vmlinuz-6.1.2"},
		{"with modules before without", []string{"vmlinuz-6.12.0-cloud-amd64", "vmlinuz-6.1.0-amd64", "6.1.0-amd64"}, "vmlinuz-6.1.0-amd64"},
		{"no version", []string{"vmlinuz-linux"}, "vmlinuz-linux"},
		{"others", []string{"initrd.img-6.1", "config-6.1"}, ""},
		{"none", nil, ""},
	} {
		dir := t.TempDir()
		for _, f := range c.files {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := defaultKernel(dir, dir)
		if c.want == "" {
			if !errors.Is(err, ErrNoKernel) {
				t.Errorf("%s: %q, %v; want ErrNoKernel", c.name, got, err)
			}
			continue
		}
		if err != nil || filepath.Base(got) != c.want {
			t.Errorf("%s: %q, %v; want %s", c.name, got, err, c.want)
		}
	}
}

func TestAKernelThatCannotBeReadIsPassedOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// A link to nothing cannot be opened, by root either.
	if err := os.Symlink("nothing", filepath.Join(dir, "vmlinuz-9")); err != nil {
		t.Fatal(err)
	}
	if _, err := defaultKernel(dir, dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "vmlinuz-9") || !strings.Contains(err.Error(), "--kernel") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinuz-8"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := defaultKernel(dir, dir); err != nil || filepath.Base(got) != "vmlinuz-8" {
		t.Errorf("got %q, %v", got, err)
	}
}
