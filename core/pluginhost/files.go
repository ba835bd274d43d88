package pluginhost

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// Files are what OpenFiles opened for one device. Keep them open for the life of the device: a lock that an instance takes
// on such a file description outlives it, and its successor gets the same descriptions.
type Files struct {
	// Grants go into Settings.Files.
	Grants []pluginrpc.FileGrant

	closers []func() error
	// found are settings whose values came to light by opening: a tap's real name, say. By path.
	found map[string]any
}

// Close closes the files and removes the sockets' paths. Idempotent.
func (f *Files) Close() error {
	var errs []error
	for _, c := range f.closers {
		errs = append(errs, c())
	}
	f.closers, f.Grants = nil, nil
	return errors.Join(errs...)
}

// OpenFiles opens what a configuration names: the schema's attributes of type FILE, LISTENER and TAP, also in nested blocks, as
// their FileAccess and TapAccess say. config is one JSON object that fits the schema. Attributes that are absent or empty are left out.
// On error nothing stays open; each cause is a *pluginrpc.SettingError, so that the launcher can show the line.
func OpenFiles(schema *pluginv1.Schema, config []byte) (*Files, error) {
	f := &Files{}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(config, &members); err != nil {
		return nil, fmt.Errorf("open files: configuration: %w", err)
	}
	if err := f.openBlock(schema, members, ""); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openBlock opens the files of one block, whose path is prefix.
func (f *Files) openBlock(schema *pluginv1.Schema, members map[string]json.RawMessage, prefix string) error {
	var errs []error
	for _, a := range schema.GetAttributes() {
		raw, ok := members[a.GetName()]
		if !ok || !pluginrpc.OpenedByLauncher(a.GetType()) {
			continue
		}
		attr := prefix + a.GetName()
		var path *string
		if err := json.Unmarshal(raw, &path); err != nil {
			want := "want a path"
			if a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP {
				want = "want the name of an interface"
			}
			errs = append(errs, setting(attr, want, err))
			continue
		}
		if path == nil || *path == "" {
			continue
		}
		errs = append(errs, f.openAttribute(schema, a, *path, members, prefix))
	}
	for _, b := range schema.GetBlocks() {
		raw, ok := members[b.GetName()]
		if !ok {
			continue
		}
		var items []map[string]json.RawMessage
		if err := json.Unmarshal(raw, &items); err != nil {
			errs = append(errs, setting(prefix+b.GetName(), "want a list of blocks", err))
			continue
		}
		for n, item := range items {
			errs = append(errs, f.openBlock(b.GetSchema(), item, prefix+b.GetName()+"."+strconv.Itoa(n)+"."))
		}
	}
	return errors.Join(errs...)
}

// openAttribute opens what attribute a names with path. members are those of its block, whose schema is s and path prefix.
func (f *Files) openAttribute(s *pluginv1.Schema, a *pluginv1.Attribute, path string, members map[string]json.RawMessage, prefix string) error {
	attr := prefix + a.GetName()
	var fd int
	var closer func() error
	var err error
	switch a.GetType() { //nolint:exhaustive // the others are not opened
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP:
		return f.openTap(s, a, path, members, prefix)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER:
		fd, closer, err = openListener(path)
	default:
		fd, err = openFile(path, a.GetFile(), members)
		closer = func() error { return os.NewSyscallError("close", unix.Close(fd)) }
	}
	if err != nil {
		return setting(attr, "", err)
	}
	f.Grants = append(f.Grants, pluginrpc.FileGrant{Attribute: attr, FD: fd})
	f.closers = append(f.closers, closer)
	return nil
}

func setting(attr, message string, err error) error {
	if message == "" {
		message = err.Error()
	}
	return &pluginrpc.SettingError{Attribute: attr, Message: message, Err: err}
}

// openFile opens one file as a says. It looks before it opens: opening some devices does something.
func openFile(path string, a *pluginv1.FileAccess, members map[string]json.RawMessage) (int, error) {
	readOnly := !a.GetWrite() && !a.GetAppend()
	if name := a.GetReadOnlyIf(); name != "" && string(members[name]) == "true" {
		readOnly = true
	}
	flags := unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK // a FIFO without a peer must not hold us up
	switch {
	case readOnly:
		flags |= unix.O_RDONLY
	case a.GetAppend():
		flags |= unix.O_WRONLY | unix.O_APPEND
	default:
		flags |= unix.O_RDWR
	}
	if st, err := os.Stat(path); err == nil {
		if err := checkKind(path, st.Mode(), a); err != nil {
			return -1, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return -1, fmt.Errorf("open %s: %w", path, unwrapPath(err))
	}
	if a.GetCreate() && !readOnly {
		flags |= unix.O_CREAT
	}
	var fd int
	err := retryEINTR(func() (err error) { fd, err = unix.Open(path, flags, 0o600); return err })
	if err != nil {
		return -1, openError(path, a, readOnly, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil {
		err = checkKind(path, fileMode(st.Mode), a) // it may be another file by now
	}
	if err == nil && (st.Mode&unix.S_IFMT == unix.S_IFREG || st.Mode&unix.S_IFMT == unix.S_IFBLK) {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openError says what the user can do.
func openError(path string, a *pluginv1.FileAccess, readOnly bool, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOENT):
		hint = ": check the path"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS), errors.Is(err, unix.ETXTBSY):
		hint = ": check who may read it"
		if !readOnly {
			hint = ": check who may write to it"
			if name := a.GetReadOnlyIf(); name != "" {
				hint += fmt.Sprintf(", or set %s = true", name)
			}
		}
	case errors.Is(err, unix.ENXIO):
		hint = ": a FIFO that nobody reads, or no such device"
	}
	return fmt.Errorf("open %s: %w%s", path, err, hint)
}

func unwrapPath(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// checkKind refuses kinds of files that the attribute does not allow.
func checkKind(path string, m fs.FileMode, a *pluginv1.FileAccess) error {
	var kind string
	switch {
	case m.IsDir():
		return fmt.Errorf("open %s: is a directory", path)
	case m.IsRegular() || a.GetAnyKind() && m&fs.ModeSocket == 0:
		return nil
	case m&fs.ModeCharDevice != 0:
		kind = "a character device"
	case m&fs.ModeDevice != 0:
		if a.GetBlockDevice() {
			return nil
		}
		kind = "a block device"
	case m&fs.ModeNamedPipe != 0:
		kind = "a FIFO"
	case m&fs.ModeSocket != 0:
		kind = "a socket"
	default:
		kind = "a special file"
	}
	want := "a regular file"
	if a.GetBlockDevice() {
		want += " or a block device"
	}
	return fmt.Errorf("open %s: is %s, not %s", path, kind, want)
}

// fileMode translates the file type of a stat's mode.
func fileMode(m uint32) fs.FileMode {
	switch m & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFBLK:
		return fs.ModeDevice
	case unix.S_IFCHR:
		return fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	}
	return fs.ModeIrregular
}

func retryEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
