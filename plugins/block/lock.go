package main

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Image locks are open file description locks. The launcher keeps the description open for the life of the device, so a
// restarted or swapped instance, which gets the same description, shares the lock, and nobody can slip in between. They end
// with the last descriptor: nothing here unlocks, for that would take the lock from the other instance too.
//
// A writer locks the whole file exclusively. A reader takes part in QEMU's protocol (its include/block/block-common.h and
// block/file-posix.c), so that readers of both kinds share an image and a writer of either kind excludes them: it holds
// shared locks on bytes that say "I read consistently" and "I tolerate no writer, no resizer".
const (
	qemuPermBase   = 100 // + permission: somebody uses it
	qemuSharedBase = 200 // + permission: somebody does not tolerate it
	qemuConsistent = 0
	qemuWrite      = 1
	qemuResize     = 3
)

var errImageInUse = errors.New("is in use by another device, virtual machine or program")

// lock locks the image for the life of its description. It does not wait.
func (m *image) lock() error {
	if !m.readOnly {
		if err := setLock(m.fd, unix.F_WRLCK, 0, 0); err != nil {
			return lockError(err, "stop that one first; to share the image give read_only = true to all that use it")
		}
		return nil
	}
	const forReader = "something writes to it: stop that first"
	for _, b := range []int64{qemuPermBase + qemuConsistent, qemuSharedBase + qemuWrite, qemuSharedBase + qemuResize} {
		if err := setLock(m.fd, unix.F_RDLCK, b, 1); err != nil {
			return lockError(err, forReader)
		}
	}
	for _, b := range []int64{qemuPermBase + qemuWrite, qemuPermBase + qemuResize} {
		held, err := locked(m.fd, b)
		if err != nil {
			return lockError(err, forReader)
		}
		if held {
			return lockError(unix.EAGAIN, forReader)
		}
	}
	return nil
}

func setLock(fd int, kind int16, start, length int64) error {
	l := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: start, Len: length}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l)
}

// locked tells whether another description holds any lock on one byte.
func locked(fd int, at int64) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l)
	return l.Type != unix.F_UNLCK, err
}

// lockError tells "somebody has it" from "cannot be locked".
func lockError(err error, what string) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %s", errImageInUse, what)
	}
	return fmt.Errorf("cannot be locked: %w: if nothing else can use the image, set locking = \"off\"", err)
}
