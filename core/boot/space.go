package boot

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// The BIOS area of a PC: the EBDA, the display's memory, option ROMs and the BIOS. Kernels look for tables there and never
// use it as RAM, whatever the memory map says.
const (
	biosStart = 0x9fc00
	biosEnd   = 1 << 20
)

// maxAddress is the end of what any x86-64 processor can address (52 bits), so that sums of addresses cannot overflow.
const maxAddress = 1 << 52

// end returns the address behind r; it does not overflow for ranges that have been checked.
func (r Range) end() uint64 { return uint64(r.Start) + r.Size }

// valid tells whether r lies below maxAddress.
func (r Range) valid() bool {
	return r.Start <= maxAddress && r.Size <= maxAddress-uint64(r.Start)
}

func (r Range) overlaps(o Range) bool {
	return r.Size > 0 && o.Size > 0 && uint64(r.Start) < o.end() && uint64(o.Start) < r.end()
}

func (r Range) within(o Range) bool { return r.Start >= o.Start && r.end() <= o.end() }

// claim is memory that is in use, and what for.
type claim struct {
	Range
	what string
}

// space knows which guest memory is free. Everything that Load writes is claimed here first.
type space struct {
	open []Range // free RAM, ascending, disjoint, not adjacent
	used []claim
	top  uint64 // behind the highest byte of RAM
}

// newSpace checks the request's ranges, and takes out of RAM what is not for kernels.
func newSpace(r Request) (*space, error) {
	if len(r.RAM) == 0 {
		return nil, fmt.Errorf("%w: the machine has no RAM", ErrNoRoom)
	}
	s := &space{}
	for _, ram := range r.RAM {
		switch {
		case !ram.valid() || ram.Size == 0 || uint64(ram.Start)%guestmem.PageSize != 0 || ram.Size%guestmem.PageSize != 0:
			return nil, fmt.Errorf("RAM %v: not a range of pages", ram)
		case uint64(ram.Start) < s.top:
			return nil, fmt.Errorf("RAM %v: not above the range before it", ram)
		case r.Memory != nil && !backed(r.Memory, ram):
			return nil, fmt.Errorf("RAM %v: %w", ram, guestmem.ErrRange)
		}
		if n := len(s.open); n > 0 && s.open[n-1].end() == uint64(ram.Start) {
			s.open[n-1].Size += ram.Size
		} else {
			s.open = append(s.open, ram)
		}
		s.top = ram.end()
	}
	s.take(claim{Range{biosStart, biosEnd - biosStart}, "the BIOS area"})
	for _, x := range r.Reserved {
		if !x.valid() {
			return nil, fmt.Errorf("reserved range %#x+%#x: beyond the address space", uint64(x.Start), x.Size)
		}
		s.take(claim{x, "a reserved range"})
	}
	if !r.ACPI.valid() {
		return nil, fmt.Errorf("ACPI range %#x+%#x: beyond the address space", uint64(r.ACPI.Start), r.ACPI.Size)
	}
	s.take(claim{r.ACPI, "the ACPI tables"})
	return s, nil
}

// backed tells whether guest memory has all bytes of r.
func backed(mem *guestmem.Memory, r Range) bool {
	at := uint64(r.Start)
	for _, m := range mem.Regions() {
		start, size := uint64(m.Start), uint64(len(m.Data))
		if at >= start && at-start < size {
			if r.end()-start <= size {
				return true
			}
			at = start + size
		}
	}
	return false
}

// take removes c from what is open.
func (s *space) take(c claim) {
	if c.Size == 0 {
		return
	}
	s.open = subtract(s.open, c.Range)
	s.used = append(s.used, c)
}

// free tells whether all of r is free RAM.
func (s *space) free(r Range) bool {
	return r.valid() && slices.ContainsFunc(s.open, r.within)
}

