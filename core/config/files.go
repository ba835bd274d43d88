package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hashicorp/hcl/v2"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// fileAttributes resolves the paths among out's values, and looks whether they can be opened as the schema says. What it finds
// may change until they are opened; it is there so that one run shows all that is wrong.
func (d *decoder) fileAttributes(s *pluginv1.Schema, out *decoded) {
	for _, a := range s.GetAttributes() {
		if a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP {
			d.tapAttribute(a, out)
			continue
		}
		d.prefixedPath(a, out)
		listener := a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER
		if !listener && a.GetType() != pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE {
			continue
		}
		path, ok := out.values[a.GetName()].(string)
		if !ok {
			continue
		}
		at := out.ranges[a.GetName()]
		path = d.resolve(path, at)
		out.values[a.GetName()] = path
		if !d.checkFiles {
			continue
		}
		var err error
		if listener {
			err = checkListener(path)
		} else {
			readOnly, _ := out.values[a.GetFile().GetReadOnlyIf()].(bool)
			err = checkFile(path, a.GetFile(), readOnly)
		}
		if err != nil {
			d.errorf(at, fmt.Sprintf("Cannot use %q", a.GetName()), "%s", asSentence(err))
		}
	}
}

// prefixedPath makes the path in a value such as "unix:PATH" absolute.
func (d *decoder) prefixedPath(a *pluginv1.Attribute, out *decoded) {
	value, ok := out.values[a.GetName()].(string)
	if !ok {
		return
	}
	for _, prefix := range a.GetPathPrefixes() {
		path, ok := strings.CutPrefix(value, prefix)
		if !ok || path == "" || path[0] == '@' {
			continue
		}
		path = d.resolve(path, out.ranges[a.GetName()])
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		out.values[a.GetName()] = prefix + path
		return
	}
}

// resolve makes path relative to the file that it is written in.
func (d *decoder) resolve(path string, at hcl.Range) string {
	base := d.bases[at.Filename]
	if base == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(base, path)
}

func checkFile(path string, access *pluginv1.FileAccess, readOnly bool) error {
	write := (access.GetWrite() || access.GetAppend()) && !readOnly
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && access.GetCreate():
		return checkDir(filepath.Dir(path))
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no file %q", path)
	case err != nil:
		return fmt.Errorf("%q: %w", path, cause(err))
	case info.IsDir():
		return fmt.Errorf("%q is a directory, but a file is needed", path)
	}
	mode := info.Mode()
	blockDevice := mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
	if allowed := mode.IsRegular() || access.GetAnyKind() || blockDevice && access.GetBlockDevice(); !allowed {
		what := "a regular file is needed"
		if access.GetBlockDevice() {
			what = "a regular file or a block device is needed"
		}
		return fmt.Errorf("%q is %s, but %s", path, kindOf(mode), what)
	}
	want := uint32(unix.R_OK)
	switch {
	case access.GetAppend():
		want = unix.W_OK
	case write:
		want |= unix.W_OK
	}
	if err := unix.Faccessat(unix.AT_FDCWD, path, want, unix.AT_EACCESS); err != nil {
		if write && unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK, unix.AT_EACCESS) == nil && access.GetReadOnlyIf() != "" {
			return fmt.Errorf("%q cannot be written (%w); set %s = true to use it without writing", path, err, access.GetReadOnlyIf())
		}
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}

// maxSocketPath is what sockaddr_un holds, without the terminating zero (unix(7)).
const maxSocketPath = 107

func checkListener(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("the socket's path %s has %d bytes; the kernel takes at most %d", path, len(path), maxSocketPath)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%q is there already and is no socket", path)
	}
	return checkDir(filepath.Dir(path))
}

func checkDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no directory %q", dir)
	case err != nil:
		return fmt.Errorf("%q: %w", dir, cause(err))
	case !info.IsDir():
		return fmt.Errorf("%q is not a directory", dir)
	}
	return nil
}

// cause strips the operation and path that os puts before an error.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeCharDevice != 0:
		return "a character device"
	case m&fs.ModeDevice != 0:
		return "a block device"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	}
	return "no regular file"
}
