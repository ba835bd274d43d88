package vhostuser

import (
	"cmp"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// memTable is a checked memory table, with its descriptors.
type memTable struct {
	regions []MemRegion // in the order sent
	files   []*os.File  // files[i] backs regions[i]
}

// newMemTable checks a table against its descriptors. It takes over fds if it succeeds.
func newMemTable(regions []MemRegion, fds []int) (*memTable, error) {
	if len(regions) != len(fds) {
		return nil, fmt.Errorf("%w: %d regions with %d descriptors", ErrProtocol, len(regions), len(fds))
	}
	for i, r := range regions {
		if err := checkRegion(r, fds[i]); err != nil {
			return nil, fmt.Errorf("region %d (%#x+%#x): %w", i, r.GPA, r.Size, err)
		}
	}
	for _, key := range []struct {
		name string
		of   func(MemRegion) uint64
	}{
		{"guest-physical", func(r MemRegion) uint64 { return r.GPA }},
		{"user", func(r MemRegion) uint64 { return r.UserAddr }},
	} {
		sorted := slices.SortedFunc(slices.Values(regions), func(a, b MemRegion) int {
			return cmp.Compare(key.of(a), key.of(b))
		})
		for i := 1; i < len(sorted); i++ {
			if key.of(sorted[i])-key.of(sorted[i-1]) < sorted[i-1].Size {
				return nil, fmt.Errorf("%w: regions overlap at %s address %#x", ErrProtocol, key.name, key.of(sorted[i]))
			}
		}
	}
	t := &memTable{regions: regions}
	for _, fd := range fds {
		t.files = append(t.files, os.NewFile(uintptr(fd), "guest-memory"))
	}
	return t, nil
}

func checkRegion(r MemRegion, fd int) error {
	const page = guestmem.PageSize
	switch {
	case r.Size == 0:
		return fmt.Errorf("%w: empty", ErrProtocol)
	case r.GPA%page != 0 || r.Size%page != 0 || r.MmapOffset%page != 0 || r.UserAddr%page != 0:
		return fmt.Errorf("%w: user address %#x, offset %#x: not all multiples of %d", ErrProtocol, r.UserAddr, r.MmapOffset, page)
	case r.GPA+r.Size < r.GPA || r.UserAddr+r.Size < r.UserAddr:
		return fmt.Errorf("%w: wraps the address space", ErrProtocol)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	size := uint64(max(st.Size, 0))
	if r.MmapOffset > size || r.Size > size-r.MmapOffset {
		return fmt.Errorf("%w: its file has %d bytes, fewer than offset %#x and size need", ErrProtocol, size, r.MmapOffset)
	}
	return nil
}

// deviceRegions is the table as a Device takes it.
func (t *memTable) deviceRegions() []device.MemoryRegion {
	out := make([]device.MemoryRegion, len(t.regions))
	for i, r := range t.regions {
		out[i] = device.MemoryRegion{
			GPA: guestmem.GPA(r.GPA), Size: r.Size, File: t.files[i],
			Offset: int64(r.MmapOffset), //nolint:gosec // checkRegion: inside a file
		}
	}
	return out
}

// translate turns the user address of n bytes, which must lie in one region, into a guest-physical one.
func (t *memTable) translate(user uint64, n int, align uint64) (guestmem.GPA, error) {
	for _, r := range t.regions {
		off := user - r.UserAddr
		if off >= r.Size {
			continue
		}
		gpa := r.GPA + off
		switch {
		case uint64(n) > r.Size-off: //nolint:gosec // n is a ring's size
			return 0, fmt.Errorf("%w: %d bytes at user address %#x reach past their region", ErrProtocol, n, user)
		case gpa%align != 0:
			return 0, fmt.Errorf("%w: address %#x is not a multiple of %d", ErrProtocol, gpa, align)
		}
		return guestmem.GPA(gpa), nil
	}
	return 0, fmt.Errorf("%w: user address %#x is outside guest memory", ErrProtocol, user)
}

func (t *memTable) close() {
	if t == nil {
		return
	}
	for _, f := range t.files {
		_ = f.Close()
	}
}
