package guestmem

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MapRegion says where a region's bytes are: size bytes at Offset of FD's file.
type MapRegion struct {
	Start  GPA
	Size   uint64
	FD     int
	Offset int64
}

// Map maps the regions shared and writable and returns their table; Close unmaps them. The descriptors stay the caller's
// and may be closed at once. A region that reaches past the end of its file is refused: touching it would raise SIGBUS.
func Map(regions []MapRegion) (*Memory, error) {
	var mapped []Region
	undo := func() error {
		var errs []error
		for _, r := range mapped {
			errs = append(errs, os.NewSyscallError("munmap", unix.Munmap(r.Data)))
		}
		return errors.Join(errs...)
	}
	for _, r := range regions {
		data, err := mapOne(r)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("map guest memory: region %v+%#x: %w", r.Start, r.Size, err), undo())
		}
		mapped = append(mapped, Region{Start: r.Start, Data: data})
	}
	m, err := New(mapped...)
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	m.unmap = undo
	return m, nil
}

func mapOne(r MapRegion) ([]byte, error) {
	const maxSize = 1 << 46 // half of a 47-bit user address space: no machine has more
	if r.Size == 0 || r.Size > maxSize || r.Offset < 0 || r.Offset%PageSize != 0 || r.Size%PageSize != 0 {
		return nil, fmt.Errorf("offset %#x: not a whole number of pages", r.Offset)
	}
	var st unix.Stat_t
	if err := unix.Fstat(r.FD, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Size < r.Offset || uint64(st.Size-r.Offset) < r.Size { //nolint:gosec // G115: not negative
		return nil, fmt.Errorf("file has %d bytes, region needs %d at %#x", st.Size, r.Size, r.Offset)
	}
	data, err := unix.Mmap(r.FD, r.Offset, int(r.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	return data, os.NewSyscallError("mmap", err)
}
