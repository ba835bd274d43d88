package shm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// IovMax is the kernel's limit of vectors a call (UIO_MAXIOV).
const IovMax = 1024

// Vec is a reusable vector list for the calls below. Not safe for concurrent use. The zero value is ready.
type Vec struct{ iov []unix.Iovec }

// Set makes v describe up to IovMax of bufs, skipping the first skip bytes, and returns how many bytes it describes.
// It allocates only while v grows.
func (v *Vec) Set(bufs [][]byte, skip int) int {
	v.iov = v.iov[:0]
	total := 0
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b = b[skip:]
		skip = 0
		if len(v.iov) == IovMax {
			break
		}
		iov := unix.Iovec{Base: &b[0]}
		iov.SetLen(len(b))
		v.iov = append(v.iov, iov)
		total += len(b)
	}
	return total
}

// SetPacket makes v describe head, bufs and tail, and returns how many bytes that is. ok is false if it takes more than IovMax
// vectors. It allocates only while v grows.
func (v *Vec) SetPacket(head []byte, bufs [][]byte, tail []byte) (total int, ok bool) {
	v.iov = v.iov[:0]
	add := func(b []byte) {
		if len(b) == 0 {
			return
		}
		iov := unix.Iovec{Base: &b[0]}
		iov.SetLen(len(b))
		v.iov = append(v.iov, iov)
		total += len(b)
	}
	add(head)
	for _, b := range bufs {
		if len(v.iov) > IovMax {
			return 0, false
		}
		add(b)
	}
	add(tail)
	return total, len(v.iov) <= IovMax
}

// Preadv2 is preadv2(2) on what Set described.
func (v *Vec) Preadv2(fd int, off int64, flags int) (int, unix.Errno) {
	return v.call(unix.SYS_PREADV2, fd, off, flags)
}

// Pwritev2 is pwritev2(2) on what Set described.
func (v *Vec) Pwritev2(fd int, off int64, flags int) (int, unix.Errno) {
	return v.call(unix.SYS_PWRITEV2, fd, off, flags)
}

func (v *Vec) call(nr uintptr, fd int, off int64, flags int) (int, unix.Errno) {
	if len(v.iov) == 0 {
		return 0, 0
	}
	// SAFETY: the vectors point into slices that the caller holds across the call (guest memory, or heap kept alive by
	// v.iov's Base pointers); their number is len(v.iov) <= IovMax. On 64-bit the offset is one register (pos_l), pos_h 0.
	n, _, e := unix.Syscall6(nr, uintptr(fd), uintptr(unsafe.Pointer(&v.iov[0])), uintptr(len(v.iov)), uintptr(off), 0, uintptr(flags)) //nolint:gosec // G115: register values
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}
