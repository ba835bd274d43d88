package lguest

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Record is a Descriptor that was read from a page, and where it stands there.
type Record struct {
	Descriptor
	// Offset is where the record starts, in bytes from the start of the page.
	Offset int
}

// RingOffset is where vqconfig i is. This and the following are offsets from the start of the page, in bytes.
func (r *Record) RingOffset(i int) int { return r.Offset + r.ringsAt() + i*vqconfigSize }

// HostOffset is where the features offered are.
func (r *Record) HostOffset() int { return r.Offset + r.hostAt() }

// GuestOffset is where the features accepted are.
func (r *Record) GuestOffset() int { return r.Offset + r.guestAt() }

// ConfigOffset is where the configuration space is.
func (r *Record) ConfigOffset() int { return r.Offset + r.configAt() }

// StatusOffset is where the device status is.
func (r *Record) StatusOffset() int { return r.Offset + offStatus }

// End is the offset of the next record.
func (r *Record) End() int { return r.Offset + r.Size() }

// Page is what Parse found.
type Page struct {
	// Records are those that lie in the page whole, in their order, also if there is something wrong with them.
	Records []Record
	// End is the offset of the type 0 that ends the list; -1: there is none.
	End int
	// Problems is what is wrong, in the order of offsets; none: the page is good.
	Problems []Problem
}

// maxRingProblems is how many problems with rings are told singly; arbitrary. A page of rubbish has hundreds.
const maxRingProblems = 32

// Problem is one thing wrong with a page.
type Problem struct {
	// Offset is where, in bytes from the start of the page.
	Offset int `json:"offset"`
	// Device is which record, from 0; -1: none of them.
	Device int `json:"device"`
	// Text says what.
	Text string `json:"text"`
}

// String is the problem with its offset.
func (p Problem) String() string { return fmt.Sprintf("offset 0x%03x: %s", p.Offset, p.Text) }

// Surroundings is what is known of the memory around a page that is parsed. The zero value: nothing; then rings are not
// checked against it.
type Surroundings struct {
	// Page is the page's own guest-physical address.
	Page guestmem.GPA
	// Holds tells whether guest memory has the n bytes at a; nil: it is not known.
	Holds func(a guestmem.GPA, n uint64) bool
}

// Parse reads a device page. b may have any bytes; it is copied first, so it may alias guest memory, and only its first
// PageSize bytes count. What was read aliases nothing. It never fails: what is wrong is in Page.Problems.
func Parse(b []byte, s Surroundings) *Page {
	var copied [PageSize]byte
	p := &parser{b: copied[:copy(copied[:], b)], page: &Page{End: -1}, around: s}
	for p.at < len(p.b) {
		if p.b[p.at] == 0 {
			p.page.End = p.at
			break
		}
		if !p.record() {
			break
		}
	}
	if p.at >= len(p.b) {
		p.unterminated()
	}
	p.rings()
	slices.SortStableFunc(p.page.Problems, func(a, b Problem) int { return a.Offset - b.Offset })
	return p.page
}

// ParseMemory copies the page at address at out of guest memory, once, and parses it. The error is guestmem.ErrRange.
func ParseMemory(mem *guestmem.Memory, at guestmem.GPA) (*Page, error) {
	b, err := mem.Slice(at, PageSize)
	if err != nil {
		return nil, fmt.Errorf("device page: %w", err)
	}
	return Parse(b, Surroundings{Page: at, Holds: func(a guestmem.GPA, n uint64) bool {
		_, err := mem.Slice(a, int(n)) //nolint:gosec // G115: a ring's size
		return err == nil
	}}), nil
}

// parser walks a page.
type parser struct {
	b      []byte
	at     int
	page   *Page
	around Surroundings
}

func (p *parser) problem(offset int, format string, args ...any) {
	device := -1
	for i := range p.page.Records {
		if r := &p.page.Records[i]; offset >= r.Offset && offset < r.End() {
			device = i
		}
	}
	p.page.Problems = append(p.page.Problems, Problem{offset, device, fmt.Sprintf(format, args...)})
}

