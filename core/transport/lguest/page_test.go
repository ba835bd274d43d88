package lguest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// golden is the page of lguest's own Launcher with --tunnet=192.168.19.1:02:00:00:00:00:01 --block=FILE 64: a network device, a
// disk of 2048 sectors, the console; page at 64 MiB.
const golden = "" +
	"0102040800" + "0001010001400000" + "0001020004400000" + "a33b0010" + "00000000" + "0200000000010000" +
	"0201021000" + "0001030007400000" + "0402" + "0000" + "00080000000000000000000" + "0fe000000" +
	"0302000000" + "000104000a400000" + "000105000d400000" +
	"00"

const goldenPage guestmem.GPA = 64 << 20

func goldenBytes(tb testing.TB) []byte {
	tb.Helper()
	b, err := hex.DecodeString(golden)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// goldenDevices are the records, made as the Launcher made them: rings, then features, then the configuration space.
func goldenDevices() []Descriptor {
	net := Descriptor{Type: 1, Rings: []Ring{{256, 1, 0x4001}, {256, 2, 0x4004}}, Config: []byte{2, 0, 0, 0, 0, 1, 0, 0}}
	for _, bit := range []uint{5, 0, 1, 7, 8, 9, 11, 12, 13, 28} {
		net.AddFeature(bit)
	}
	block := Descriptor{Type: 2, Rings: []Ring{{256, 3, 0x4007}}, Config: []byte{0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254, 0, 0, 0}}
	block.AddFeature(9)
	block.AddFeature(2)
	return []Descriptor{net, block, {Type: 3, Rings: []Ring{{256, 4, 0x400a}, {256, 5, 0x400d}}}}
}

func TestTheGoldenPageByteForByte(t *testing.T) {
	t.Parallel()
	var b Builder
	for i, d := range goldenDevices() {
		at, err := b.Add(d)
		if want := []int{0, 0x25, 0x46}[i]; err != nil || at != want {
			t.Fatalf("device %d: offset %#x, %v: want %#x", i, at, err, want)
		}
	}
	want := append(goldenBytes(t), make([]byte, PageSize-len(goldenBytes(t)))...)
	if got := b.Page(); !bytes.Equal(got, want) {
		t.Errorf("page\n%swant\n%s", hex.Dump(got[:0x60]), hex.Dump(want[:0x60]))
	}
}

func TestTheGoldenPageIsReadBack(t *testing.T) {
	t.Parallel()
	ram := func(a guestmem.GPA, n uint64) bool { return uint64(a)+n <= uint64(goldenPage)+16*PageSize }
	p := Parse(goldenBytes(t), Surroundings{Page: goldenPage, Holds: ram})
	if len(p.Problems) != 0 || p.End != 0x5b || len(p.Records) != 3 {
		t.Fatalf("%d records, end %#x, problems %v", len(p.Records), p.End, p.Problems)
	}
	var b Builder
	for i := range p.Records {
		r := &p.Records[i]
		if at, err := b.Add(r.Descriptor); err != nil || at != r.Offset {
			t.Errorf("record %d: built again at %#x, %v: it was at %#x", i, at, err, r.Offset)
		}
	}
	if got := b.Page()[:p.End+1]; !bytes.Equal(got, goldenBytes(t)) {
		t.Errorf("built again:\n%s", hex.Dump(got))
	}
	net, block, con := &p.Records[0], &p.Records[1], &p.Records[2]
	if f := net.Offered(); f != 0x10003ba3 {
		t.Errorf("network device offers %v", f)
	}
	if f := block.Offered(); f != 1<<2|1<<9 {
		t.Errorf("disk offers %v", f)
	}
	for what, c := range map[string][2]int{
		"net ring 1": {net.RingOffset(1), 0x0d}, "net host": {net.HostOffset(), 0x15}, "net guest": {net.GuestOffset(), 0x19},
		"net config": {net.ConfigOffset(), 0x1d}, "net end": {net.End(), 0x25}, "block status": {block.StatusOffset(), 0x29},
		"block config": {block.ConfigOffset(), 0x36}, "console end": {con.End(), 0x5b},
	} {
		if c[0] != c[1] {
			t.Errorf("%s at %#x, want %#x", what, c[0], c[1])
		}
	}
}

func TestRingsAreLaidOutAsVringInitDoes(t *testing.T) {
	t.Parallel()
	l := RingLayout(0x4001000, 256)
	if l.Desc != 0x4001000 || l.Avail != 0x4002000 || l.Used != 0x4003000 || l.Bytes() != 10246 || l.Pages() != 3 {
		t.Errorf("256 entries: %+v, %d bytes, %d pages", l, l.Bytes(), l.Pages())
	}
	// The available ring of 128 entries ends on the first page, and the used ring still starts on one of its own.
	if l = RingLayout(0x1000, 128); l.Avail != 0x1800 || l.Used != 0x2000 || l.Pages() != 2 {
		t.Errorf("128 entries: %+v, %d pages", l, l.Pages())
	}
	if l = RingLayout(0x1000, 1); l.Avail != 0x1010 || l.Used != 0x2000 || l.Bytes() != 0x1000+14 {
		t.Errorf("1 entry: %+v, %d bytes", l, l.Bytes())
	}
}

func TestFeatureBitmapsGrowAsTheyMust(t *testing.T) {
	t.Parallel()
	var d Descriptor
	for _, c := range []struct {
		bit uint
		n   int
	}{{0, 1}, {7, 1}, {8, 2}, {3, 2}, {31, 4}, {32, 5}} {
		d.AddFeature(c.bit)
		if len(d.Host) != c.n || len(d.Guest) != c.n {
			t.Errorf("with bit %d: %d and %d bytes, want %d", c.bit, len(d.Host), len(d.Guest), c.n)
		}
	}
	if d.Offered() != 1|1<<7|1<<8|1<<3|1<<31 {
		t.Errorf("a guest sees %v: bit 32 is beyond what it looks at", d.Offered())
	}
}

func TestRecordsThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, want string
		d          Descriptor
	}{
		{"type 0", "ends the list", Descriptor{}},
		{"features", "feature_len 256: the field has one byte", Descriptor{Type: 1, Host: make([]byte, 256), Guest: make([]byte, 256)}},
		{"config", "config_len 256", Descriptor{Type: 1, Config: make([]byte, 256)}},
		{"two lengths", "one feature_len", Descriptor{Type: 1, Host: make([]byte, 2)}},
		{"rings", "too many virtqueues", Descriptor{Type: 1, Rings: make([]Ring, 256)}},
		{"irq 0", "timer", Descriptor{Type: 1, Rings: []Ring{{256, 0, 1}}}},
		{"irq 32", "at most 31", Descriptor{Type: 1, Rings: []Ring{{256, 32, 1}}}},
		{"no entries", "not a power of two", Descriptor{Type: 1, Rings: []Ring{{0, 1, 1}}}},
		{"odd entries", "not a power of two", Descriptor{Type: 1, Rings: []Ring{{255, 1, 1}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if _, err := new(Builder).Add(c.d); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Add = %v: want %q", err, c.want)
			}
		})
	}
}

