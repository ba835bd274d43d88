package main

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// discard gives e back to the file system or device. It is advice: what neither of them does is a success. What the disk
// reads there afterwards is zeroes (files) or the device's affair.
func (m *image) discard(e extent) error {
	if !m.unmap || m.noDiscard.Load() {
		return nil
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if e.end() > m.bytes.Load() {
		return m.fail(opDiscard, e, errBeyond)
	}
	whole := e.within(m.sector)
	if whole.size == 0 {
		return nil
	}
	err := error(unix.EOPNOTSUPP)
	if m.blockDevice {
		err = blockRange(m.fd, unix.BLKDISCARD, whole)
	}
	if unsupported(err) {
		err = fallocate(m.fd, unix.FALLOC_FL_PUNCH_HOLE, whole)
	}
	if unsupported(err) {
		m.noDiscard.Store(true)
		return nil
	}
	return m.fail(opDiscard, e, err)
}

// zero makes e read zeroes: by deallocating if the driver and the settings allow it, else by marking it zero, else, where
// the file system or device does neither, by writing.
func (m *image) zero(s *scratch, e extent) error {
	if e.size == 0 {
		return nil
	}
	done, err := m.zeroFast(e)
	if done || err != nil {
		return m.fail(opZero, e, err)
	}
	blank, err := m.blank.get()
	if err != nil {
		return m.fail(opZero, e, err)
	}
	for rest := e; rest.size > 0; {
		piece := extent{off: rest.off, size: min(rest.size, int64(len(blank)))}
		if err := m.write(s, s.single(blank[:piece.size]), piece); err != nil {
			return err
		}
		rest.off, rest.size = piece.end(), rest.size-piece.size
	}
	return nil
}

// zeroFast tries fallocate; false without an error: it does not do it here.
func (m *image) zeroFast(e extent) (bool, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if e.end() > m.bytes.Load() {
		return false, errBeyond
	}
	if e.unmap && m.unmap && !m.noPunch.Load() {
		if done, err := tried(fallocate(m.fd, unix.FALLOC_FL_PUNCH_HOLE, e), &m.noPunch); done || err != nil {
			return done, err
		}
	}
	if m.noZeroRange.Load() {
		return false, nil
	}
	return tried(fallocate(m.fd, unix.FALLOC_FL_ZERO_RANGE, e), &m.noZeroRange)
}

// tried sorts the outcomes of an optional operation: done, failed, or not done here. never remembers that it never will be.
// EINVAL is a range that a block device does not take (part of a block): only this one is not done.
func tried(err error, never *atomic.Bool) (bool, error) {
	switch {
	case err == nil:
		return true, nil
	case unsupported(err):
		never.Store(true)
		return false, nil
	case errors.Is(err, unix.EINVAL):
		return false, nil
	}
	return false, err
}

// fallocate never changes a file's size. On a block device the kernel makes it BLKZEROOUT with or without unmapping.
func fallocate(fd int, mode uint32, e extent) error {
	for {
		if err := unix.Fallocate(fd, mode|unix.FALLOC_FL_KEEP_SIZE, e.off, e.size); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// blockRange is one of the block layer's calls that take {u64 start, length}. x/sys has no call with such an argument,
// but one for any request number with a pointer to a Termios, whose first four fields are 32 bits each.
func blockRange(fd int, request uint, e extent) error {
	var arg [16]byte
	binary.NativeEndian.PutUint64(arg[0:], uint64(e.off))  //nolint:gosec // G115: never negative
	binary.NativeEndian.PutUint64(arg[8:], uint64(e.size)) //nolint:gosec // G115: never negative
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(arg[4*i:]) }
	t := unix.Termios{Iflag: word(0), Oflag: word(1), Cflag: word(2), Lflag: word(3)}
	for {
		if err := unix.IoctlSetTermios(fd, request, &t); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// within is the largest part of e that is made of whole units.
func (e extent) within(unit int64) extent {
	start := (e.off + unit - 1) / unit * unit
	end := e.end() / unit * unit
	return extent{off: start, size: max(end-start, 0), unmap: e.unmap}
}

// blankPages is memory of zeroes, made when first needed.
type blankPages struct {
	mu  sync.Mutex
	mem []byte
}

func (p *blankPages) get() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mem != nil {
		return p.mem, nil
	}
	var err error
	p.mem, err = pages(unix.PROT_READ)
	return p.mem, err
}

func (p *blankPages) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return unmap(&p.mem)
}
