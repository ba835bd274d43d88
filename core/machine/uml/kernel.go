package uml

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// installHint tells how to get the kernel.
const installHint = "install: apt-get install user-mode-linux"

// findKernel returns the absolute path of the kernel to run.
func findKernel(path string) (string, error) {
	if path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", fmt.Errorf("user-mode linux: kernel %s: %w", path, err)
		}
		return abs, checkKernel(abs)
	}
	for _, name := range []string{"linux.uml", "linux"} {
		found, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if found, err = filepath.Abs(found); err != nil || checkKernel(found) != nil {
			continue
		}
		return found, nil
	}
	return "", fmt.Errorf("user-mode linux: no linux.uml in PATH: %s", installHint)
}

// checkKernel tells whether path is a User-Mode Linux program that we may run.
func checkKernel(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("user-mode linux: kernel %s: no such file: %s, or name another", path, installHint)
	case err != nil:
		return fmt.Errorf("user-mode linux: kernel: %w", err)
	case !st.Mode().IsRegular():
		return fmt.Errorf("user-mode linux: kernel %s: not a regular file", path)
	}
	f, err := elf.Open(path)
	if err != nil {
		if _, ok := errors.AsType[*elf.FormatError](err); ok {
			return notUML(path, "not an ELF program")
		}
		return fmt.Errorf("user-mode linux: kernel %s: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	switch {
	case f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN:
		return notUML(path, "not a program")
	case f.Section(".uml.setup.init") == nil:
		return notUML(path, "a program, but not a User-Mode Linux kernel")
	case st.Mode()&0o111 == 0:
		return fmt.Errorf("user-mode linux: kernel %s: not executable: chmod +x it", path)
	}
	return nil
}

func notUML(path, why string) error {
	return fmt.Errorf("user-mode linux: kernel %s: %s: this machine needs a kernel built with ARCH=um (a bzImage runs on machine kvm): %s", path, why, installHint)
}

// initrdSize checks that path can be read and returns its size; 0 for no path.
func initrdSize(path string) (uint64, error) {
	if path == "" {
		return 0, nil
	}
	f, err := os.Open(path) //nolint:gosec // the user's own choice
	if err != nil {
		return 0, fmt.Errorf("user-mode linux: initrd: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("user-mode linux: initrd: %w", err)
	}
	if !st.Mode().IsRegular() {
		return 0, fmt.Errorf("user-mode linux: initrd %s: not a regular file", path)
	}
	return uint64(st.Size()), nil //nolint:gosec // not negative
}