func TestTooManyDevicesAreToldWithTheNumbers(t *testing.T) {
	t.Parallel()
	var b Builder
	big := Descriptor{Type: 2, Config: make([]byte, 255)} // 260 bytes: 15 fit, 195 are left for a record
	for range 15 {
		if _, err := b.Add(big); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.Add(big)
	if !errors.Is(err, ErrTooManyDevices) || !strings.Contains(err.Error(), "device 16 needs 260 bytes, 195 left") {
		t.Fatalf("the 16th: %v", err)
	}
	if at, err := b.Add(Descriptor{Type: 2, Config: make([]byte, 190)}); err != nil || at != 3900 {
		t.Fatalf("one that fits exactly: %d, %v", at, err)
	}
	if p := Parse(b.Page(), Surroundings{}); len(p.Problems) != 0 || len(p.Records) != 16 || p.End != PageSize-1 {
		t.Errorf("the full page: %d records, end %d, %v", len(p.Records), p.End, p.Problems)
	}
	if _, err := b.Add(Descriptor{Type: 4}); !errors.Is(err, ErrTooManyDevices) {
		t.Errorf("nothing fits any more: %v", err)
	}
}

func TestAtMost31Rings(t *testing.T) {
	t.Parallel()
	var b Builder
	for i := range uint16(31) {
		if _, err := b.Add(Descriptor{Type: 2, Rings: []Ring{{1, i + 1, uint32(i)*3 + 1}}}); err != nil {
			t.Fatalf("ring %d: %v", i, err)
		}
	}
	if _, err := b.Add(Descriptor{Type: 2, Rings: []Ring{{1, 31, 500}}}); !errors.Is(err, ErrTooManyRings) || !strings.Contains(err.Error(), "0 of 31 left") {
		t.Errorf("ring 32: %v", err)
	}
	if _, err := b.Add(Descriptor{Type: 2}); err != nil {
		t.Errorf("a device without rings: %v", err)
	}
}

func TestHostilePagesAreDiagnosed(t *testing.T) {
	t.Parallel()
	good := goldenBytes(t)
	page := func(change func(b []byte) []byte) []byte {
		return change(append(bytes.Clone(good), make([]byte, PageSize-len(good))...))
	}
	set := func(at int, v ...byte) []byte {
		return page(func(b []byte) []byte { copy(b[at:], v); return b })
	}
	five := bytes.Repeat(append([]byte{4, 0, 255, 255, 0}, make([]byte, 765)...), 5)
	for _, c := range []struct {
		name    string
		b       []byte
		offset  int
		device  int
		records int
		want    string
	}{
		{"empty", nil, 0, -1, 0, "only 0 of 4096 bytes"},
		{"cut short", good[:0x46], 0x46, -1, 2, "only 70 of 4096 bytes"},
		{"header cut", good[:0x49], 0x46, -1, 2, "header needs 5 bytes, 3 left"},
		{"full of devices", bytes.Repeat([]byte{4, 0, 0, 0, 0}, 820)[:PageSize], 4095, -1, 819, "its header needs 5 bytes, 1 left"},
		{"no terminator", append(bytes.Repeat([]byte{4, 0, 0, 0, 0}, 818), 4, 0, 0, 1, 0, 9), PageSize, -1, 819, "no type 0 ends the list"},
		{"runs over", append(bytes.Clone(five), 4, 0, 0, 255, 0), 3850, -1, 5, "needs 260 bytes, 246 left: it runs over the end"},
		{"runs over by one", append(bytes.Clone(five), 4, 0, 0, 242, 0), 3850, -1, 5, "needs 247 bytes, 246 left: it runs over the end"},
		{"irq 0", set(0x07, 0), 0x05, 0, 3, "irq 0 is the timer's"},
		{"irq 32", set(0x07, 32), 0x05, 0, 3, "irq 32: at most 31"},
		{"irq 65535", set(0x07, 255, 255), 0x05, 0, 3, "irq 65535"},
		{"entries", set(0x05, 0xff), 0x05, 0, 3, "511 entries: not a power of two"},
		{"no entries", set(0x05, 0, 0), 0x05, 0, 3, "0 entries"},
		{"page 0", set(0x09, 0, 0), 0x09, 0, 3, "no ring was allocated"},
		{"outside memory", set(0x09, 0xff, 0xff, 0xff, 0xff), 0x09, 0, 3, "outside guest memory"},
		{"on the device page", set(0x09, 0x00), 0x09, 0, 3, "overlaps the device page"},
		{"ends on the next ring", set(0x09, 0x02), 0x11, 0, 3, "overlaps device 0's ring 0"},
		{"on another device's ring", set(0x2e, 0x05), 0x2e, 1, 3, "overlaps device 0's ring 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			holds := func(a guestmem.GPA, n uint64) bool { return uint64(a)+n <= uint64(goldenPage)+16*PageSize }
			b := c.b
			if strings.HasPrefix(c.name, "runs over") {
				b = append(b, make([]byte, PageSize-len(b))...)
			}
			p := Parse(b, Surroundings{Page: goldenPage, Holds: holds})
			if len(p.Records) != c.records {
				t.Errorf("%d records, want %d", len(p.Records), c.records)
			}
			for _, q := range p.Problems {
				if q.Offset == c.offset && q.Device == c.device && strings.Contains(q.Text, c.want) {
					return
				}
			}
			t.Errorf("problems %v: want %q at %#x of device %d", p.Problems, c.want, c.offset, c.device)
		})
	}
}

