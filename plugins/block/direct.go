package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// pageBlock is the size of the buffers that pages returns, in bytes: what one system call of a copying path moves.
const pageBlock = 1 << 20

// pages maps pageBlock bytes of anonymous memory: aligned for direct I/O, and not there until touched.
func pages(prot int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, pageBlock, prot, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return b, os.NewSyscallError("mmap", err)
}

// unmap releases what pages returned. Idempotent.
func unmap(b *[]byte) error {
	if *b == nil {
		return nil
	}
	mem := *b
	*b = nil
	return os.NewSyscallError("munmap", unix.Munmap(mem))
}

// direct is what I/O past the page cache (O_DIRECT) needs. The kernel wants offsets, sizes and addresses aligned. A driver
// keeps to the block size, so offsets and sizes fit as a rule; for those that do not, and for buffers at odd addresses (found
// out by EINVAL), there is a bounce buffer.
type direct struct {
	// align is what offsets and sizes must be a multiple of, a power of two.
	align int64

	mu     sync.Mutex
	bounce []byte
	list   [1][]byte
}

// piece is the first n bytes of the bounce buffer as a list. The caller's own list may be in use: not scratch's.
func (d *direct) piece(n int64) [][]byte {
	d.list[0] = d.bounce[:n]
	return d.list[:]
}

// fits tells whether the kernel takes e as it is. A nil direct takes all.
func (d *direct) fits(e extent) bool { return d == nil || (e.off|e.size)&(d.align-1) == 0 }

// setDirect turns O_DIRECT on or off. The flag belongs to the open file description, which a former instance may have
// left in either state.
func (m *image) setDirect(on bool) error {
	flags, err := unix.FcntlInt(m.file.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return os.NewSyscallError("fcntl F_GETFL", err)
	}
	want := flags &^ unix.O_DIRECT
	if on {
		want |= unix.O_DIRECT
	}
	if want != flags {
		if _, err := unix.FcntlInt(m.file.Fd(), unix.F_SETFL, want); err != nil {
			if on && errors.Is(err, unix.EINVAL) {
				return errors.New("the file system that holds the image has no direct I/O: set direct = false")
			}
			return os.NewSyscallError("fcntl F_SETFL", err)
		}
	}
	if !on {
		m.direct = nil
		return nil
	}
	buf, err := pages(unix.PROT_READ | unix.PROT_WRITE)
	if err != nil {
		return err
	}
	align, err := m.probeAlign(buf)
	if err != nil {
		return errors.Join(err, unmap(&buf))
	}
	m.direct = &direct{align: align, bounce: buf}
	return nil
}

// probeAlign finds the alignment of direct I/O: from the kernel (since 6.1), or by reading.
func (m *image) probeAlign(buf []byte) (int64, error) {
	var st unix.Statx_t
	err := unix.Statx(m.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if a := int64(st.Dio_offset_align); err == nil && st.Mask&unix.STATX_DIOALIGN != 0 && a > 0 && a&(a-1) == 0 && a <= pageBlock {
		return max(a, 512), nil
	}
	for align := int64(512); align <= 1<<16; align *= 2 {
		_, err := unix.Pread(m.fd, buf[:align], 0)
		if err == nil {
			return align, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return 0, fmt.Errorf("direct I/O: %w", err)
		}
	}
	return 0, errors.New("the file system that holds the image refuses direct I/O: set direct = false")
}

// step is the aligned piece around e's byte number done, at most one bounce buffer long.
func (d *direct) step(e extent, done int64) (start, end int64) {
	start = (e.off + done) &^ (d.align - 1)
	end = (e.end() + d.align - 1) &^ (d.align - 1)
	return start, min(end, start+pageBlock)
}

// bounceRead goes on with a read of which done bytes are there. It returns how many are there in the end.
func (m *image) bounceRead(s *scratch, bufs [][]byte, e extent, done int64) (int64, error) {
	d := m.direct
	d.mu.Lock()
	defer d.mu.Unlock()
	for done < e.size {
		start, end := d.step(e, done)
		n, err := s.ReadAt(m.fd, d.piece(end-start), start)
		from, to := e.off+done-start, min(int64(n), e.end()-start)
		if from < to {
			done += int64(scatter(bufs, done, d.bounce[from:to]))
		}
		if err != nil && (done < e.size || !errors.Is(err, io.EOF)) {
			return done, err
		}
	}
	return done, nil
}

// bounceWrite goes on with a write of which done bytes are written. The caller holds m.mu exclusively if e does not fit.
func (m *image) bounceWrite(s *scratch, bufs [][]byte, e extent, done int64) error {
	d := m.direct
	d.mu.Lock()
	defer d.mu.Unlock()
	for done < e.size {
		start, end := d.step(e, done)
		from, to := e.off+done-start, min(end, e.end())-start
		piece := d.piece(end - start)
		if from > 0 || to < end-start {
			if _, err := s.ReadAt(m.fd, piece, start); err != nil {
				return err
			}
		}
		gather(piece[0][from:to], bufs, done)
		if _, err := s.WriteAt(m.fd, piece, start); err != nil {
			return err
		}
		done += to - from
	}
	return nil
}

// replace writes an extent that does not fit: its first and last block are read, changed and written, which nothing else
// may do to those blocks meanwhile.
func (m *image) replace(s *scratch, bufs [][]byte, e extent) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.end() > m.bytes.Load() {
		return errBeyond
	}
	return m.bounceWrite(s, bufs, e, 0)
}
