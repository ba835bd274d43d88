package boot

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// headSize is what is read of any file to tell what it is: the setup header of a bzImage ends before 0x290.
const headSize = 0x1000

// copyChunk bounds one copy into guest memory: less than 2^32, which guestmem.Append takes. Else arbitrary.
const copyChunk = 1 << 30

// image is a file of size bytes, read with bounds.
type image struct {
	f    io.ReaderAt
	size uint64
}

func newImage(f io.ReaderAt, size int64) image {
	if size < 0 {
		size = 0
	}
	return image{f, uint64(size)}
}

// head returns the first bytes of the file, fewer than headSize if it is shorter.
func (im image) head() ([]byte, error) {
	if im.size == 0 {
		return nil, fmt.Errorf("%w: an empty file", ErrNotKernel)
	}
	return im.read(0, min(im.size, headSize), "file")
}

// holds tells whether n bytes at off lie within the file.
func (im image) holds(off, n uint64) bool { return off <= im.size && n <= im.size-off }

// read returns the n bytes at off, which are called what. The caller bounds n.
func (im image) read(off, n uint64, what string) ([]byte, error) {
	if err := im.check(off, n, what); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if err := im.fill(b, off, what); err != nil {
		return nil, err
	}
	return b, nil
}

func (im image) check(off, n uint64, what string) error {
	if !im.holds(off, n) {
		return fmt.Errorf("%s: %w: %d bytes at %#x are wanted, the file has %d bytes: copy or download it again", what, ErrTruncated, n, off, im.size)
	}
	return nil
}

// fill reads b from off.
func (im image) fill(b []byte, off uint64, what string) error {
	if off > math.MaxInt64 {
		return fmt.Errorf("%s: %w", what, ErrTruncated)
	}
	n, err := im.f.ReadAt(b, int64(off))
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%s: %w: it ended at byte %d of %d", what, ErrTruncated, off+uint64(max(n, 0)), im.size)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// load copies the n bytes at off straight into guest memory at at.
func (im image) load(mem *guestmem.Memory, at guestmem.GPA, off, n uint64, what string) error {
	if err := im.check(off, n, what); err != nil {
		return err
	}
	return eachSlice(mem, at, n, func(b []byte) error {
		if err := im.fill(b, off, what); err != nil {
			return err
		}
		off += uint64(len(b))
		return nil
	})
}

// zero clears guest memory.
func zero(mem *guestmem.Memory, at guestmem.GPA, n uint64) error {
	return eachSlice(mem, at, n, func(b []byte) error { clear(b); return nil })
}

// store writes b to guest memory.
func store(mem *guestmem.Memory, at guestmem.GPA, b []byte) error {
	return eachSlice(mem, at, uint64(len(b)), func(s []byte) error {
		b = b[copy(s, b):]
		return nil
	})
}

// eachSlice calls f with the pieces of guest memory that make up the n bytes at at, in order.
func eachSlice(mem *guestmem.Memory, at guestmem.GPA, n uint64, f func([]byte) error) error {
	var pieces [][]byte
	for n > 0 {
		k := min(n, copyChunk)
		var err error
		if pieces, err = mem.Append(pieces[:0], at, uint32(k)); err != nil {
			return err
		}
		for _, b := range pieces {
			if err := f(b); err != nil {
				return err
			}
		}
		at += guestmem.GPA(k)
		n -= k
	}
	return nil
}