// record reads the record at p.at and steps behind it; false if it does not lie in the page.
func (p *parser) record() bool {
	left := len(p.b) - p.at
	if left < descSize {
		p.problem(p.at, "record %d: its header needs %d bytes, %d left: the list runs over the end", len(p.page.Records), descSize, left)
		return false
	}
	h := p.b[p.at : p.at+descSize]
	numVQ, featureLen, configLen := int(h[offNumVQ]), int(h[offFeatureLen]), int(h[offConfigLen])
	size := descSize + numVQ*vqconfigSize + 2*featureLen + configLen
	if size > left {
		p.problem(p.at, "record %d: type %d with %d rings, %d bytes of features and %d of configuration needs %d bytes, %d left: it runs over the end",
			len(p.page.Records), h[0], numVQ, featureLen, configLen, size, left)
		return false
	}
	r := Record{Offset: p.at, Descriptor: Descriptor{Type: h[0], Status: virtio.Status(h[offStatus])}}
	rest := p.b[p.at+descSize : p.at+size]
	take := func(n int) []byte {
		b := slices.Clone(rest[:n])
		rest = rest[n:]
		return b
	}
	for range numVQ {
		v := take(vqconfigSize)
		r.Rings = append(r.Rings, Ring{
			Num: binary.LittleEndian.Uint16(v), IRQ: binary.LittleEndian.Uint16(v[offIRQ:]), PFN: binary.LittleEndian.Uint32(v[offPFN:]),
		})
	}
	r.Host, r.Guest, r.Config = take(featureLen), take(featureLen), take(configLen)
	p.page.Records = append(p.page.Records, r)
	p.at += size
	return true
}

// unterminated tells that the list ends with the page, or with what there is of it.
func (p *parser) unterminated() {
	if len(p.b) < PageSize {
		p.problem(len(p.b), "only %d of %d bytes, and no type 0 that ends the list", len(p.b), PageSize)
		return
	}
	p.problem(PageSize, "no type 0 ends the list: it fills the page")
}

// span is a piece of guest memory that something occupies.
type span struct {
	start, end uint64
	name       string
}

// rings checks all rings by themselves and against each other.
func (p *parser) rings() {
	var seen []span
	if p.around.Page != 0 {
		seen = append(seen, span{uint64(p.around.Page), uint64(p.around.Page) + PageSize, "the device page"})
	}
	number, told, more := 0, 0, 0
	for d := range p.page.Records {
		rec := &p.page.Records[d]
		for i, r := range rec.Rings {
			tell := func(at int, why string) {
				if told++; told <= maxRingProblems {
					p.problem(at, "device %d: ring %d: %s", d, i, why)
				} else {
					more++
				}
			}
			if number++; number == MaxRings+1 {
				tell(rec.RingOffset(i), fmt.Sprintf("the page's ring number %d: the bus has at most %d", number, MaxRings))
			}
			if why := r.fault(); why != "" {
				tell(rec.RingOffset(i), why)
			}
			if r.PFN == 0 {
				tell(rec.RingOffset(i)+offPFN, "page 0: no ring was allocated")
			} else if r.Num != 0 {
				seen = p.place(r, seen, fmt.Sprintf("device %d's ring %d", d, i), func(why string) { tell(rec.RingOffset(i)+offPFN, why) })
			}
		}
	}
	if more > 0 {
		p.problem(p.page.Records[len(p.page.Records)-1].End(), "%d more problems with rings", more)
	}
}

// place checks where a ring lies and adds it to what was seen.
func (p *parser) place(r Ring, seen []span, name string, tell func(why string)) []span {
	l := layoutOf(r)
	s := span{uint64(l.Desc), uint64(l.Desc) + l.Bytes(), name}
	if p.around.Holds != nil && !p.around.Holds(l.Desc, l.Bytes()) {
		tell(fmt.Sprintf("%v+%#x: outside guest memory", l.Desc, l.Bytes()))
	}
	for _, o := range seen {
		if s.start < o.end && o.start < s.end {
			tell(fmt.Sprintf("%v+%#x: overlaps %s", l.Desc, l.Bytes(), o.name))
			break
		}
	}
	return append(seen, s)
}
