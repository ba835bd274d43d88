package lguest

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ack      = virtio.StatusAcknowledge
	driver   = virtio.StatusAcknowledge | virtio.StatusDriver
	driverOK = driver | virtio.StatusDriverOK
)

// goldenFakes are devices that make the golden page.
func goldenFakes(tb testing.TB) []*fakeDevice {
	tb.Helper()
	d := goldenDevices()
	return []*fakeDevice{
		newFake(tb, "net0", virtio.IDNet, d[0].Offered()|virtio.FVersion1|virtio.FRingPacked, d[0].Config, 256, 1024),
		newFake(tb, "vda", virtio.IDBlock, d[1].Offered()|virtio.FVersion1, d[1].Config, 256),
		newFake(tb, "con0", virtio.IDConsole, virtio.FVersion1, nil, 32768, 256),
	}
}

func TestTheBusMakesTheGoldenPage(t *testing.T) {
	t.Parallel()
	r := newRig(t, int(goldenPage/PageSize), nil, goldenFakes(t)...)
	page, err := r.bus.Page()
	if want := goldenBytes(t); err != nil || !bytes.Equal(page[:len(want)], want) || len(bytes.Trim(page[len(want):], "\x00")) > 0 {
		t.Errorf("%v: page\n%swant\n%s", err, hex.Dump(page[:0x60]), hex.Dump(want))
	}
	if r.bus.PFNLimit() != 0x4010 || r.bus.Interrupts() != 5 {
		t.Errorf("limit %#x, %d interrupts: want 0x4010 and 5", r.bus.PFNLimit(), r.bus.Interrupts())
	}
	for _, rec := range []int{0, 1, 2} {
		for _, ring := range r.record(rec).Rings {
			l := layoutOf(ring)
			if b, err := r.mem.Slice(l.Desc, int(l.Bytes())); err != nil || len(bytes.Trim(b, "\x00")) > 0 { //nolint:gosec // G115: small
				t.Errorf("ring at %v: %v: not zero", l.Desc, err)
			}
		}
	}
}

func TestRingsAreNoLargerThanTheDeviceTakes(t *testing.T) {
	t.Parallel()
	r := newRig(t, 4, nil, newFake(t, "a", virtio.IDConsole, 0, nil, 1, 64, 128, 512), newFake(t, "b", virtio.IDEntropy, 0, nil, 8))
	var got []Ring
	for i := range 2 {
		got = append(got, r.record(i).Rings...)
	}
	want := []Ring{{1, 1, 5}, {64, 2, 7}, {128, 3, 9}, {256, 4, 11}, {8, 5, 14}}
	if !slices.Equal(got, want) {
		t.Errorf("rings %v, want %v", got, want)
	}
	if r.bus.PFNLimit() != 16 {
		t.Errorf("limit %d, want 16", r.bus.PFNLimit())
	}
}

func TestALongConfigurationSpaceIsCut(t *testing.T) {
	t.Parallel()
	long := make([]byte, 300)
	for i := range long {
		long[i] = byte(i)
	}
	d := newFake(t, "long", 9, 0, long, 8)
	after := newFake(t, "after", virtio.IDEntropy, 0, nil, 8)
	r := newRig(t, 4, nil, d, after)
	if rec := r.record(0); !bytes.Equal(rec.Config, long[:255]) {
		t.Errorf("%d bytes: %x", len(rec.Config), rec.Config)
	}
	d.changeConfig(bytes.Repeat([]byte{7}, 300))
	if rec := r.record(0); !bytes.Equal(rec.Config, bytes.Repeat([]byte{7}, 255)) {
		t.Errorf("after a change: %x", rec.Config)
	}
	if rec := r.record(1); rec.Type != 4 {
		t.Errorf("the next record is damaged: %+v", rec)
	}
}

