package device

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// signal writes one 8-byte count to an eventfd, pipe or socket. It never blocks: what is full needs no waking, and what
// is closed has nobody to wake.
func signal(f *os.File) {
	n := fd(f)
	if n < 0 {
		return
	}
	p := []unix.PollFd{{Fd: int32(n), Events: unix.POLLOUT}} //nolint:gosec // descriptors are small
	if k, err := unix.Poll(p, 0); err != nil || k != 1 || p[0].Revents&unix.POLLOUT == 0 {
		return
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], 1)
	if err := unix.Sendto(n, b[:], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil); err == unix.ENOTSOCK {
		_, _ = unix.Write(n, b[:])
	}
}

// orEventfd is f, or if that is nil an eventfd of our own in *own.
func orEventfd(f *os.File, own **os.File) (*os.File, error) {
	if f != nil {
		return f, nil
	}
	if *own == nil {
		n, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return nil, os.NewSyscallError("eventfd", err)
		}
		*own = os.NewFile(uintptr(n), "eventfd")
	}
	return *own, nil
}
