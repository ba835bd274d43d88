package driver_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// A queue that somebody else laid out is taken as it is: a device may be serving it already.
func TestAQueueLaidOutBySomebodyElse(t *testing.T) {
	t.Parallel()
	const page = guestmem.PageSize
	ram := guestmem.Region{Data: make([]byte, 4*page)}
	rings := guestmem.Region{Start: 16 * page, Data: make([]byte, 3*page)}
	mem, err := guestmem.New(ram, rings)
	if err != nil {
		t.Fatal(err)
	}
	only, err := guestmem.New(ram)
	if err != nil {
		t.Fatal(err)
	}
	rings.Data[2*page] = virtio.UsedFNoNotify // what a device that polls writes first
	before := bytes.Clone(rings.Data)
	arena := driver.NewArena(only)
	q, err := driver.NewAt(arena, mem, driver.Config{Size: 256, Features: virtio.FIndirectDesc, IndirectEntries: 2}, 16*page, 17*page, 18*page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, rings.Data) {
		t.Error("the rings were written to")
	}
	b, err := arena.Buffer(64)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := q.Add([]driver.Buffer{b}, []driver.Buffer{b}); !ok || q.Publish() {
		t.Error("no room, or a kick that the device does not want")
	}
	if rings.Data[0] == before[0] && bytes.Equal(rings.Data[:16], before[:16]) || rings.Data[page+2] != 1 {
		t.Error("the chain is not in the rings")
	}
	if desc, avail, used := q.Areas(); desc != 16*page || avail != 17*page || used != 18*page {
		t.Errorf("areas %v, %v, %v", desc, avail, used)
	}
	if _, err := driver.NewAt(arena, mem, driver.Config{Size: 256}, 16*page, 17*page, 19*page); !errors.Is(err, guestmem.ErrRange) {
		t.Errorf("a used ring outside memory: %v", err)
	}
}
