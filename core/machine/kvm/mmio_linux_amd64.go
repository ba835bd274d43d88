package kvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/core/boot/acpi"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/kvm"
	"github.com/virtplug/virtplug/core/memory"
	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// mmioBus is virtio-mmio: a window of registers for each device. The windows are pages of memory that the guest reads without
// an exit where KVM can do that; its writes are exits, but for notifications, which KVM turns into counts on eventfds.
type mmioBus struct {
	devices []*device.Device
	run     *run
	windows []*mmio.Registers
	files   files

	// mu is held while a page is rendered, and guards slot.
	mu    sync.Mutex
	ram   *memory.RAM      // nil: there are no pages
	pages *guestmem.Memory // all windows, adjacent
	slot  uint32
}

// windowBase is where the window of device i is.
func windowBase(i int) guestmem.GPA {
	return windowsStart + guestmem.GPA(i)*mmio.WindowSize //nolint:gosec // G115: not negative
}

func (b *mmioBus) memory() (boot.Range, error) { return boot.Range{}, nil }

func (b *mmioBus) begin(r *run, _ *boot.Entry) error {
	if err := r.mapMemory(); err != nil || b.pages == nil {
		return err
	}
	b.mu.Lock() // a device may be changing
	defer b.mu.Unlock()
	b.slot = r.nextSlot()
	return b.show()
}

func (b *mmioBus) attach(ctx context.Context, r *run) error {
	b.run = r
	if len(b.devices) == 0 {
		return nil
	}
	if r.plan.system.Check(kvm.CapReadonlyMem) != 0 {
		if err := b.makePages(); err != nil {
			return err
		}
	}
	swallow, err := b.files.eventfd() // nobody reads it
	if err != nil {
		return err
	}
	for i, d := range b.devices {
		// An acknowledgement of used buffers alone changes nothing: it needs no exit.
		err := r.vm.IOEventFD(fd(swallow), doorbell(i, mmio.RegInterruptACK, mmio.InterruptUsed))
		if err == nil {
			err = b.attachDevice(ctx, i, d)
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Name(), err)
		}
	}
	return nil
}

func doorbell(i int, register, value uint64) kvm.Doorbell {
	return kvm.Doorbell{Addr: uint64(windowBase(i)) + register, Len: 4, Match: true, Value: value}
}

func (b *mmioBus) makePages() (err error) {
	span := memory.Span{Start: windowsStart, Size: uint64(len(b.devices)) * mmio.WindowSize}
	if b.ram, err = memory.New("virtio-mmio", span); err != nil {
		return err
	}
	b.pages, err = b.ram.Map()
	return err
}

// show makes the pages visible to the guest.
func (b *mmioBus) show() error {
	return b.run.vm.SetUserMemoryRegion(b.slot, windowsStart, b.pages.Regions()[0].Data, true)
}

func (b *mmioBus) attachDevice(ctx context.Context, i int, d *device.Device) error {
	gsi := lineGSI(i)
	changed, err := b.files.eventfd()
	if err != nil {
		return err
	}
	if err := b.run.vm.IRQFD(fd(changed), gsi); err != nil {
		return err
	}
	if err := d.SetMemory(ctx, b.run.ram.Table()); err != nil {
		return err
	}
	kicks := make(files, d.QueueCount())
	for q := range kicks {
		if kicks[q], err = b.attachQueue(ctx, i, q, d); err != nil {
			return fmt.Errorf("queue %d: %w", q, err)
		}
	}
	o := mmio.Options{
		Context: ctx, Log: b.run.log.With("device", d.Name()),
		Interrupt: func() {
			if err := eventfd.Signal(fd(changed)); err != nil {
				b.run.log.Error("interrupt not raised", "device", d.Name(), "error", err)
			}
		},
		Kick: func(q uint32) { b.kick(kicks, q) },
	}
	if b.pages != nil {
		o.Changed = func() { b.render(i) }
		o.Withdraw = b.withdraw
	}
	// Callbacks may come before the window is in the list.
	b.mu.Lock()
	w := mmio.New(d, o)
	b.windows = append(b.windows, w)
	b.mu.Unlock()
	if b.pages != nil {
		b.render(i)
	}
	return nil
}

// attachQueue makes the notifications of a queue, which KVM and the device keep until the guest ends, and returns the kick.
func (b *mmioBus) attachQueue(ctx context.Context, i, q int, d *device.Device) (*os.File, error) {
	kick, err := b.files.eventfd()
	if err != nil {
		return nil, err
	}
	if err := b.run.vm.IOEventFD(fd(kick), doorbell(i, mmio.RegQueueNotify, uint64(q))); err != nil { //nolint:gosec // G115: not negative
		return nil, err
	}
	return kick, giveQueue(ctx, b.run.vm, d, q, kick, lineGSI(i))
}

// giveQueue gives queue q of d its kick, which stays the caller's, and a call that is interrupt line gsi.
func giveQueue(ctx context.Context, vm *kvm.VM, d *device.Device, q int, kick *os.File, gsi uint32) error {
	theirs, err := dup(kick)
	if err != nil {
		return err
	}
	if err := d.SetKick(ctx, q, theirs); err != nil {
		return err
	}
	call, err := eventfd.New()
	if err != nil {
		return err
	}
	if err := vm.IRQFD(fd(call), gsi); err != nil {
		return errors.Join(err, call.Close())
	}
	return d.SetCall(ctx, q, call)
}

// kick passes on a notification that came here.
func (b *mmioBus) kick(kicks files, q uint32) {
	b.run.count.add(countKicks)
	if uint64(q) < uint64(len(kicks)) {
		device.Signal(fd(kicks[q]))
	}
}

// render brings the page of device i up to date.
func (b *mmioBus) render(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	page := b.pages.Regions()[0].Data[i*mmio.WindowSize:]
	b.windows[i].Render(page[:mmio.WindowSize])
}

// withdraw implements mmio.Options.Withdraw: meanwhile reads are exits. Called by render.
func (b *mmioBus) withdraw(store func()) {
	if b.slot == 0 { // the guest does not see the pages yet
		store()
		return
	}
	if err := b.run.vm.SetUserMemoryRegion(b.slot, windowsStart, nil, true); err != nil {
		b.run.log.Error("registers not withdrawn while they change", "error", err)
	}
	store()
	if err := b.show(); err != nil {
		b.run.log.Error("registers not shown again: each read of one is an exit from now on", "error", err)
	}
}

func (b *mmioBus) describe(c *acpi.Config) {
	for i := range b.devices {
		c.MMIO = append(c.MMIO, acpi.MMIODevice{UID: i, Base: uint64(windowBase(i)), Size: mmio.WindowSize, GSI: lineGSI(i)})
	}
}

func (b *mmioBus) port(*vcpu, uint16, bool, []byte) bool { return false }

func (b *mmioBus) access(addr uint64, write bool, p []byte) bool {
	off := addr - windowsStart
	if i := off / mmio.WindowSize; addr >= windowsStart && i < uint64(len(b.windows)) {
		if w := b.windows[i]; write {
			w.Write(off%mmio.WindowSize, p)
		} else {
			w.Read(off%mmio.WindowSize, p)
		}
		return true
	}
	return false
}

func (b *mmioBus) detach(ctx context.Context) error {
	var errs []error
	for _, w := range b.windows {
		w.Close()
	}
	for _, d := range b.devices {
		errs = append(errs, d.Release(ctx))
	}
	b.files.close()
	if b.pages != nil {
		errs = append(errs, b.pages.Close())
	}
	if b.ram != nil {
		errs = append(errs, b.ram.Close())
	}
	return errors.Join(errs...)
}