func TestDevicesThatCannotBeOnTheBus(t *testing.T) {
	t.Parallel()
	many := func(n int) []uint16 { return slices.Repeat([]uint16{8}, n) }
	modern := newFake(t, "new", virtio.IDBlock, 0, nil, 8)
	modern.legacy = false
	crowd := make([]*fakeDevice, 0, 17)
	for i := range 17 {
		crowd = append(crowd, newFake(t, fmt.Sprintf("d%d", i), virtio.IDBlock, 0, make([]byte, 255)))
	}
	for _, c := range []struct {
		name, want string
		is         error
		d          []*fakeDevice
	}{
		{"not legacy", "lguest bus: new: does not serve legacy drivers: its plugin lacks CAPABILITY_LEGACY: use the mmio bus", ErrNotLegacy, []*fakeDevice{modern}},
		{"type 0", "device type 0", nil, []*fakeDevice{newFake(t, "x", 0, 0, nil)}},
		{"type 256", "device type 256", nil, []*fakeDevice{newFake(t, "x", 256, 0, nil)}},
		{"32 rings", "it has 32, the bus at most 31", ErrTooManyRings, []*fakeDevice{newFake(t, "x", 3, 0, nil, many(32)...)}},
		{"20 and 12 rings", "lguest bus: y: device page: too many virtqueues: device 2 needs 12, 11 of 31 left", ErrTooManyRings, []*fakeDevice{
			newFake(t, "x", 3, 0, nil, many(20)...), newFake(t, "y", 3, 0, nil, many(12)...),
		}},
		{"page full", "lguest bus: d15: device page: too many devices: device 16 needs 260 bytes, 195 left", ErrTooManyDevices, crowd},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			devices := make([]Device, len(c.d))
			for i, d := range c.d {
				devices[i] = d
			}
			_, err := Pages(devices)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("Pages: %v, want %q", err, c.want)
			}
			mem, merr := guestmem.New(guestmem.Region{Data: make([]byte, 128*PageSize)})
			if merr != nil {
				t.Fatal(merr)
			}
			if b, err2 := New(t.Context(), devices, Options{Memory: mem, Page: PageSize, Requests: newHost()}); b != nil || err2 == nil || err2.Error() != err.Error() {
				t.Errorf("New: %v: want %v", err2, err)
			}
		})
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	t.Parallel()
	mem, err := guestmem.New(guestmem.Region{Data: make([]byte, 4*PageSize)})
	if err != nil {
		t.Fatal(err)
	}
	d := newFake(t, "vda", virtio.IDBlock, 0, nil, 256)
	for name, o := range map[string]Options{
		"unaligned page": {Memory: mem, Requests: newHost(), Page: 100},
		"page 0":         {Memory: mem, Requests: newHost()},
		"no room":        {Memory: mem, Requests: newHost(), Page: PageSize},
		"no memory":      {Requests: newHost(), Page: PageSize},
		"no host":        {Memory: mem, Page: PageSize},
		"beyond 2^44":    {Memory: mem, Requests: newHost(), Page: 1 << 44},
	} {
		if b, err := New(t.Context(), []Device{d}, o); err == nil || b != nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestADeviceThatRefusesTheBusLeavesNothing(t *testing.T) {
	t.Parallel()
	good, bad := newFake(t, "good", virtio.IDBlock, 0, nil, 8), newFake(t, "bad", virtio.IDBlock, 0, nil, 8, 8)
	bad.fail["kick 1"] = errors.New("no kick")
	mem, err := guestmem.New(guestmem.Region{Data: make([]byte, 16*PageSize)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = New(t.Context(), []Device{good, bad}, Options{Memory: mem, Requests: newHost(), Page: PageSize})
	if err == nil || !strings.Contains(err.Error(), "bad: ring 1: no kick") {
		t.Errorf("New = %v", err)
	}
	for _, d := range []*fakeDevice{good, bad} {
		if calls := d.took(); calls[len(calls)-1] != "release" {
			t.Errorf("%s: not released: %q", d.name, calls)
		}
	}
}

func TestInitializeConnectsOnce(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, 0, nil, 8)
	mem, err := guestmem.New(guestmem.Region{Data: make([]byte, 8*PageSize)})
	if err != nil {
		t.Fatal(err)
	}
	host := newHost()
	b, err := New(t.Context(), []Device{d}, Options{Memory: mem, Requests: host, Page: PageSize})
	if err != nil {
		t.Fatal(err)
	}
	at := mem.Regions()[0].Data[PageSize:]
	at[offStatus] = byte(driver)
	b.Notify(t.Context(), PageSize)
	if d.running(0) {
		t.Error("started before the machine was ready")
	}
	if err := b.Initialize(0xb000, 0x5000); err != nil {
		t.Fatal(err)
	}
	sameCalls(t, "host", host.took(), "initialize 0xb000 0x4 0x5000")
	if err := b.Initialize(0xb000, 0x5000); err == nil {
		t.Error("a second time: taken")
	}
	b.Notify(t.Context(), PageSize)
	if !d.running(0) {
		t.Error("not started")
	}
	for range 2 {
		if err := b.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if calls := d.took(); calls[len(calls)-1] != "release" || calls[len(calls)-2] != "stop 0" {
		t.Errorf("calls %q", calls)
	}
	at[offStatus] = 0
	b.Notify(t.Context(), PageSize)
	sameCalls(t, "after Release", d.took())
	if _, err := b.Page(); !errors.Is(err, ErrClosed) {
		t.Errorf("Page = %v", err)
	}
	if err := b.Initialize(1, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("Initialize = %v", err)
	}
}

func TestEarlyConsole(t *testing.T) {
	t.Parallel()
	r := newRig(t, 4, nil, newFake(t, "vda", virtio.IDBlock, 0, nil, 8))
	ram := r.mem.Regions()[0].Data
	copy(ram[0x1ffd:], "across pages\x00not this")
	r.notify(0x1ffd)
	copy(ram[len(ram)-5:], "no en") // RAM goes on with the device page, whose first byte is 2, its second 1
	r.notify(r.at - 5)
	r.notify(0x10) // empty
	if got := r.console.String(); !strings.HasPrefix(got, "across pagesno en\x02\x01") || len(got) > 30 {
		t.Errorf("console has %q", got)
	}
	for i := range ram {
		ram[i] = 'x'
	}
	before := len(r.console.String())
	r.notify(0)
	if n := len(r.console.String()) - before; n != earlyConsoleMax {
		t.Errorf("%d bytes without an end, want %d", n, earlyConsoleMax)
	}
	before = len(r.console.String())
	for _, a := range []guestmem.GPA{r.at + 1, r.at + PageSize + 1, 1 << 40, ^guestmem.GPA(0), ^guestmem.GPA(4095)} {
		r.notify(a)
	}
	if got := r.console.String()[before:]; got != "" {
		t.Errorf("console has %q from addresses that are no string's", got)
	}
	r.logged("not in its memory")
	r.logged("no device and no ring")
}

func TestANotificationAfterTheEndOfTheContextDoesNothing(t *testing.T) {
	t.Parallel()
	d := newFake(t, "vda", virtio.IDBlock, 0, nil, 8)
	r := newRig(t, 4, nil, d)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.page[offStatus] = byte(driver)
	r.bus.Notify(ctx, r.at)
	sameCalls(t, "calls", d.took())
}
