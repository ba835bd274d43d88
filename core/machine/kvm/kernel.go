package kvm

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNoKernel says that no kernel of a distribution is installed.
var ErrNoKernel = errors.New("no kernel in /boot: install one (Debian: apt-get install linux-image-cloud-amd64), or name one with --kernel")

// Where distributions put kernels and their modules, those in a directory called as the end of the kernel's name.
const (
	bootDir    = "/boot"
	modulesDir = "/lib/modules"
)

// DefaultKernel finds the kernel to boot if the user names none: the newest /boot/vmlinuz-*-cloud-amd64, which Debian makes for
// virtual machines, else the newest /boot/vmlinuz-*, of those that the caller may read. Kernels that have no modules come last:
// distributions' virtio drivers are modules. The error is ErrNoKernel, or tells that none may be read.
func DefaultKernel() (string, error) { return defaultKernel(bootDir, modulesDir) }

func defaultKernel(dir, modules string) (string, error) {
	hasModules := func(path string) bool {
		_, err := os.Stat(filepath.Join(modules, strings.TrimPrefix(filepath.Base(path), "vmlinuz-")))
		return err == nil
	}
	found, err := filepath.Glob(filepath.Join(dir, "vmlinuz-*"))
	if err != nil {
		return "", fmt.Errorf("default kernel: %w", err)
	}
	found = slices.DeleteFunc(found, leftover)
	slices.SortFunc(found, func(a, b string) int {
		return cmp.Or(-compareBool(hasModules(a), hasModules(b)), -compareBool(isCloud(a), isCloud(b)), -compareVersions(filepath.Base(a), filepath.Base(b)))
	})
	var refused []error
	for _, path := range found {
		f, err := os.Open(path) //nolint:gosec // G304: in /boot
		if err == nil {
			return path, f.Close()
		}
		refused = append(refused, err)
	}
	if len(refused) > 0 {
		return "", fmt.Errorf("default kernel: %w: make it readable (sudo chmod a+r), or name a copy with --kernel", refused[0])
	}
	return "", ErrNoKernel
}

func isCloud(path string) bool { return strings.HasSuffix(path, "-cloud-amd64") }

// leftover tells names that package managers and people leave behind.
func leftover(path string) bool {
	for _, end := range []string{".old", ".bak", "~", ".dpkg-new", ".dpkg-tmp", ".dpkg-bak"} {
		if strings.HasSuffix(path, end) {
			return true
		}
	}
	return false
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// compareVersions compares texts with numbers in them: "6.9" is before "6.10".
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na == 0 || nb == 0 {
			if a[0] != b[0] {
				return cmp.Compare(a[0], b[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
		if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
			return c
		}
		a, b = a[na:], b[nb:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits counts the digits that s begins with.
func digits(s string) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}
