// Package vecio reads and writes files straight into and out of guest memory, several buffers a call, without copying and
// without an allocation per request.
package vecio

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/internal/shm"
)

// IO does vectored I/O on files. It keeps scratch memory: one IO a goroutine. The zero value is ready.
type IO struct{ vec shm.Vec }

// ErrWouldBlock is returned by ReadNowait if the bytes are not in the page cache, or the file cannot tell.
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
