package initrd

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// File is a file or a directory tree of the host that the archive is to hold.
type File struct {
	// Host is the path here. A directory is added with all that is in it; symbolic links inside it stay links.
	Host string
	// Guest is the path in the guest; empty: the same as Host.
	Guest string
}

// ParseFile reads "HOST" or "HOST:GUEST", as `virtplug initrd --add` takes it.
func ParseFile(s string) (File, error) {
	host, guest, _ := strings.Cut(s, ":")
	f := File{Host: host, Guest: guest}
	if host == "" {
		return File{}, fmt.Errorf("%q: want HOST or HOST:GUEST", s)
	}
	if guest == "" && !filepath.IsAbs(host) {
		return File{}, fmt.Errorf("%q: a relative path needs a place in the guest: %s:/PATH", s, host)
	}
	return f, nil
}

// addFile adds f, and the shared libraries of each program in it that the archive does not have yet.
func addFile(t tree, f File) error {
	guest := f.Guest
	if guest == "" {
		guest = f.Host
	}
	st, err := os.Stat(f.Host)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return addOne(t, f.Host, guest, st)
	}
	return filepath.WalkDir(f.Host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(f.Host, p)
		if err != nil || rel == "." {
			return err
		}
		to := guest + "/" + filepath.ToSlash(rel)
		st, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return t.put(to, entry{mode: typeDir | uint32(st.Mode().Perm())})
		case st.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return t.put(to, entry{mode: typeSymlink | 0o777, data: []byte(target)})
		}
		return addOne(t, p, to, st)
	})
}

// addOne adds a regular file.
func addOne(t tree, host, guest string, st fs.FileInfo) error {
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s: is neither a regular file nor a directory", host)
	}
	data, err := os.ReadFile(host) //nolint:gosec // G304: the caller says what to add.
	if err != nil {
		return err
	}
	if err := t.put(guest, entry{mode: typeRegular | uint32(st.Mode().Perm()), data: data}); err != nil {
		return err
	}
	libs, err := libraries(host)
	if err != nil {
		return err
	}
	for _, lib := range libs {
		if t.has(lib) {
			continue
		}
		data, err := os.ReadFile(lib) //nolint:gosec // G304: a library that the linker of the host would load too.
		if err != nil {
			return err
		}
		if err := t.put(lib, entry{mode: typeRegular | 0o755, data: data}); err != nil {
			return err
		}
	}
	return nil
}
