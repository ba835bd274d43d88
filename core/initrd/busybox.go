package initrd

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

// ErrNoBusybox means that no static busybox was found.
var ErrNoBusybox = errors.New("no static busybox: install the Debian package busybox-static, or name one with --busybox")

// busyboxPaths are tried in order if the caller names none.
var busyboxPaths = [...]string{"/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox", "/bin/busybox.static"}

// Busybox finds the static busybox that is used if none is named. The error is ErrNoBusybox, or tells what is wrong with one.
func Busybox() (string, error) { return findBusybox("") }

// addBusybox adds a busybox and a symbolic link for each of its applets. An empty path means: find one.
func addBusybox(ctx context.Context, t tree, path string) error {
	path, err := findBusybox(path)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path) //nolint:gosec // G304: the path is the caller's or one of the fixed places.
	if err != nil {
		return fmt.Errorf("read busybox: %w", err)
	}
	if err := t.put("bin/busybox", entry{mode: typeRegular | 0o755, data: data}); err != nil {
		return err
	}
	names, err := applets(ctx, path, t)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := t.put(name, entry{mode: typeSymlink | 0o777, data: []byte("/bin/busybox")}); err != nil {
			return fmt.Errorf("busybox %s: applet: %w", path, err)
		}
	}
	return nil
}

// findBusybox checks path, or finds a busybox that is static.
func findBusybox(path string) (string, error) {
	if path != "" {
		switch static, err := isStatic(path); {
		case err != nil:
			return "", fmt.Errorf("busybox: %w", err)
		case !static:
			return "", fmt.Errorf("busybox: %s: is dynamically linked, which does not run in an initrd by itself; %w", path, ErrNoBusybox)
		}
		return path, nil
	}
	for _, p := range busyboxPaths {
		switch static, err := isStatic(p); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return "", fmt.Errorf("busybox: %w", err)
		case static:
			return p, nil
		}
	}
	return "", ErrNoBusybox
}

// isStatic tells whether an ELF program asks for no interpreter.
func isStatic(path string) (bool, error) {
	f, err := os.Open(path) //nolint:gosec // G304: as addBusybox.
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // read only
	e, err := elf.NewFile(f)
	if err != nil {
		return false, fmt.Errorf("%s: not an ELF program: %w", path, err)
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}

// applets asks busybox which applets it has ("bin/ls", "usr/bin/env", …), less those that t has in a form of its own.
func applets(ctx context.Context, path string, t tree) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list-full: %w", path, err)
	}
	var names []string
	for line := range bytes.Lines(out) {
		name := strings.TrimSpace(string(line))
		if name == "" || name == "bin/busybox" || name == "linuxrc" || t.has(name) {
			continue
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s --list-full: names no applet", path)
	}
	return names, nil
}
