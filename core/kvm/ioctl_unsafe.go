//go:build linux && amd64

package kvm

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes a request with a number as its argument. The goroutine is in a system call for Go's scheduler meanwhile, as
// KVM_RUN takes its time.
func ioctl(fd int, req, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// ioctlStruct makes a request with a structure as its argument, which is the one that the request's number was made for, or
// begins with it where entries follow.
func ioctlStruct[T any](fd int, req uintptr, arg *T) (int, error) {
	// SAFETY: arg is alive and does not move during the call (Syscall keeps pointers converted in its arguments); T is of
	// the size that the kernel reads and writes, as it and req come from the same headers, and entries that follow are
	// counted in the structure's head.
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// AddressOf is where b is in this process. b is a mapping, not of Go's heap.
func AddressOf(b []byte) uint64 {
	// SAFETY: the address is only handed to the kernel, which checks accesses through it; whoever maps b keeps it mapped.
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}

// storeImmediateExit sets kvm_run's immediate_exit from any thread.
func storeImmediateExit(run []byte, on bool) {
	// The byte is the second of a word with request_interrupt_window, which is ours too and always 0, and padding.
	const word = offImmediateExit &^ 3
	var v uint32
	if on {
		v = 1 << (8 * (offImmediateExit - word))
	}
	// SAFETY: run is a mapping of at least a page, so the word is inside it and aligned; the caller keeps it mapped.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&run[word])), v)
}
