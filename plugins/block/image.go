package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// image is the file or block device behind the disk. Its methods may be called from any goroutine; each needs a scratch of
// its own. Errors of I/O are *ioError.
type image struct {
	path        string
	file        *os.File
	fd          int
	blockDevice bool
	readOnly    bool
	// unmap: discarded ranges are given back to the file system or device.
	unmap bool
	// sector is a block device's logical block size; 1 for a file. Discards are made of whole sectors.
	sector int64
	// direct is set up by setDirect; nil: through the page cache.
	direct *direct

	// mu is held shared while an extent is used. Exclusive: the disk shrinks, or a part of a block is replaced (direct.go).
	mu sync.RWMutex
	// bytes is the disk's size: the image's, rounded down to whole blocks.
	bytes atomic.Int64
	// resizing is held while the size changes.
	resizing sync.Mutex
	// unit is what bytes is a multiple of.
	unit int64

	// lost is set for good by a failed synchronisation: see sync.
	lost atomic.Pointer[ioError]
	// syncing is held while the image is synchronised; syncs counts how often that has begun, synced is how the last one
	// ended.
	syncing sync.Mutex
	syncs   atomic.Uint64
	synced  error
	// fdatasync is unix.Fdatasync, and fsync unix.Fsync; tests count and break them.
	fdatasync, fsync func(fd int) error

	// What the file system or device turned out not to do.
	noDiscard, noPunch, noZeroRange atomic.Bool
	blank                           blankPages
}

// openImage takes an opened file, which stays the caller's if it fails.
func openImage(path string, f *os.File, readOnly bool) (*image, error) {
	m := &image{path: path, file: f, fd: int(f.Fd()), readOnly: readOnly, unit: virtio.SectorSize, sector: 1}
	m.fdatasync, m.fsync = unix.Fdatasync, unix.Fsync
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := st.Mode(); {
	case mode.IsRegular():
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		m.blockDevice = true
		ssz, err := unix.IoctlGetInt(m.fd, unix.BLKSSZGET)
		if err != nil {
			return nil, fmt.Errorf("logical block size: %w", os.NewSyscallError("ioctl BLKSSZGET", err))
		}
		m.sector = int64(ssz)
	case mode.IsDir():
		return nil, errors.New("is a directory: give a raw image file or a block device")
	default:
		return nil, fmt.Errorf("is neither a regular file nor a block device (%v)", mode.Type())
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_GETFL", err)
	}
	if !readOnly && flags&unix.O_ACCMODE != unix.O_RDWR {
		return nil, errors.New("is not open for writing: set read_only = true, or make it writable")
	}
	return m, nil
}

// measure returns how many bytes the file or device has now.
func (m *image) measure() (int64, error) {
	if m.blockDevice {
		n, err := unix.IoctlGetInt(m.fd, unix.BLKGETSIZE64)
		return int64(n), os.NewSyscallError("ioctl BLKGETSIZE64", err)
	}
	st, err := m.file.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// usable is size rounded down to whole blocks.
func (m *image) usable(size int64) int64 { return size - size%m.unit }

// sectors is the disk's capacity, in sectors of 512 bytes.
func (m *image) sectors() uint64 { return uint64(m.bytes.Load()) / virtio.SectorSize } //nolint:gosec // G115: never negative

// read fills bufs from e, and returns how many bytes it did.
func (m *image) read(s *scratch, bufs [][]byte, e extent) (int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if e.end() > m.bytes.Load() {
		return 0, m.fail(opRead, e, errBeyond)
	}
	n, err := 0, error(unix.EINVAL)
	if m.direct.fits(e) {
		n, err = s.ReadAt(m.fd, bufs, e.off)
	}
	if err == nil {
		return int64(n), nil
	}
	done := int64(n)
	if m.direct != nil && errors.Is(err, unix.EINVAL) {
		done, err = m.bounceRead(s, bufs, e, done)
	}
	if errors.Is(err, io.EOF) {
		err = errTruncated
	}
	return done, m.fail(opRead, e, err)
}

// write writes bufs to e.
func (m *image) write(s *scratch, bufs [][]byte, e extent) error {
	if !m.direct.fits(e) {
		return m.fail(opWrite, e, m.replace(s, bufs, e))
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if e.end() > m.bytes.Load() {
		return m.fail(opWrite, e, errBeyond)
	}
	n, err := s.WriteAt(m.fd, bufs, e.off)
	if err != nil && m.direct != nil && errors.Is(err, unix.EINVAL) {
		err = m.bounceWrite(s, bufs, e, int64(n))
	}
	return m.fail(opWrite, e, err)
}

// sync makes all writes that have finished durable. Whoever waits for another's synchronisation that began after its call
// shares the result.
//
// Once it has failed it fails for good: after an error the kernel marks the pages clean though they are not on the disk, so
// a second attempt would succeed and hide the loss. Direct I/O has no such pages. One at a time, for the kernel tells an
// error once for each open file: of two that run at once, one would succeed.
func (m *image) sync() error {
	if m.readOnly {
		return nil
	}
	mine := m.syncs.Load() + 1
	m.syncing.Lock()
	defer m.syncing.Unlock()
	if m.syncs.Load() < mine {
		m.synced = m.syncWith(m.fdatasync)
	}
	return m.synced
}

// syncSize makes the file's size durable too; it counts as a synchronisation, since it takes the kernel's report of lost
// writes.
func (m *image) syncSize() error {
	m.syncing.Lock()
	defer m.syncing.Unlock()
	m.synced = m.syncWith(m.fsync)
	return m.synced
}

// syncWith calls the kernel. The caller holds syncing.
func (m *image) syncWith(call func(fd int) error) error {
	m.syncs.Add(1)
	if lost := m.lost.Load(); lost != nil {
		return lost
	}
	err := call(m.fd)
	for errors.Is(err, unix.EINTR) {
		err = call(m.fd)
	}
	if err == nil {
		return nil
	}
	failed := &ioError{op: opFlush.String(), path: m.path, err: err}
	if m.direct == nil {
		failed.err = fmt.Errorf("writes may be lost, so every flush fails until the device is started again: %w", err)
		m.lost.Store(failed)
	}
	return failed
}

// fail makes err, if there is one, say what was done to which file where.
func (m *image) fail(o op, e extent, err error) error {
	if err == nil {
		return nil
	}
	return &ioError{op: o.String(), path: m.path, extent: e, err: err}
}

// close closes the file and releases memory. Locks go with the last descriptor of the file's description (lock.go).
func (m *image) close() error {
	err := errors.Join(m.file.Close(), m.blank.close())
	if m.direct != nil {
		err = errors.Join(err, unmap(&m.direct.bounce))
	}
	return err
}
