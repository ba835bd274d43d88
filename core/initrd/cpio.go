package initrd

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// File types of st_mode, as in the archive's headers (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
const (
	typeMask    = 0o170000
	typeFIFO    = 0o010000
	typeDir     = 0o040000
	typeChar    = 0o020000
	typeRegular = 0o100000
	typeSymlink = 0o120000
)

// Limits of the format: eight hexadecimal digits for a size, PATH_MAX for a name.
const (
	maxFileSize = 1<<32 - 1
	maxNameLen  = 4095
)

// entry is one file of the archive; its name is its key in tree.
type entry struct {
	// mode is st_mode: type and permissions.
	mode uint32
	// data is the content of a regular file or the target of a symbolic link.
	data []byte
	// major and minor name a character device.
	major, minor uint32
}

// tree is a file system by name: clean, relative ("etc/profile"). Not safe for concurrent use.
type tree map[string]entry

// cleanName turns a name inside the guest, "/etc/x" or "etc/x", into a key of tree.
func cleanName(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("name %q: contains a NUL", name)
	}
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", fmt.Errorf("name %q: \"..\" is not allowed", name)
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		return "", fmt.Errorf("name %q: names no file", name)
	}
	if len(clean) > maxNameLen {
		return "", fmt.Errorf("name %q…: longer than %d bytes", clean[:32], maxNameLen)
	}
	return clean, nil
}

// put adds or replaces a file and adds the directories above it.
func (t tree) put(name string, e entry) error {
	clean, err := cleanName(name)
	if err != nil {
		return err
	}
	if uint64(len(e.data)) > maxFileSize {
		return fmt.Errorf("/%s: %d bytes are more than the archive format holds (4 GiB)", clean, len(e.data))
	}
	for dir := path.Dir(clean); dir != "."; dir = path.Dir(dir) {
		above, ok := t[dir]
		if ok && above.mode&typeMask != typeDir {
			return fmt.Errorf("/%s: /%s is not a directory", clean, dir)
		}
		if !ok {
			t[dir] = entry{mode: typeDir | 0o755}
		}
	}
	if old, ok := t[clean]; ok && (old.mode&typeMask == typeDir) != (e.mode&typeMask == typeDir) {
		return fmt.Errorf("/%s: is both a directory and a file", clean)
	}
	t[clean] = e
	return nil
}

// has tells whether name is in the tree.
func (t tree) has(name string) bool {
	clean, err := cleanName(name)
	if err != nil {
		return false
	}
	_, ok := t[clean]
	return ok
}

// writeTo writes the tree as a newc cpio archive. Names are sorted (so a directory comes before its files); times, owners
// and inode numbers depend on nothing but the names: the same tree gives the same bytes.
func (t tree) writeTo(w io.Writer) error {
	names := make([]string, 0, len(t))
	for name := range t {
		names = append(names, name)
	}
	slices.Sort(names)
	inode := uint32(0)
	for _, name := range names {
		inode++
		if err := writeEntry(w, inode, name, t[name]); err != nil {
			return fmt.Errorf("write archive: /%s: %w", name, err)
		}
	}
	return writeEntry(w, 0, "TRAILER!!!", entry{})
}

// writeEntry writes one header, the name and the data, each padded to four bytes.
func writeEntry(w io.Writer, inode uint32, name string, e entry) error {
	links := 1
	if e.mode&typeMask == typeDir {
		links = 2
	}
	var b []byte
	b = fmt.Appendf(b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", inode, e.mode, 0, 0, links, 0,
		len(e.data), 0, 0, e.major, e.minor, len(name)+1, 0)
	b = append(b, name...)
	b = append(b, 0)
	b = append(b, padding(len(b))...)
	_, err1 := w.Write(b)
	_, err2 := w.Write(e.data)
	_, err3 := w.Write(padding(len(e.data)))
	return errors.Join(err1, err2, err3)
}

// padding is what follows n bytes to reach a multiple of four.
func padding(n int) []byte { return make([]byte, -n&3) }
