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

// wantedModules are the drivers of virtio devices, of the buses that they are found on, and of what else a small guest needs; what
// they need comes along by modules.dep. A kernel that has one built in, or does not have it at all, is none the worse.
var wantedModules = [...]string{
	"virtio_blk", "virtio_console", "virtio_net", "virtio_scsi", "virtio_balloon", "virtio-rng", "virtio_input",
	"virtio_mmio", "virtio_pci", "virtiofs", "vmw_vsock_virtio_transport", "fuse",
	// What the network needs besides its driver: DHCP's raw sockets, IPv6.
	"af_packet", "ipv6",
	// A disk's usual file system. It asks for a checksum by name, which modules.dep does not know.
	"ext4", "crc32c_generic", "crc32c_intel", "crc32c_cryptoapi",
	// The power button, and a way to tell the machine of a panic.
	"button", "evdev", "pvpanic-mmio",
}

// ModuleDir finds the module directory for a kernel release, "6.1.176". The error wraps ErrNoModules.
func ModuleDir(release string) (string, error) {
	for _, root := range moduleRoots {
		dir := filepath.Join(root, release)
		if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%w: release %s is in none of %s; install the kernel's package (for User-Mode Linux: user-mode-linux; Debian's other kernels: linux-image-RELEASE), or name the directory with --modules",
		ErrNoModules, release, strings.Join(moduleRoots[:], ", "))
}

// modules are those of one kernel that the archive is to hold.
type modules struct {
	release string
	// dir is where they are, deps its modules.dep. Names are relative to dir, as there: "kernel/fs/ext4/ext4.ko.xz".
	dir  string
	deps map[string][]string
	// files are the chosen ones; extra are further ones, by name, that are not of the kernel's package, with their aliases.
	files []string
	extra map[string]outOfTree
}

// findModules chooses modules of dir: the wanted ones and what they need, and what the extra ones need.
func findModules(dir, release string, extra []outOfTree) (*modules, error) {
	deps, err := readDeps(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	m := &modules{release: release, dir: dir, deps: deps, extra: map[string]outOfTree{}}
	wanted := slices.Clone(wantedModules[:])
	for _, x := range extra {
		m.extra["updates/"+x.name+".ko"] = x // modprobe knows modules by their files' names
		wanted = append(wanted, x.depends...)
	}
	for name, x := range m.extra {
		if m.deps[name], err = m.needs(x); err != nil {
			return nil, err
		}
		wanted = append(wanted, x.name)
	}
	m.files = resolve(m.deps, wanted)
	return m, nil
}

// needs lists the files that x needs in the order of modules.dep: what needs something stands before that.
func (m *modules) needs(x outOfTree) ([]string, error) {
	var direct []string
	for _, d := range x.depends {
		found := ""
		for file := range m.deps {
			if moduleName(file) == moduleName(d) {
				found = file
			}
		}
		if found == "" {
			return nil, fmt.Errorf("module %s: it needs the module %s, which kernel %s does not have", x.path, d, m.release)
		}
		direct = append(direct, found)
	}
	var out []string
	for _, d := range direct {
		out = append(out, d)
		out = append(out, m.deps[d]...)
	}
	// Of a name that is there several times the last one counts: all that need it stand before it.
	slices.Reverse(out)
	seen := map[string]bool{}
	out = slices.DeleteFunc(out, func(f string) bool {
		was := seen[f]
		seen[f] = true
		return was
	})
	slices.Reverse(out)
	return out, nil
}

// addTo adds the modules, uncompressed, and the part of modules.dep and modules.alias that concerns them.
func (m *modules) addTo(t tree) error {
	to := path.Join("lib/modules", m.release)
	var dep, alias bytes.Buffer
	for _, f := range m.files {
		from := filepath.Join(m.dir, f)
		if x, ok := m.extra[f]; ok {
			from = x.path
			for _, a := range x.aliases {
				fmt.Fprintf(&alias, "alias %s %s\n", a, x.name)
			}
		}
		data, err := readModule(from)
		if err != nil {
			return err
		}
		if err := t.put(path.Join(to, uncompressedName(f)), entry{mode: typeRegular | 0o644, data: data}); err != nil {
			return err
		}
		needs := make([]string, len(m.deps[f]))
		for i, n := range m.deps[f] {
			needs[i] = uncompressedName(n)
		}
		fmt.Fprintf(&dep, "%s: %s\n", uncompressedName(f), strings.Join(needs, " "))
	}
	lines, err := filterLines(filepath.Join(m.dir, "modules.alias"), func(fields []string) bool {
		return len(fields) == 3 && fields[0] == "alias" && hasModule(m.files, fields[2])
	})
	if err != nil {
		return err
	}
	return errors.Join(
		t.put(path.Join(to, "modules.dep"), entry{mode: typeRegular | 0o644, data: dep.Bytes()}),
		t.put(path.Join(to, "modules.alias"), entry{mode: typeRegular | 0o644, data: append(lines, alias.Bytes()...)}),
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
