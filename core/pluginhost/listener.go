package pluginhost

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// maxSocketPath is the longest path of a unix socket: sun_path less its NUL.
	maxSocketPath = 107
	// listenBacklog is arbitrary: a console has one peer.
	listenBacklog = 16
)

// openListener makes a listening unix stream socket at path, mode 0600. A socket that a dead process left there is
// replaced; anything else is refused. closer removes the path, if it is still ours.
func openListener(path string) (fd int, closer func() error, err error) {
	if len(path) > maxSocketPath {
		return -1, nil, fmt.Errorf("listen at %s: the path has %d bytes, a socket's has at most %d: choose a shorter one",
			path, len(path), maxSocketPath)
	}
	fd, err = bindListener(path)
	if errors.Is(err, unix.EADDRINUSE) {
		if err = removeStale(path); err == nil {
			fd, err = bindListener(path)
		}
	}
	if err != nil {
		return -1, nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	var ours unix.Stat_t
	statErr := unix.Lstat(path, &ours)
	return fd, func() error {
		var now unix.Stat_t
		var errs []error
		if statErr == nil && unix.Lstat(path, &now) == nil && now.Dev == ours.Dev && now.Ino == ours.Ino {
			errs = append(errs, os.Remove(path))
		}
		return errors.Join(append(errs, os.NewSyscallError("close", unix.Close(fd)))...)
	}, nil
}

func bindListener(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = unix.Fchmod(fd, 0o600); err == nil { // becomes the path's mode: no moment at which others may connect
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		if err = unix.Listen(fd, listenBacklog); err != nil {
			_ = unix.Unlink(path)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// removeStale removes a socket at path that nobody listens at.
func removeStale(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New("there is already a file that is no socket: choose another path, or remove it")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd) //nolint:errcheck // only asked
	err = retryEINTR(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
	if errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(path)
	}
	return fmt.Errorf("%w: a running program listens there: stop it or choose another path", unix.EADDRINUSE)
}
