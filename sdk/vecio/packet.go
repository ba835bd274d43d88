package vecio

import (
	"errors"

	"golang.org/x/sys/unix"
)

var (
	// ErrTooLong is returned by ReadPacket for a packet that did not fit. It is gone.
	ErrTooLong = errors.New("packet is longer than its buffers")
	// ErrTooMany is returned for more than MaxPacketBuffers buffers.
	ErrTooMany = errors.New("more buffers than the kernel takes")
)

// MaxPacketBuffers is the most buffers, besides the head, that ReadPacket and WritePacket take.
const MaxPacketBuffers = MaxBuffers - 2

// currentPosition makes preadv2(2) and pwritev2(2) the same as readv(2) and writev(2).
const currentPosition = -1

// ReadPacket reads one packet of a tap interface or datagram socket into head, which may be empty, and then bufs. n is its length with
// the head. ErrWouldBlock: the descriptor is non-blocking and none is there. Interrupted calls go on; otherwise the error is
// ErrTooLong, ErrTooMany or a unix.Errno.
func (v *IO) ReadPacket(fd int, head []byte, bufs [][]byte) (n int, err error) {
	// The kernel tells the length only up to the room's: a byte more than fits shows that it was longer.
	total, ok := v.vec.SetPacket(head, bufs, v.spill[:])
	if !ok {
		return 0, ErrTooMany
	}
	for {
		n, e := v.vec.Preadv2(fd, currentPosition, 0)
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			return 0, ErrWouldBlock
		case e != 0:
			return 0, e
		case n == total:
			return 0, ErrTooLong
		}
		return n, nil
	}
}

// WritePacket writes one packet, head and then bufs, to a tap interface or datagram socket. ErrWouldBlock: the descriptor is
// non-blocking and has no room. Interrupted calls go on; otherwise the error is ErrTooMany or a unix.Errno.
func (v *IO) WritePacket(fd int, head []byte, bufs [][]byte) error {
	if _, ok := v.vec.SetPacket(head, bufs, nil); !ok {
		return ErrTooMany
	}
	for {
		switch _, e := v.vec.Pwritev2(fd, currentPosition, 0); e { //nolint:exhaustive // all the others are told
		case 0:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			return ErrWouldBlock
		default:
			return e
		}
	}
}
