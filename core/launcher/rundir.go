package launcher

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxRunDir is the longest path of a run directory: what is left of a socket's 107 bytes (unix(7)) for 40 bytes of file name.
const maxRunDir = 67

// lockName is a file in a run directory that its launcher keeps locked, so that others see that it lives, even if its process
// number is used again.
const lockName = ".lock"

// runDir is the private directory of one running VM.
type runDir struct {
	root, path string
	lock       *os.File
}

// DefaultRunRoot is where run directories are made: $XDG_RUNTIME_DIR/virtplug, or a directory of the user's own in /tmp if
// that is not there or too long for the paths of sockets.
func DefaultRunRoot() string {
	base := os.Getenv("XDG_RUNTIME_DIR")
	//nolint:gosec // G703: the user's own environment
	if info, err := os.Stat(base); filepath.IsAbs(base) && len(base) <= maxRunDir-len("/virtplug/")-nameLen && err == nil && info.IsDir() {
		return filepath.Join(base, "virtplug")
	}
	return fmt.Sprintf("/tmp/virtplug-%d", os.Getuid())
}

// nameLen is room for the directory of a VM with a short name.
const nameLen = 16

// newRunDir makes a run directory below root, and removes those of launchers that died.
func newRunDir(root, vm string) (*runDir, error) {
	// Whoever makes or removes run directories holds the root's lock, so none is taken for stale before it is locked.
	rootLock, err := lockRoot(root)
	if err != nil {
		return nil, err
	}
	defer rootLock.Close() //nolint:errcheck // nothing was written
	errClean := removeStale(root)
	path := filepath.Join(root, vm+"-"+strconv.Itoa(os.Getpid()))
	if len(path) > maxRunDir {
		path = filepath.Join(root, strconv.Itoa(os.Getpid()))
	}
	for n := 2; ; n++ { // several VMs in one process
		err = os.Mkdir(path, 0o700)
		if !errors.Is(err, fs.ErrExist) || n > 1000 {
			break
		}
		path = filepath.Join(root, strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(n))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make run directory: %w", err), errClean)
	}
	if len(path) > maxRunDir {
		return nil, errors.Join(fmt.Errorf("make run directory: %s: the path is too long for sockets in it (at most %d bytes); set XDG_RUNTIME_DIR to a shorter one", path, maxRunDir), os.Remove(path))
	}
	lock, err := lockFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	return &runDir{root: root, path: path, lock: lock}, nil
}

// Close removes the directory and everything in it, and the root if it was the last one.
func (r *runDir) Close() error {
	rootLock, err := lockRoot(r.root)
	if err != nil {
		return errors.Join(err, os.RemoveAll(r.path), r.lock.Close())
	}
	err = errors.Join(os.RemoveAll(r.path), r.lock.Close())
	if e := os.Remove(r.root); e != nil && !errors.Is(e, unix.ENOTEMPTY) && !errors.Is(e, unix.EEXIST) {
		err = errors.Join(err, fmt.Errorf("remove run directory: %w", e))
	}
	return errors.Join(err, rootLock.Close())
}

// lockRoot makes root if need be and locks it.
func lockRoot(root string) (*os.File, error) {
	for {
		if err := privateDir(root); err != nil {
			return nil, err
		}
		lock, err := lockFile(root, os.O_RDONLY|unix.O_DIRECTORY, unix.LOCK_EX)
		if errors.Is(err, fs.ErrNotExist) {
			continue // whoever used it last has just removed it
		}
		if err != nil {
			return nil, err
		}
		locked, err := lock.Stat()
		if now, e := os.Lstat(root); err == nil && e == nil && os.SameFile(locked, now) {
			return lock, nil
		}
		if err := errors.Join(err, lock.Close()); err != nil {
			return nil, fmt.Errorf("lock %s: %w", root, err)
		}
	}
}

// privateDir makes dir, or checks that it is a directory of ours that nobody else can write to: /tmp is everybody's.
func privateDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make run directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("make run directory: %s: is not a directory; remove it, or set XDG_RUNTIME_DIR", dir)
	case ok && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("make run directory: %s: belongs to user %d, not to you; set XDG_RUNTIME_DIR", dir, st.Uid)
	case info.Mode().Perm()&0o077 != 0:
		if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory needs its x bit
			return fmt.Errorf("make run directory: %w", err)
		}
	}
	return nil
}

// lockFile opens and locks a file; the lock ends when the file is closed or the process dies.
func lockFile(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // in a directory of our own
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// removeStale removes the run directories in root that no launcher holds. The caller holds the root's lock.
func removeStale(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("clean run directories: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(root, e.Name())
		lock, err := lockFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, unix.LOCK_EX|unix.LOCK_NB)
		if err != nil { // held: its launcher lives
			continue
		}
		errs = append(errs, os.RemoveAll(dir), lock.Close())
	}
	return errors.Join(errs...)
}
