package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// MemoryRegion is one piece of guest memory: Size bytes at Offset of File are at guest-physical address GPA. All three
// are multiples of guestmem.PageSize.
type MemoryRegion struct {
	GPA    guestmem.GPA
	Size   uint64
	Offset int64
	// File stays the caller's; the device keeps a duplicate.
	File *os.File
}

// region is a MemoryRegion with a descriptor of our own.
type region struct {
	gpa    guestmem.GPA
	size   uint64
	offset int64
	file   *os.File
}

// SetMemory replaces the guest memory table. Regions may be in any order. Queues that run are stopped, drained, and
// started again around the change; each must lie in the new table. ErrBadRequest if the table is not valid.
func (d *Device) SetMemory(ctx context.Context, regions []MemoryRegion) error {
	const op = "set memory"
	if err := d.lock(ctx); err != nil {
		return d.err(op, err)
	}
	defer d.unlock()
	table, err := dupRegions(regions)
	if err != nil {
		return d.err(op, err)
	}
	for i := range d.queues {
		if q := &d.queues[i]; q.running {
			if err := q.checkAreas(table); err != nil {
				closeRegions(table)
				return d.err(op, err)
			}
		}
	}
	l := d.current()
	if err := d.swapMemory(context.WithoutCancel(ctx), l, table); err != nil && !d.lost(l, err) {
		closeRegions(table)
		return d.err(op, err)
	}
	d.mu.Lock()
	old := d.memory
	d.memory = table
	d.mu.Unlock()
	closeRegions(old)
	return nil
}

// swapMemory gives l the new table, with its running queues stopped meanwhile. If the plugin refuses, the old table is
// put back. Before the features are known it is too early: then startOn does it.
func (d *Device) swapMemory(ctx context.Context, l *live, table []region) error {
	d.memoryOn = nil
	if l == nil || !d.featuresSet {
		return nil
	}
	var stopped []*queue
	for i := range d.queues {
		q := &d.queues[i]
		if !q.running || q.on != l {
			continue
		}
		if err := d.stopOn(ctx, l, q); err != nil {
			return err
		}
		stopped = append(stopped, q)
	}
	refused := d.attach(ctx, l, table)
	if refused != nil && !errors.Is(refused, ErrLost) && len(stopped) > 0 {
		table = d.memory
		if err := d.attach(ctx, l, table); err != nil {
			return fmt.Errorf("%w: neither the new nor the old memory table: %w", ErrLost, errors.Join(refused, err))
		}
	}
	for _, q := range stopped {
		if errors.Is(refused, ErrLost) {
			break
		}
		if err := d.restartOn(ctx, l, q, table); err != nil {
			return err
		}
	}
	return refused
}

// attach gives l the table.
func (d *Device) attach(ctx context.Context, l *live, table []region) error {
	if err := l.inst.AttachMemory(ctx, mapRegions(table)); err != nil {
		return fmt.Errorf("attach memory: %w", err)
	}
	d.memoryOn = l
	return nil
}

// dupRegions validates a table and duplicates its descriptors.
func dupRegions(in []MemoryRegion) (out []region, err error) {
	if len(in) == 0 || len(in) > guestmem.MaxRegions {
		return nil, fmt.Errorf("%w: %d regions: want 1 to %d", ErrBadRequest, len(in), guestmem.MaxRegions)
	}
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b MemoryRegion) int {
		if a.GPA < b.GPA {
			return -1
		}
		return 1
	})
	defer func() {
		if err != nil {
			closeRegions(out)
			out = nil
		}
	}()
	for i, r := range in {
		if err := checkRegion(r); err != nil {
			return out, err
		}
		if i > 0 && uint64(r.GPA-in[i-1].GPA) < in[i-1].Size {
			return out, fmt.Errorf("%w: region %v+%#x: overlaps region %v+%#x", ErrBadRequest, r.GPA, r.Size, in[i-1].GPA, in[i-1].Size)
		}
		f, err := dup(r.File)
		if err != nil {
			return out, fmt.Errorf("region %v: %w", r.GPA, err)
		}
		out = append(out, region{gpa: r.GPA, size: r.Size, offset: r.Offset, file: f})
	}
	return out, nil
}

func checkRegion(r MemoryRegion) error {
	const page = guestmem.PageSize
	bad := func(why string) error {
		return fmt.Errorf("%w: region %v+%#x at offset %#x: %s", ErrBadRequest, r.GPA, r.Size, r.Offset, why)
	}
	switch {
	case r.File == nil:
		return bad("no descriptor")
	case r.Size == 0 || r.Offset < 0 || r.Size%page != 0 || r.GPA%page != 0 || r.Offset%page != 0:
		return bad("not a whole number of pages")
	case uint64(r.GPA)+r.Size < r.Size:
		return bad("wraps the address space")
	}
	st, err := r.File.Stat()
	if err != nil {
		return bad(err.Error())
	}
	if st.Mode().IsRegular() && (st.Size() < r.Offset || uint64(st.Size()-r.Offset) < r.Size) { //nolint:gosec // not negative
		return bad(fmt.Sprintf("the file has only %d bytes", st.Size()))
	}
	return nil
}

func mapRegions(table []region) []guestmem.MapRegion {
	out := make([]guestmem.MapRegion, len(table))
	for i, r := range table {
		out[i] = guestmem.MapRegion{Start: r.gpa, Size: r.size, FD: fd(r.file), Offset: r.offset}
	}
	return out
}

func closeRegions(table []region) {
	for _, r := range table {
		_ = r.file.Close()
	}
}

// within tells in which region of table the n bytes at a lie, or nil.
func within(table []region, a guestmem.GPA, n uint64) *region {
	for i := range table {
		r := &table[i]
		if off := uint64(a - r.gpa); off < r.size && n <= r.size-off {
			return r
		}
	}
	return nil
}

// dup duplicates f's descriptor, close-on-exec, without changing its blocking mode as os.File.Fd would.
func dup(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	n, derr := -1, error(nil)
	if err := rc.Control(func(u uintptr) { n, derr = unix.FcntlInt(u, unix.F_DUPFD_CLOEXEC, 4) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", derr)
	}
	return os.NewFile(uintptr(n), f.Name()), nil
}

// fd is f's descriptor number, valid while f is open; -1 if f is nil or closed.
func fd(f *os.File) int {
	n := -1
	if f == nil {
		return n
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return n
	}
	if err := rc.Control(func(u uintptr) { n = int(u) }); err != nil {
		return -1
	}
	return n
}

// replace closes old and returns f.
func replace(old, f *os.File) *os.File {
	if old != nil && old != f {
		_ = old.Close()
	}
	return f
}
