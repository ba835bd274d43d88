package mmio

import (
	"context"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Options are what the registers need of the machine. Callbacks run on the goroutine of a Write or on one of the device's,
// possibly several at once, with no lock held that Read, Render or Write take; none runs once Close has returned.
type Options struct {
	// Context ends the machine: a Write that waits for a plugin returns when it ends, and later ones do nothing. nil: never.
	Context context.Context //nolint:containedctx // the life of the machine, not of a call
	// Log receives what drivers do wrong, a few lines at most; nil: nothing is logged.
	Log hclog.Logger
	// Interrupt raises the device's interrupt line: a configuration change, or the device needs a reset. nil: nobody is told.
	Interrupt func()
	// Changed tells that the page must be rendered again; when it returns, it has been. nil: there is no page.
	Changed func()
	// Withdraw takes the page away from the guest, whose reads then come to Read (and wait there), calls store, and gives the
	// page back. It is called by Render when the configuration space has changed, with Render's lock held, so it must not
	// call the registers. nil: the page stays; a driver that reads the space in those nanoseconds may then see a mixture of
	// old and new under one generation, until the configuration change notification that follows.
	Withdraw func(store func())
	// Kick passes an available buffer notification of a queue on, if the machine has no shorter way for it; nil: ignored.
	Kick func(queue uint32)
}

// complaints bounds the lines about one device's driver; arbitrary.
const complaints = 16

// Registers are one device's registers. All methods may be called from any goroutine, Write from several vCPUs at once.
type Registers struct {
	dev Device
	o   Options
	log hclog.Logger

	// op is held (by a value in it) by whoever changes what the device was told. Locked before mu.
	op chan struct{}
	// callbacks is held for reading during a callback, and for writing to end them.
	callbacks sync.RWMutex
	closed    bool

	// mu guards what follows; it is never held while the device is asked for something that may take time.
	mu                   sync.Mutex
	status               virtio.Status // without NEEDS_RESET
	broken               bool          // the driver's error: NEEDS_RESET until the reset
	deviceSel, driverSel uint32
	driverFeatures       virtio.Features
	negotiated           bool // the device took driverFeatures
	queueSel             uint32
	queues               []queue
	serving              bool // DRIVER_OK was taken: a queue made ready starts at once
	interrupts           uint32
	unheard              bool // the configuration changed after DRIVER and before DRIVER_OK
	config               [configMax]byte
	generation           uint32 // even; odd only in a page while the space is stored
	complaintsLeft       int
}

// queue is what the driver has told of one virtqueue.
type queue struct {
	// size in entries; 0: the driver wrote one that cannot be.
	size                 uint16
	desc, driver, device guestmem.GPA
	// ready is the last value written to QueueReady. started: the device serves the queue. Changed with op held.
	ready, started bool
}

// New makes the registers of dev, in the state after a reset, and takes dev's callbacks. dev is open and stays the caller's.
func New(dev Device, o Options) *Registers {
	if o.Context == nil {
		o.Context = context.Background()
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	r := &Registers{
		dev: dev, o: o, log: o.Log, op: make(chan struct{}, 1),
		queues: make([]queue, dev.QueueCount()), complaintsLeft: complaints,
	}
	r.forget()
	if n := dev.ReadConfigAt(r.config[:], 0); n == configMax {
		r.log.Warn("the configuration space may be larger than what the window shows", "bytes", n)
	}
	dev.OnConfigChange(func([]byte) { r.configChanged() })
	dev.OnNeedsReset(r.needsReset)
	return r
}

// Close ends the callbacks, and what a Write that the machine's end has left behind still wants of the device: when it returns
// the page may be unmapped and the device given to another. The machine's Context has ended, or no Write is under way. It waits
// for a plugin's answer, once at most, as releasing the device would. The device is not reset: release it. Not to be called
// from a callback. Idempotent.
func (r *Registers) Close() {
	r.dev.OnConfigChange(nil)
	r.dev.OnNeedsReset(nil)
	r.callbacks.Lock()
	r.closed = true
	r.callbacks.Unlock()
	r.op <- struct{}{}
	<-r.op
}

// forget is the state after a reset (4.2.2.1). The caller holds mu, and op but in New.
func (r *Registers) forget() {
	r.status, r.broken, r.negotiated, r.serving, r.unheard = 0, false, false, false, false
	r.deviceSel, r.driverSel, r.queueSel, r.driverFeatures, r.interrupts = 0, 0, 0, 0, 0
	for i := range r.queues {
		r.queues[i] = queue{size: r.dev.QueueSizeMax(i)}
	}
}

// configChanged tells the driver that the configuration space changed by itself (2.5), if it is there to hear it.
func (r *Registers) configChanged() {
	r.mu.Lock()
	tell := r.status.Has(virtio.StatusDriverOK)
	if tell {
		r.interrupts |= InterruptConfig
	} else if r.status.Has(virtio.StatusDriver) {
		r.unheard = true
	}
	r.mu.Unlock()
	r.tell(tell)
}

// needsReset tells the driver that Status has DEVICE_NEEDS_RESET (2.1.2).
func (r *Registers) needsReset() {
	r.mu.Lock()
	tell := r.status.Has(virtio.StatusDriverOK)
	if tell {
		r.interrupts |= InterruptConfig
	}
	r.mu.Unlock()
	r.tell(tell)
}

// fail is DEVICE_NEEDS_RESET for an error of the driver's, or a device that cannot start.
func (r *Registers) fail(what string, err error) {
	r.mu.Lock()
	r.broken, r.serving = true, false
	r.mu.Unlock()
	r.complain("device needs a reset: "+what, "error", err)
	r.needsReset()
}

// tell has the page rendered, then raises the interrupt if asked to. Called without mu.
func (r *Registers) tell(interrupt bool) {
	r.callbacks.RLock()
	defer r.callbacks.RUnlock()
	if r.closed {
		return
	}
	if r.o.Changed != nil {
		r.o.Changed()
	}
	if interrupt && r.o.Interrupt != nil {
		r.o.Interrupt()
	}
}

// complain logs what a driver did wrong, a few times. Called without mu.
func (r *Registers) complain(msg string, args ...any) {
	r.mu.Lock()
	left := r.complaintsLeft
	r.complaintsLeft = max(left-1, 0)
	r.mu.Unlock()
	switch {
	case left > 1:
		r.log.Warn(msg, args...)
	case left == 1:
		r.log.Warn(msg+" (this device's driver is not complained of any more)", args...)
	}
}

// change runs f, which may ask the device, while no other does. It returns when f has, or when the machine ends.
func (r *Registers) change(f func(ctx context.Context)) {
	ctx := r.o.Context
	select {
	case r.op <- struct{}{}:
	case <-ctx.Done():
		return
	}
	if ctx.Err() != nil {
		<-r.op
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { <-r.op }()
		f(ctx)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
