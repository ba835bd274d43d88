package initrd

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// libraries returns the host paths of the interpreter and all shared libraries that a dynamic program needs, directly or
// not, by the names under which the guest's interpreter will look for them. A static program and a file that is no ELF need
// none.
func libraries(program string) ([]string, error) {
	libs, err := directNeeds(program)
	if err != nil || libs == nil {
		return nil, err
	}
	var found []string
	for i := 0; i < len(libs); i++ {
		more, err := directNeeds(libs[i])
		if err != nil {
			return nil, err
		}
		found = append(found, libs[i])
		for _, m := range more {
			if !slices.Contains(libs, m) {
				libs = append(libs, m)
			}
		}
	}
	return found, nil
}

// directNeeds returns the paths of file's interpreter and DT_NEEDED libraries; nil if it is static or no ELF file.
func directNeeds(file string) ([]string, error) {
	f, err := os.Open(file) //nolint:gosec // G304: a file that the caller adds, or a library of it.
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	e, err := elf.NewFile(f)
	if err != nil {
		return nil, nil // not an ELF file: a script or data
	}
	var paths []string
	for _, p := range e.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(io.LimitReader(p.Open(), maxNameLen))
		if err != nil {
			return nil, fmt.Errorf("%s: interpreter: %w", file, err)
		}
		paths = append(paths, strings.TrimRight(string(name), "\x00"))
	}
	needed, err := e.ImportedLibraries()
	if err != nil {
		if errors.Is(err, elf.ErrNoSymbols) {
			return paths, nil
		}
		return nil, fmt.Errorf("%s: needed libraries: %w", file, err)
	}
	dirs := libraryDirs(e, file)
	for _, lib := range needed {
		p, err := findLibrary(lib, dirs)
		if err != nil {
			return nil, fmt.Errorf("%s: needs %s: %w", file, lib, err)
		}
		paths = append(paths, p)
	}
	return paths, nil
}

// libraryDirs are where a library of e is looked for: DT_RPATH and DT_RUNPATH, then Debian's places.
func libraryDirs(e *elf.File, file string) []string {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		values, err := e.DynString(tag)
		if err != nil {
			continue
		}
		for _, v := range values {
			for d := range strings.SplitSeq(v, ":") {
				d = strings.NewReplacer("$ORIGIN", filepath.Dir(file), "${ORIGIN}", filepath.Dir(file)).Replace(d)
				if filepath.IsAbs(d) {
					dirs = append(dirs, d)
				}
			}
		}
	}
	if triplet := multiarch(e.Machine); triplet != "" {
		dirs = append(dirs, "/lib/"+triplet, "/usr/lib/"+triplet)
	}
	return append(dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
}

// multiarch is Debian's directory name for a machine.
func multiarch(m elf.Machine) string {
	switch m { //nolint:exhaustive // others use /lib
	case elf.EM_X86_64:
		return "x86_64-linux-gnu"
	case elf.EM_AARCH64:
		return "aarch64-linux-gnu"
	case elf.EM_RISCV:
		return "riscv64-linux-gnu"
	}
	return ""
}

// findLibrary looks a library up. A name with a slash is a path already.
func findLibrary(lib string, dirs []string) (string, error) {
	if strings.Contains(lib, "/") {
		return lib, nil
	}
	for _, d := range dirs {
		p := filepath.Join(d, lib)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fmt.Errorf("not in %s: %w", strings.Join(dirs, ", "), fs.ErrNotExist)
}
