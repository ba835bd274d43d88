package mmio

import (
	"encoding/binary"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// Read is a driver's read of len(p) bytes at offset: of any width and alignment, as a page is read. What is not a readable
// register reads as zero. It never waits for the device.
func (r *Registers) Read(offset uint64, p []byte) {
	clear(p)
	if offset >= WindowSize {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.o.Changed == nil {
		r.refresh()
	}
	if offset < RegConfig {
		var regs [RegConfig]byte
		r.image(&regs)
		n := copy(p, regs[offset:])
		p, offset = p[n:], RegConfig
	}
	copy(p, r.config[offset-RegConfig:])
}

// Render stores the whole window in page, of WindowSize bytes, which the guest may be reading. Only what differs is stored,
// in aligned words of at most 64 bits, each by one store.
func (r *Registers) Render(page []byte) {
	page = page[:WindowSize]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh()
	store := func() { r.store(page) }
	if r.o.Withdraw != nil && get32(page, RegConfigGeneration) != r.generation {
		r.o.Withdraw(store)
	} else {
		store()
	}
}

// store is Render's work. The caller holds mu.
func (r *Registers) store(page []byte) {
	if get32(page, RegConfigGeneration) != r.generation {
		put32(page, RegConfigGeneration, r.generation-1) // whoever began to read before is told so
	}
	for i := 0; i < configMax; i += 8 {
		if v := binary.LittleEndian.Uint64(r.config[i:]); binary.LittleEndian.Uint64(page[RegConfig+i:]) != v {
			binary.LittleEndian.PutUint64(page[RegConfig+i:], v)
		}
	}
	var regs [RegConfig]byte
	r.image(&regs)
	for i := 0; i < RegConfig; i += 4 { // ConfigGeneration is the last
		if v := get32(regs[:], i); get32(page, i) != v {
			put32(page, i, v)
		}
	}
}

// refresh takes over a configuration space that has changed. The caller holds mu.
func (r *Registers) refresh() {
	var now [configMax]byte
	r.dev.ReadConfigAt(now[:], 0)
	if now != r.config {
		r.config = now
		r.generation += 2
	}
}

// image is what the registers read as (4.2.2); write-only and reserved ones are zero. The caller holds mu.
func (r *Registers) image(b *[RegConfig]byte) {
	set := func(reg int, v uint32) { put32(b[:], reg, v) }
	set(RegMagicValue, MagicValue)
	set(RegVersion, Version)
	set(RegDeviceID, uint32(r.dev.ID()))
	set(RegVendorID, VendorID)
	set(RegDeviceFeatures, word(r.offered(), r.deviceSel))
	if i := r.queueSel; uint64(i) < uint64(len(r.queues)) {
		set(RegQueueNumMax, uint32(r.dev.QueueSizeMax(int(i))))
		if r.queues[i].ready {
			set(RegQueueReady, 1)
		}
	}
	set(RegInterruptStatus, r.interruptStatus())
	set(RegStatus, uint32(r.shownStatus()))
	for _, reg := range []int{RegSHMLenLow, RegSHMLenHigh, RegSHMBaseLow, RegSHMBaseHigh} {
		set(reg, ^uint32(0)) // there is no such region, whatever SHMSel says
	}
	set(RegConfigGeneration, r.generation)
}

// interruptStatus has the used buffer bit whenever there may be used buffers: nobody here is told when they come, and the
// driver looks at its rings anyway. The caller holds mu.
func (r *Registers) interruptStatus() uint32 {
	v := r.interrupts
	if r.status.Has(virtio.StatusDriverOK) {
		v |= InterruptUsed
	}
	return v
}

// shownStatus is Status as the driver reads it. The caller holds mu.
func (r *Registers) shownStatus() virtio.Status {
	s := r.status
	if r.broken || r.dev.NeedsReset() {
		s |= virtio.StatusNeedsReset
	}
	return s
}

// offered are the features that the driver may accept.
func (r *Registers) offered() virtio.Features { return r.dev.Features() &^ notCarried }

// word is 32 bits of f: bits 32·sel to 32·sel+31.
func word(f virtio.Features, sel uint32) uint32 {
	if sel > 1 {
		return 0
	}
	return uint32(f >> (32 * sel)) //nolint:gosec // the lower half is meant
}

func get32(b []byte, at int) uint32    { return binary.LittleEndian.Uint32(b[at:]) }
func put32(b []byte, at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
