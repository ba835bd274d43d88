package initrd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNoModules means that no module directory fits the kernel.
var ErrNoModules = errors.New("no modules for this kernel")

// moduleRoots hold one directory per kernel release.
var moduleRoots = [...]string{"/usr/lib/uml/modules", "/lib/modules", "/usr/lib/modules"}

// wantedModules are the drivers of virtio devices; what they need comes along by modules.dep. A kernel that has one built
// in, or does not have it at all, is none the worse.
var wantedModules = [...]string{
	"virtio_blk", "virtio_console", "virtio_net", "virtio_scsi", "virtio_balloon", "virtio-rng", "virtio_input",
	"virtio_mmio", "virtio_pci", "virtiofs", "vmw_vsock_virtio_transport", "fuse",
}

// ModuleDir finds the module directory for a kernel release, "6.1.176". The error wraps ErrNoModules.
func ModuleDir(release string) (string, error) {
	for _, root := range moduleRoots {
		dir := filepath.Join(root, release)
		if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%w: release %s is in none of %s; install the kernel's package (for User-Mode Linux: user-mode-linux), or name the directory with --modules",
		ErrNoModules, release, strings.Join(moduleRoots[:], ", "))
}

// addModules adds the wanted modules of dir, their dependencies, and the part of modules.dep, modules.alias and
// modules.softdep that concerns them.
func addModules(t tree, dir, release string) error {
	deps, err := readDeps(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return err
	}
	files := resolve(deps, wantedModules[:])
	to := path.Join("lib/modules", release)
	var dep bytes.Buffer
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f)) //nolint:gosec // G304: the module directory is the caller's.
		if err != nil {
			return fmt.Errorf("read module: %w", err)
		}
		if err := t.put(path.Join(to, f), entry{mode: typeRegular | 0o644, data: data}); err != nil {
			return err
		}
		fmt.Fprintf(&dep, "%s: %s\n", f, strings.Join(deps[f], " "))
	}
	alias, err := filterLines(filepath.Join(dir, "modules.alias"), func(fields []string) bool {
		return len(fields) == 3 && fields[0] == "alias" && hasModule(files, fields[2])
	})
	if err != nil {
		return err
	}
	return errors.Join(
		t.put(path.Join(to, "modules.dep"), entry{mode: typeRegular | 0o644, data: dep.Bytes()}),
		t.put(path.Join(to, "modules.alias"), entry{mode: typeRegular | 0o644, data: alias}),
		t.put(path.Join(to, "modules.symbols"), entry{mode: typeRegular | 0o644}),
	)
}

// moduleName is a module's name as modprobe compares it: no directory, no suffix, '-' as '_'.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func hasModule(files []string, name string) bool {
	return slices.ContainsFunc(files, func(f string) bool { return moduleName(f) == moduleName(name) })
}

// readDeps reads modules.dep: a file, then the files it needs, all of them, in the order in which they are removed.
func readDeps(name string) (map[string][]string, error) {
	f, err := os.Open(name) //nolint:gosec // G304: the module directory is the caller's.
	if err != nil {
		return nil, fmt.Errorf("read module dependencies: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	return parseDeps(f)
}

func parseDeps(r io.Reader) (map[string][]string, error) {
	deps := map[string][]string{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for n := 1; s.Scan(); n++ {
		if strings.TrimSpace(s.Text()) == "" {
			continue
		}
		file, rest, ok := strings.Cut(s.Text(), ":")
		if !ok {
			return nil, fmt.Errorf("modules.dep: line %d: no colon", n)
		}
		needs := strings.Fields(rest)
		for _, f := range append(needs, file) {
			if !filepath.IsLocal(f) {
				return nil, fmt.Errorf("modules.dep: line %d: %q is not a path inside the module directory (run depmod)", n, f)
			}
		}
		deps[file] = needs
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("modules.dep: %w", err)
	}
	return deps, nil
}

// resolve returns the files of the wanted modules and of all they need, sorted. Loops are harmless.
func resolve(deps map[string][]string, wanted []string) []string {
	var todo []string
	for file := range deps {
		if slices.ContainsFunc(wanted, func(w string) bool { return moduleName(w) == moduleName(file) }) {
			todo = append(todo, file)
		}
	}
	seen := map[string]bool{}
	for len(todo) > 0 {
		file := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[file] {
			continue
		}
		seen[file] = true
		todo = append(todo, deps[file]...)
	}
	files := make([]string, 0, len(seen))
	for f := range seen {
		files = append(files, f)
	}
	slices.Sort(files)
	return files
}

// filterLines returns the lines whose fields satisfy keep. A missing file has no lines.
func filterLines(name string, keep func(fields []string) bool) ([]byte, error) {
	data, err := os.ReadFile(name) //nolint:gosec // G304: the module directory is the caller's.
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read module aliases: %w", err)
	}
	var out []byte
	for line := range bytes.Lines(data) {
		if keep(strings.Fields(string(line))) {
			out = append(out, line...)
		}
	}
	return out, nil
}