func TestRingsMayTouchButNotOverlap(t *testing.T) {
	t.Parallel()
	for pfn, want := range map[uint32]int{7: 0, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 0} { // beside one that takes pages 10 to 12
		d := Descriptor{Type: 2, Rings: []Ring{{256, 1, 10}, {256, 2, pfn}}}
		var b Builder
		if _, err := b.Add(d); err != nil {
			t.Fatal(err)
		}
		if p := Parse(b.Page(), Surroundings{}); len(p.Problems) != want {
			t.Errorf("page %d: %v", pfn, p.Problems)
		}
	}
}

func TestAPageOfRubbishIsNotDescribedForEver(t *testing.T) {
	t.Parallel()
	p := Parse(bytes.Repeat([]byte{255, 255, 0, 0, 0}, 820), Surroundings{})
	if n := len(p.Problems); n != maxRingProblems+2 || !strings.Contains(p.Problems[n-2].Text, "more problems with rings") && !strings.Contains(p.Problems[n-1].Text, "more problems with rings") {
		t.Errorf("%d problems, the last %v and %v", n, p.Problems[n-2], p.Problems[n-1])
	}
}

func TestAPageIsCopiedOutOfGuestMemory(t *testing.T) {
	t.Parallel()
	data := make([]byte, 20*PageSize)
	copy(data, goldenBytes(t))
	mem, err := guestmem.New(guestmem.Region{Start: goldenPage, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParseMemory(mem, goldenPage)
	if err != nil || len(p.Problems) != 0 {
		t.Fatalf("%v, %v", p, err)
	}
	before := p.Records[0].Config[0]
	clear(data)
	if p.Records[0].Config[0] != before || p.Records[0].Offered() != 0x10003ba3 {
		t.Error("what was read changes with guest memory")
	}
	if _, err := ParseMemory(mem, 0); !errors.Is(err, guestmem.ErrRange) {
		t.Errorf("a page outside memory: %v", err)
	}
	data[0] = byte(virtio.IDNet)
	copy(data, goldenBytes(t))
	data[0x2e], data[0x2f] = 0x11, 0x40 // page 0x4011: its last page is the first one outside
	if p, err = ParseMemory(mem, goldenPage); err != nil || len(p.Problems) != 0 {
		t.Errorf("a ring that just fits: %v, %v", p.Problems, err)
	}
	data[0x2e] = 0x12
	if p, err = ParseMemory(mem, goldenPage); err != nil || len(p.Problems) != 1 || !strings.Contains(p.Problems[0].Text, "outside") {
		t.Errorf("a ring that ends outside: %v, %v", p.Problems, err)
	}
}
