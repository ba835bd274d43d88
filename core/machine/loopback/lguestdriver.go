package loopback

import (
	"context"
	"errors"
	"fmt"

	"github.com/virtplug/virtplug/core/transport/lguest"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// LguestDevice is the guest's side of one device on the lguest bus: the steps of Linux's drivers/lguest/lguest_device.c, singly
// and as Probe. One goroutine at a time.
type LguestDevice struct {
	m      *Lguest
	record lguest.Record
	number int
	view   Machine
}

// Devices reads the device page as a booting guest does. An error tells what is wrong with it.
func (m *Lguest) Devices() ([]*LguestDevice, error) {
	page, err := lguest.ParseMemory(m.mem, m.page)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range page.Problems {
		errs = append(errs, errors.New(p.String()))
	}
	out := make([]*LguestDevice, len(page.Records))
	for i, r := range page.Records {
		out[i] = &LguestDevice{m: m, record: r, number: i, view: Machine{arena: m.arena, lent: true}}
		if i < len(m.devices) {
			out[i].view.dev = m.devices[i]
		}
	}
	return out, errors.Join(errs...)
}

// Record is what the guest read.
func (d *LguestDevice) Record() *lguest.Record { return &d.record }

// Machine is the device as loads and tests of the loopback machine take it, after FindQueues. Its Close does nothing.
func (d *LguestDevice) Machine() *Machine { return &d.view }

// bytes are n bytes of the record, from offset at of the page on.
func (d *LguestDevice) bytes(at, n int) []byte {
	page, err := d.m.mem.Slice(d.m.page, lguest.PageSize)
	if err != nil {
		panic("BUG: " + err.Error()) // it was there when the page was read
	}
	return page[at : at+n]
}

// Notify notifies the record.
func (d *LguestDevice) Notify(ctx context.Context) {
	d.m.Notify(ctx, d.m.page+guestmem.GPA(d.record.Offset)) //nolint:gosec // G115: inside the page
}

// Status reads the device status.
func (d *LguestDevice) Status() virtio.Status {
	return virtio.Status(d.bytes(d.record.StatusOffset(), 1)[0])
}

// SetStatus writes the device status; the launcher is not told.
func (d *LguestDevice) SetStatus(s virtio.Status) { d.bytes(d.record.StatusOffset(), 1)[0] = byte(s) }

// Config is a copy of the configuration space, as it is now.
func (d *LguestDevice) Config() []byte {
	return append([]byte(nil), d.bytes(d.record.ConfigOffset(), len(d.record.Config))...)
}

// Accepted is the bitmap of accepted features, as it is now.
func (d *LguestDevice) Accepted() []byte {
	return append([]byte(nil), d.bytes(d.record.GuestOffset(), len(d.record.Guest))...)
}

// Accept writes the bitmap of accepted features, cut to its length; the launcher is not told.
func (d *LguestDevice) Accept(f virtio.Features) {
	b := d.bytes(d.record.GuestOffset(), len(d.record.Guest))
	for i := range b {
		b[i] = byte(f >> (8 * min(i, 8)) & 0xff)
	}
	d.view.features = f
}

// Reset resets the device and forgets its queues.
func (d *LguestDevice) Reset(ctx context.Context) {
	d.SetStatus(0)
	d.Notify(ctx)
	d.view.queues = nil
}

// FindQueues takes the rings that the record tells.
func (d *LguestDevice) FindQueues(ctx context.Context) error {
	d.view.queues = nil
	for i, r := range d.record.Rings {
		l := lguest.RingLayout(r.Address(), r.Num)
		ring, err := driver.NewAt(d.m.arena, d.m.mem, driver.Config{Size: l.Size, Features: d.view.features}, l.Desc, l.Avail, l.Used)
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		line, err := d.m.host.line(uint32(r.IRQ), -1)
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		d.view.queues = append(d.view.queues, &Queue{Queue: ring, call: line.wait, notify: func() { d.m.Notify(ctx, l.Desc) }})
	}
	return nil
}

// Probe does what Linux does from finding a device to using it: reset, ACKNOWLEDGE, DRIVER, features (all that are offered but
// refuse), queues, DRIVER_OK.
func (d *LguestDevice) Probe(ctx context.Context, refuse virtio.Features) error {
	d.Reset(ctx)
	d.SetStatus(virtio.StatusAcknowledge)
	d.SetStatus(virtio.StatusAcknowledge | virtio.StatusDriver)
	d.Accept(d.record.Offered() &^ refuse)
	d.Notify(ctx)
	if err := d.FindQueues(ctx); err != nil {
		return fmt.Errorf("lguest device %d: %w", d.number, err)
	}
	d.SetStatus(virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusDriverOK)
	return nil
}
