package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// errTruncated: the file ends inside the disk.
	errTruncated = errors.New("the image is shorter than the disk: something else truncated it")
	// errBeyond: the disk shrank while the request was on its way.
	errBeyond = errors.New("beyond the end of the disk, which was just made smaller")
)

// ioError is a failed operation on an image. It wraps its cause.
type ioError struct {
	op     string
	path   string
	extent extent
	err    error
}

// Error is "write: disk.img: 4096 bytes at offset 512: no space left on device: …".
func (e *ioError) Error() string {
	where := ""
	if e.extent.size > 0 {
		where = fmt.Sprintf("%d bytes at offset %d: ", e.extent.size, e.extent.off)
	}
	return fmt.Sprintf("%s: %s: %s%v%s", e.op, e.path, where, e.err, advice(e.err))
}

// Unwrap returns the cause.
func (e *ioError) Unwrap() error { return e.err }

// advice says what the user can do about err, where that is known.
func advice(err error) string {
	switch {
	case errors.Is(err, unix.ENOSPC):
		return ": the disk is full: free space on the file system that holds the image"
	case errors.Is(err, unix.EDQUOT):
		return ": the quota of the image's owner is used up: free space or raise the quota"
	case errors.Is(err, unix.EFBIG):
		return ": the image may not grow to that offset: see ulimit -f and the file system's limit"
	}
	return ""
}

// unsupported tells whether the kernel or file system lacks the operation itself.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTTY)
}
