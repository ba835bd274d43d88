package guestmem_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

const page = guestmem.PageSize

func region(start guestmem.GPA, pages int) guestmem.Region {
	return guestmem.Region{Start: start, Data: make([]byte, pages*page)}
}

func TestBadTablesAreRefused(t *testing.T) {
	t.Parallel()
	for name, rs := range map[string][]guestmem.Region{
		"none":       {},
		"too many":   make([]guestmem.Region, guestmem.MaxRegions+1),
		"empty":      {{Start: 0}},
		"misaligned": {region(5, 1)},
		"odd size":   {{Start: 0, Data: make([]byte, 100)}},
		"overlap":    {region(0, 2), region(page, 1)},
		"wraps":      {region(^guestmem.GPA(0)-page+1, 1), region(0, 1)},
		"wraps past": {region(^guestmem.GPA(0)-page+1, 2)},
	} {
		if m, err := guestmem.New(rs...); err == nil {
			t.Errorf("%s: accepted: %+v", name, m.Regions())
		}
	}
}

func TestAccessIsBoundToTheRegions(t *testing.T) {
	t.Parallel()
	m, err := guestmem.New(region(3*page, 1), region(0, 1), region(page, 1)) // a hole at 2
	if err != nil {
		t.Fatal(err)
	}
	if m.Size() != 3*page {
		t.Errorf("size %d", m.Size())
	}
	for _, c := range []struct {
		at         guestmem.GPA
		n          int
		slice, app bool
	}{
		{0, 1, true, true}, {0, page, true, true}, {page - 1, 2, false, true}, {0, 2 * page, false, true},
		{0, 2*page + 1, false, false}, {2 * page, 1, false, false}, {3 * page, page, true, true}, {4*page - 1, 2, false, false},
		{^guestmem.GPA(0), 2, false, false}, {5, -1, false, true}, {5, 0, false, true},
	} {
		b, err := m.Slice(c.at, c.n)
		if (err == nil) != c.slice || err == nil && len(b) != c.n || err != nil && !errors.Is(err, guestmem.ErrRange) {
			t.Errorf("Slice(%v, %d) = %d bytes, %v", c.at, c.n, len(b), err)
		}
		bs, err := m.Append(nil, c.at, uint32(max(c.n, 0))) //nolint:gosec // G115: small
		total := 0
		for _, b := range bs {
			total += len(b)
		}
		if (err == nil) != c.app || err == nil && total != max(c.n, 0) || err != nil && len(bs) != 0 {
			t.Errorf("Append(%v, %d) = %d bytes, %v", c.at, c.n, total, err)
		}
	}
}

func TestMapSharesAFileAndRefusesWhatIsNotThere(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "ram"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(4 * page); err != nil {
		t.Fatal(err)
	}
	fd := int(f.Fd())
	m, err := guestmem.Map([]guestmem.MapRegion{
		{Start: 0x100000, Size: page, FD: fd, Offset: 2 * page}, {Start: 0, Size: 2 * page, FD: fd},
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Slice(0x100000, 4)
	if err != nil {
		t.Fatal(err)
	}
	copy(b, "here")
	got := make([]byte, 4)
	if _, err := f.ReadAt(got, 2*page); err != nil || string(got) != "here" {
		t.Errorf("the file has %q, %v", got, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error("second Close: ", err)
	}
	for name, r := range map[string]guestmem.MapRegion{
		"past the end":   {Size: 5 * page, FD: fd},
		"offset past":    {Size: page, FD: fd, Offset: 4 * page},
		"negative":       {Size: page, FD: fd, Offset: -page},
		"misaligned":     {Size: page, FD: fd, Offset: 100},
		"no bytes":       {FD: fd},
		"absurd":         {Size: 1 << 60, FD: fd},
		"no descriptor":  {Size: page, FD: 1 << 20},
		"not a file":     {Size: page, FD: 0x7fffffff},
		"start not page": {Start: 7, Size: page, FD: fd},
	} {
		if _, err := guestmem.Map([]guestmem.MapRegion{r}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
