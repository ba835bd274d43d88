// Package memory makes guest RAM for machines that own it, and knows how much the host can give.
package memory

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// ErrTooLarge tells that the host does not have that much memory.
var ErrTooLarge = errors.New("more memory than the host can give")

// Span is a piece of guest-physical address space: Size bytes, a multiple of guestmem.PageSize, at Start.
type Span struct {
	Start guestmem.GPA
	Size  uint64
}

// RAM is guest memory: one sealed memfd that holds all spans, one after another. Its size can never change, so a plugin
// that mapped it cannot be made to fault. Immutable until Close; safe for concurrent use.
type RAM struct {
	file  *os.File
	table []device.MemoryRegion
}

// New makes zeroed memory for spans, in any order. The host gives pages when they are first touched. name is for
// /proc/PID/maps.
func New(name string, spans ...Span) (*RAM, error) {
	total, err := check(spans)
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	f, err := sealed(name, total)
	if err != nil {
		return nil, fmt.Errorf("guest memory: %d MiB: %w", total>>20, err)
	}
	m := &RAM{file: f}
	var off int64
	for _, s := range spans {
		m.table = append(m.table, device.MemoryRegion{GPA: s.Start, Size: s.Size, Offset: off, File: f})
		off += int64(s.Size) //nolint:gosec // check: the total is below 2^46
	}
	slices.SortFunc(m.table, func(a, b device.MemoryRegion) int {
		if a.GPA < b.GPA {
			return -1
		}
		return 1
	})
	return m, nil
}

func check(spans []Span) (total uint64, err error) {
	if len(spans) == 0 || len(spans) > guestmem.MaxRegions {
		return 0, fmt.Errorf("%d regions: want 1 to %d", len(spans), guestmem.MaxRegions)
	}
	for i, s := range spans {
		switch end := uint64(s.Start) + s.Size; {
		case s.Size == 0 || s.Size%guestmem.PageSize != 0 || s.Start%guestmem.PageSize != 0:
			return 0, fmt.Errorf("region %v+%#x: not a whole number of pages", s.Start, s.Size)
		case end < s.Size:
			return 0, fmt.Errorf("region %v+%#x: wraps the address space", s.Start, s.Size)
		}
		for _, o := range spans[:i] {
			if s.Start-o.Start < guestmem.GPA(o.Size) || o.Start-s.Start < guestmem.GPA(s.Size) {
				return 0, fmt.Errorf("region %v+%#x: overlaps region %v+%#x", s.Start, s.Size, o.Start, o.Size)
			}
		}
		if total += s.Size; total < s.Size {
			return 0, fmt.Errorf("%w: sizes add up to more than 2^64", ErrTooLarge)
		}
	}
	return total, CheckSize(total)
}

// sealed makes a memfd of n bytes that can neither shrink nor grow nor lose its seals.
func sealed(name string, n uint64) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Ftruncate(fd, int64(n)); err != nil { //nolint:gosec // CheckSize
		return nil, errors.Join(os.NewSyscallError("ftruncate", err), f.Close())
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl(F_ADD_SEALS)", err), f.Close())
	}
	return f, nil
}

// Table is the memory table, ascending by address, as device.Device.SetMemory takes it. The files stay m's.
func (m *RAM) Table() []device.MemoryRegion { return slices.Clone(m.table) }

// Map maps all of m into this process, for a driver or a machine that runs here. The mapping outlives m.
func (m *RAM) Map() (*guestmem.Memory, error) {
	rc, err := m.file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	var mem *guestmem.Memory
	var merr error
	if err := rc.Control(func(fd uintptr) {
		regions := make([]guestmem.MapRegion, len(m.table))
		for i, r := range m.table {
			regions[i] = guestmem.MapRegion{Start: r.GPA, Size: r.Size, FD: int(fd), Offset: r.Offset}
		}
		mem, merr = guestmem.Map(regions)
	}); err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	return mem, merr
}

// Close closes the file; mappings stay. Idempotent.
func (m *RAM) Close() error {
	if err := m.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("guest memory: %w", err)
	}
	return nil
}