// claim takes exactly r.
func (s *space) claim(what string, r Range) error {
	if s.free(r) {
		s.take(claim{r, what})
		return nil
	}
	for _, u := range s.used {
		if r.valid() && r.overlaps(u.Range) {
			return fmt.Errorf("%s at %v: overlaps %s at %v", what, r, u.what, u.Range)
		}
	}
	if !r.valid() {
		return fmt.Errorf("%s at %#x+%#x: %w: it is outside RAM", what, uint64(r.Start), r.Size, ErrNoRoom)
	}
	err := fmt.Errorf("%s at %v: %w: it is outside RAM, which ends at %#x", what, r, ErrNoRoom, s.top)
	if r.end() > s.top {
		err = fmt.Errorf("%w: give the VM at least %d MiB of memory", err, mebibytes(r.end()))
	}
	return err
}

// low takes the lowest size bytes that are free, aligned to align (a power of two), not below from and ending at or below
// limit.
func (s *space) low(what string, size, align uint64, from guestmem.GPA, limit uint64) (Range, error) {
	for _, o := range s.open {
		at := alignUp(max(uint64(o.Start), uint64(from)), align)
		if end := min(o.end(), limit); at <= end && size <= end-at {
			r := Range{guestmem.GPA(at), size}
			s.take(claim{r, what})
			return r, nil
		}
	}
	return Range{}, s.full(what, size, from, limit)
}

// high takes the highest size bytes that are free, aligned to align, not below from and ending at or below limit.
func (s *space) high(what string, size, align uint64, from guestmem.GPA, limit uint64) (Range, error) {
	for _, o := range slices.Backward(s.open) {
		start, end := max(o.Start, from), min(o.end(), limit)
		if end < uint64(start) || size > end-uint64(start) {
			continue
		}
		if at := guestmem.GPA((end - size) &^ (align - 1)); at >= start {
			r := Range{at, size}
			s.take(claim{r, what})
			return r, nil
		}
	}
	return Range{}, s.full(what, size, from, limit)
}

// full tells that size bytes are not to be had in one piece.
func (s *space) full(what string, size uint64, from guestmem.GPA, limit uint64) error {
	return fmt.Errorf("%s does not fit: %w: %d bytes, %d free: give the VM more memory", what, ErrNoRoom, size, s.largest(from, limit))
}

// largest is the size of the largest free piece of whole pages between from and limit, in bytes.
func (s *space) largest(from guestmem.GPA, limit uint64) uint64 {
	var n uint64
	for _, o := range s.open {
		start := alignUp(uint64(max(o.Start, from)), guestmem.PageSize)
		if end := min(o.end(), limit) &^ (guestmem.PageSize - 1); end > start {
			n = max(n, end-start)
		}
	}
	return n
}

// alignUp rounds up to a power of two. v is at most maxAddress, so it does not overflow.
func alignUp(v, align uint64) uint64 { return (v + align - 1) &^ (align - 1) }

// mebibytes rounds up.
func mebibytes(n uint64) uint64 { return (n + 1<<20 - 1) >> 20 }

// subtract returns what of the ascending ranges is not in cut.
func subtract(ranges []Range, cut Range) []Range {
	var out []Range
	for _, r := range ranges {
		if !r.overlaps(cut) {
			out = append(out, r)
			continue
		}
		if r.Start < cut.Start {
			out = append(out, Range{r.Start, uint64(cut.Start - r.Start)})
		}
		if r.end() > cut.end() {
			out = append(out, Range{guestmem.GPA(cut.end()), r.end() - cut.end()})
		}
	}
	return out
}

// union returns the same bytes as the ranges, ascending and disjoint, with adjacent ranges joined.
func union(ranges []Range) []Range {
	ranges = slices.DeleteFunc(slices.Clone(ranges), func(r Range) bool { return r.Size == 0 })
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	var out []Range
	for _, r := range ranges {
		if n := len(out); n > 0 && uint64(r.Start) <= out[n-1].end() {
			out[n-1].Size = max(out[n-1].end(), r.end()) - uint64(out[n-1].Start)
			continue
		}
		out = append(out, r)
	}
	return out
}
