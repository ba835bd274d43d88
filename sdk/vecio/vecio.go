// Package vecio reads and writes files and packets straight into and out of guest memory, several buffers a call, without copying
// and without an allocation per request.
package vecio

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/internal/shm"
)

// MaxBuffers is how many buffers one call of the kernel takes.
const MaxBuffers = shm.IovMax

// IO does vectored I/O on files. It keeps scratch memory: one IO a goroutine. The zero value is ready.
type IO struct {
	vec   shm.Vec
	spill [1]byte
}

// ErrWouldBlock is returned by ReadNowait if the bytes are not in the page cache, or the file cannot tell; and for packets that a
// non-blocking descriptor does not have, or has no room for.
var ErrWouldBlock = errors.New("would block")

// ReadAt fills bufs from byte offset off of fd. n is how many bytes were read, also on error; at the end of the file the
// error is io.EOF. Interrupted and short calls go on. Otherwise the error is a unix.Errno.
func (v *IO) ReadAt(fd int, bufs [][]byte, off int64) (n int, err error) {
	return v.all(fd, bufs, off, false)
}

// WriteAt writes bufs to fd at byte offset off. n is how many bytes were written, also on error. Interrupted and short
// calls go on; a call that writes nothing is io.ErrShortWrite. Otherwise the error is a unix.Errno.
func (v *IO) WriteAt(fd int, bufs [][]byte, off int64) (n int, err error) {
	return v.all(fd, bufs, off, true)
}

// all calls the kernel until everything is transferred.
func (v *IO) all(fd int, bufs [][]byte, off int64, write bool) (n int, err error) {
	for v.vec.Set(bufs, n) > 0 {
		var k int
		var e unix.Errno
		stuck := io.EOF
		if write {
			stuck = io.ErrShortWrite
			k, e = v.vec.Pwritev2(fd, off+int64(n), 0)
		} else {
			k, e = v.vec.Preadv2(fd, off+int64(n), 0)
		}
		switch {
		case e == unix.EINTR:
			continue
		case e != 0:
			return n, e
		case k == 0:
			return n, stuck
		}
		n += k
	}
	return n, nil
}

// Read reads once from fd's own position, as a socket, a tap or a pipe has it: a datagram or frame, or what a stream holds. 0: the
// end. Interrupted calls are repeated. Otherwise the error is a unix.Errno: EAGAIN if the descriptor is non-blocking and nothing is
// there. More than MaxBuffers of bufs are left out.
func (v *IO) Read(fd int, bufs [][]byte) (n int, err error) { return v.once(fd, bufs, 0, false) }

// Write writes bufs, less their first skip bytes, once to fd's own position; see Read. n may be less than all on a stream.
func (v *IO) Write(fd int, bufs [][]byte, skip int) (n int, err error) {
	return v.once(fd, bufs, skip, true)
}

// once is one call that the kernel takes for readv(2) or writev(2): offset -1.
func (v *IO) once(fd int, bufs [][]byte, skip int, write bool) (n int, err error) {
	v.vec.Set(bufs, skip)
	for {
		var e unix.Errno
		if write {
			n, e = v.vec.Pwritev2(fd, -1, 0)
		} else {
			n, e = v.vec.Preadv2(fd, -1, 0)
		}
		switch e { //nolint:exhaustive // all the others are told
		case unix.EINTR:
		case 0:
			return n, nil
		default:
			return 0, e
		}
	}
}

// ReadNowait is ReadAt for bytes that are in the page cache: it never waits for a disk (RWF_NOWAIT). It reads once and
// returns ErrWouldBlock with what it has if that was not all; file systems without the flag always do.
func (v *IO) ReadNowait(fd int, bufs [][]byte, off int64) (n int, err error) {
	want := v.vec.Set(bufs, 0)
	n, e := v.vec.Preadv2(fd, off, unix.RWF_NOWAIT)
	switch {
	case e == unix.EAGAIN || e == unix.EOPNOTSUPP || e == unix.EINTR || e == unix.ENOSYS:
		return 0, ErrWouldBlock
	case e != 0:
		return 0, e
	case n < want:
		return n, ErrWouldBlock
	}
	return n, nil
}
