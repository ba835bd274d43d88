package device

import (
	"encoding/binary"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// signalPatience is how long a write that blocks is let be before the eventfd is emptied for it; arbitrary, far above what a
// write takes.
const signalPatience = 10 * time.Millisecond

// signalTries is how often: a plugin that fills an eventfd again and again is left to it, and a thread with it.
const signalTries = 10

// signal is Signal for a file, which may be closed.
func signal(f *os.File) {
	if n := fd(f); n >= 0 {
		Signal(n)
	}
}

// Signal writes one 8-byte count to an eventfd, pipe or socket that a plugin has too. It never blocks for long: what is full
// needs no waking, and what is closed has nobody to wake. Whether an eventfd's write blocks is not ours to say: its flags and
// its count are shared with the plugin, which may fill it after we looked. The descriptor stays the caller's, open meanwhile.
func Signal(n int) {
	p := []unix.PollFd{{Fd: int32(n), Events: unix.POLLOUT}} //nolint:gosec // descriptors are small
	if k, err := unix.Poll(p, 0); err != nil || k != 1 || p[0].Revents&unix.POLLOUT == 0 {
		return
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], 1)
	if err := unix.Sendto(n, b[:], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil); err != unix.ENOTSOCK {
		return
	}
	own, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 3) // n may be another's before a late write has begun
	if err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = unix.Write(own, b[:])
		_ = unix.Close(own)
	}()
	t := time.NewTicker(signalPatience)
	defer t.Stop()
	for range signalTries {
		select {
		case <-done:
			return
		case <-t.C: // it is full: a count that is taken away is one that is written next
			var got [8]byte
			_, _ = unix.Preadv2(n, [][]byte{got[:]}, -1, unix.RWF_NOWAIT)
		}
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
