package guestmem

import (
	"errors"
	"fmt"
	"sort"

	"github.com/virtplug/virtplug/sdk/internal/shm"
)

// GPA is a guest-physical address, in bytes.
type GPA uint64

// String prints hexadecimal.
func (a GPA) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// PageSize is the granule of region addresses and sizes, in bytes: what every machine that we know uses.
const PageSize = 4096

// MaxRegions is the largest table: what one SCM_RIGHTS message can carry less one (the kernel's SCM_MAX_FD is 253).
const MaxRegions = 252

// ErrRange is returned for an address or length that no region holds.
var ErrRange = errors.New("outside guest memory")

// Region is one contiguous piece of guest-physical memory.
type Region struct {
	Start GPA
	// Data is the region's bytes; its length is the region's size.
	Data []byte
}

func (r *Region) end() GPA { return r.Start + GPA(len(r.Data)) }

// Memory is a table of disjoint regions, ascending by address. It is immutable and safe for concurrent use until Close.
type Memory struct {
	regions []Region
	unmap   func() error
}

// New makes a table from regions, in any order. The slices are kept, not copied.
// It fails if there are none or too many, if one is empty, not page-aligned, wraps the address space, or overlaps another.
func New(regions ...Region) (*Memory, error) {
	if len(regions) == 0 || len(regions) > MaxRegions {
		return nil, fmt.Errorf("guest memory: %d regions: want 1 to %d", len(regions), MaxRegions)
	}
	rs := append([]Region(nil), regions...)
	sort.Slice(rs, func(i, j int) bool { return rs[i].Start < rs[j].Start })
	for i := range rs {
		r := &rs[i]
		switch {
		case len(r.Data) == 0:
			return nil, fmt.Errorf("guest memory: region %v: empty", r.Start)
		case r.Start%PageSize != 0 || len(r.Data)%PageSize != 0:
			return nil, fmt.Errorf("guest memory: region %v+%#x: not a multiple of %d", r.Start, len(r.Data), PageSize)
		case r.end() < r.Start:
			return nil, fmt.Errorf("guest memory: region %v+%#x: wraps the address space", r.Start, len(r.Data))
		case i > 0 && rs[i-1].end() > r.Start:
			return nil, fmt.Errorf("guest memory: region %v+%#x: overlaps region %v+%#x", r.Start, len(r.Data), rs[i-1].Start, len(rs[i-1].Data))
		}
	}
	return &Memory{regions: rs}, nil
}

// Regions returns the table, ascending. The caller must not change it.
func (m *Memory) Regions() []Region { return m.regions }

// Size is the sum of the regions' sizes, in bytes.
func (m *Memory) Size() uint64 {
	var n uint64
	for i := range m.regions {
		n += uint64(len(m.regions[i].Data))
	}
	return n
}

// Slice returns the n bytes at a. They must lie in one region: use it for rings and headers, Append for buffers.
// n == 0 is ErrRange too: nothing in virtio has an empty area. Allocates nothing unless it fails.
func (m *Memory) Slice(a GPA, n int) ([]byte, error) {
	if r := m.find(a); r != nil && n > 0 {
		off := uint64(a - r.Start)
		if uint64(n) <= uint64(len(r.Data))-off {
			return r.Data[off : off+uint64(n) : off+uint64(n)], nil
		}
	}
	return nil, fmt.Errorf("%v+%#x: %w", a, n, ErrRange)
}

// Append appends to dst the slices that make up the n bytes at a, several if the range crosses from one region to an
// adjacent one. On error dst is returned as it was. Allocates nothing while dst has room.
func (m *Memory) Append(dst [][]byte, a GPA, n uint32) ([][]byte, error) {
	out, left := dst, uint64(n)
	for at := a; left > 0; {
		r := m.find(at)
		if r == nil {
			return dst, fmt.Errorf("%v+%#x: %w", a, n, ErrRange)
		}
		off := uint64(at - r.Start)
		k := min(left, uint64(len(r.Data))-off)
		out = append(out, r.Data[off:off+k:off+k])
		left -= k
		at += GPA(k)
		if at == 0 && left > 0 { // wrapped
			return dst, fmt.Errorf("%v+%#x: %w", a, n, ErrRange)
		}
	}
	return out, nil
}

// find returns the region that holds a, or nil. Tables are short: a linear walk beats a search.
func (m *Memory) find(a GPA) *Region {
	for i := range m.regions {
		r := &m.regions[i]
		if a-r.Start < GPA(len(r.Data)) {
			return r
		}
	}
	return nil
}

// Holds tells whether the address of this process lies in one of the regions: for telling a fault on guest memory (its file
// was truncated) from a bug.
func (m *Memory) Holds(address uintptr) bool {
	for i := range m.regions {
		if shm.Holds(m.regions[i].Data, address) {
			return true
		}
	}
	return false
}

// Close unmaps what Map mapped. Idempotent; not to be called while a slice is in use.
func (m *Memory) Close() error {
	if m.unmap == nil {
		return nil
	}
	u := m.unmap
	m.unmap = nil
	return u()
}
