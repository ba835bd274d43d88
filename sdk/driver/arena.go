package driver

import (
	"fmt"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// Arena hands out pieces of guest memory, ascending; Rewind takes all since a Mark back. Not safe for concurrent use.
type Arena struct {
	mem    *guestmem.Memory
	region int
	next   guestmem.GPA
}

// NewArena hands out mem's bytes from its first region's start.
func NewArena(mem *guestmem.Memory) *Arena {
	return &Arena{mem: mem, next: mem.Regions()[0].Start}
}

// Memory is what the arena hands out.
func (a *Arena) Memory() *guestmem.Memory { return a.mem }

// Alloc gives n bytes aligned to align (a power of two), in one region.
func (a *Arena) Alloc(n, align int) (guestmem.GPA, error) {
	for rs := a.mem.Regions(); a.region < len(rs); a.region++ {
		r := rs[a.region]
		at := (max(a.next, r.Start) + guestmem.GPA(align) - 1) &^ (guestmem.GPA(align) - 1)                  //nolint:gosec // G115: small positive
		if off := uint64(at - r.Start); off <= uint64(len(r.Data)) && uint64(n) <= uint64(len(r.Data))-off { //nolint:gosec // G115: as above
			a.next = at + guestmem.GPA(n) //nolint:gosec // G115: as above
			return at, nil
		}
	}
	return 0, fmt.Errorf("allocate guest memory: %d bytes: none left", n)
}

// Mark is how far an arena had been handed out.
type Mark struct {
	region int
	next   guestmem.GPA
}

// Mark remembers how far the arena is handed out.
func (a *Arena) Mark() Mark { return Mark{a.region, a.next} }

// Rewind takes back all that was handed out since m; nobody may use it any more.
func (a *Arena) Rewind(m Mark) { a.region, a.next = m.region, m.next }

// Buffer allocates n bytes and returns them as a buffer.
func (a *Arena) Buffer(n int) (Buffer, error) {
	at, err := a.Alloc(n, 16)
	return Buffer{at, uint32(n)}, err //nolint:gosec // G115: callers ask for less than 4 GiB
}

// Bytes gives a buffer's bytes, which alias guest memory.
func (a *Arena) Bytes(b Buffer) []byte {
	s, err := a.mem.Slice(b.Addr, int(b.Len))
	if err != nil {
		panic("BUG: " + err.Error()) // buffers come from Alloc
	}
	return s
}

// Buffer is a piece of guest memory.
type Buffer struct {
	Addr guestmem.GPA
	Len  uint32
}
