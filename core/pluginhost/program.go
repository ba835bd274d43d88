package pluginhost

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// executableFD is the lowest number for a program's descriptor: out of the way of those that a child inherits.
const executableFD = 64

// openProgram opens a program once: what is checked here is what spawn executes. sha256Hex pins it if not empty.
func openProgram(path, sha256Hex string) (*os.File, error) {
	n, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	high, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, executableFD)
	_ = unix.Close(n)
	if err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMFILE) {
			err = fmt.Errorf("too few open files are allowed: raise the limit, such as by `ulimit -n 1024`: %w", err)
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(high), path)
	st, err := f.Stat()
	if err == nil {
		err = checkMode(path, st)
	}
	if err == nil && sha256Hex != "" {
		err = checkHash(f, path, sha256Hex)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func checkHash(f *os.File, path, want string) error {
	wanted, err := hex.DecodeString(strings.TrimPrefix(strings.ToLower(want), "sha256:"))
	if err != nil || len(wanted) != sha256.Size {
		return fmt.Errorf("%s: pinned hash %q: want 64 hexadecimal digits", path, want)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62)); err != nil {
		return fmt.Errorf("hash %s: %w", path, err)
	}
	if got := h.Sum(nil); subtle.ConstantTimeCompare(got, wanted) != 1 {
		return fmt.Errorf("%s: %w: it is %x, pinned is %x: if the change was meant, pin the new one", path, ErrHash, got, wanted)
	}
	return nil
}

// isScript tells whether f is run by an interpreter, which opens the program by name and so needs its descriptor.
func isScript(f *os.File) bool {
	var b [2]byte
	_, err := f.ReadAt(b[:], 0)
	return err == nil && bytes.Equal(b[:], []byte("#!"))
}
