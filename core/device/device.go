package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Errors of a Device.
var (
	// ErrClosed: the device was closed.
	ErrClosed = errors.New("device closed")
	// ErrNoInstance: no plugin instance serves the device at the moment.
	ErrNoInstance = errors.New("no plugin instance is running")
	// ErrBadRequest: the machine asked for something that the device's state or the specification forbids.
	ErrBadRequest = errors.New("bad request")
)

// Restart is the policy after an instance was lost. The zero value is the default.
type Restart struct {
	// Budget is how many attempts in a row may fail before the device is StateFailed; 0: no limit; negative: never restart.
	Budget int
	// DegradedAfter is after how many failed attempts in a row the state is StateDegraded; 0: 5.
	DegradedAfter int
	// MinDelay and MaxDelay bound the pause between attempts, which doubles; the first attempt is immediate. 0: 50 ms, 5 s.
	MinDelay, MaxDelay time.Duration
	// StableAfter is how long an instance must have served for the count of attempts to begin anew; 0: 10 s.
	StableAfter time.Duration
	// HealthInterval is the pause between health checks; an instance that does not answer one is replaced. 0: 10 s;
	// negative: no checks.
	HealthInterval time.Duration
	// StopWait is how long StopQueue waits for a new instance before it answers without one; 0: 5 s.
	StopWait time.Duration
}

func (r Restart) withDefaults() Restart {
	def := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&r.MinDelay, 50*time.Millisecond)
	def(&r.MaxDelay, 5*time.Second)
	def(&r.StableAfter, 10*time.Second)
	def(&r.HealthInterval, 10*time.Second)
	def(&r.StopWait, 5*time.Second)
	if r.DegradedAfter == 0 {
		r.DegradedAfter = 5
	}
	return r
}

// Options make a Device.
type Options struct {
	// Name is the device's name in the configuration: "vda".
	Name string
	// DeviceID is the virtio device type.
	DeviceID virtio.DeviceID
	// Log receives what happens to the device; nil: nothing is logged.
	Log hclog.Logger
	// Start starts and configures an instance. It is called for the first and for each further one, never twice at once.
	Start func(ctx context.Context) (Instance, error)
	// Withhold are feature bits that the driver is never offered.
	Withhold virtio.Features
	// Unrecoverable: the plugin does not track chains in flight (it lacks CAPABILITY_INFLIGHT), so a queue that ran when the
	// instance died cannot go on: the device needs a reset.
	Unrecoverable bool
	// Legacy: the plugin has CAPABILITY_LEGACY: it also serves drivers that do not accept VIRTIO_F_VERSION_1.
	Legacy bool
	// State is the region that Start passes to each instance; nil: the plugin lacks CAPABILITY_STATE. The device empties it when the
	// driver resets the device. It stays the caller's, and is to be closed after the device.
	State *StateRegion
	// Restart is what to do after a crash.
	Restart Restart
}

// Device is one virtio device as the machine sees it. See the package comment.
type Device struct {
	opts  Options
	log   hclog.Logger
	quiet quiet

	// op is held (by a value in it) by whoever changes the device or talks to the instance about such a change. Locked
	// before mu.
	op chan struct{}

	// mu guards what follows; it is never held during an RPC, a callback or a wait.
	mu      sync.Mutex
	state   State
	cause   error
	changed chan struct{} // closed and replaced at each change of state
	cur     *live
	offer   pluginrpc.Offer // the first instance's, less Withhold; Config unused
	config  []byte
	writes  []configWrite // driver's writes to config that stuck, to be replayed

	features    virtio.Features
	featuresSet bool
	status      virtio.Status
	needsReset  bool
	paused      bool
	stateOld    bool // what stands in the state region was saved before the driver's last reset; under op
	memory      []region
	memoryOn    *live // the instance that has the present table; nil: none
	queues      []queue

	onConfig     func(config []byte)
	onNeedsReset func()
	subs         map[*subscriber]struct{}
	notices      []pluginrpc.Notice

	// background is cancelled by Close: it ends the supervisor and a start that is under way.
	background context.Context //nolint:containedctx // the life of the device, not of a call
	cancel     context.CancelFunc
	revive     chan struct{} // Reset of a failed device
	workers    sync.WaitGroup
}

// New makes a device; Open starts it.
func New(o Options) *Device {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	o.Restart = o.Restart.withDefaults()
	d := &Device{
		opts: o, log: o.Log,
		op:      make(chan struct{}, 1),
		changed: make(chan struct{}),
		subs:    map[*subscriber]struct{}{},
		revive:  make(chan struct{}, 1),
	}
	d.background, d.cancel = context.WithCancel(context.Background())
	return d
}

// Open starts the first instance and learns what the device offers. If it fails it may be called again. There is no
// automatic restart until it has succeeded.
func (d *Device) Open(ctx context.Context) error {
	if err := d.lock(ctx); err != nil {
		return d.err("open", err)
	}
	defer d.unlock()
	if d.State() != StateNew {
		return d.err("open", fmt.Errorf("%w: already open", ErrBadRequest))
	}
	ctx, cancel := d.whileOpen(ctx)
	defer cancel()
	d.stateOld = true // from a former Device of the same region
	inst, err := d.opts.Start(ctx)
	if err != nil {
		return d.err("open", err)
	}
	offer := inst.Offer()
	if err := checkOffer(offer); err != nil {
		return d.err("open", errors.Join(err, inst.Close()))
	}
	d.mu.Lock()
	offer.Features &^= d.opts.Withhold
	offer.QueueSizes = slices.Clone(offer.QueueSizes)
	d.offer, d.config = offer, slices.Clone(offer.Config)
	d.queues = make([]queue, len(offer.QueueSizes))
	for i := range d.queues {
		d.queues[i].index = i
	}
	l := newLive(inst)
	d.adopt(l)
	d.mu.Unlock()
	d.workers.Go(func() { d.supervise(l) })
	return nil
}

// Close ends the instance and releases everything. Queues are not drained: stop them first. Idempotent.
func (d *Device) Close() error {
	d.cancel()
	d.mu.Lock()
	l := d.cur
	d.mu.Unlock()
	var errs []error
	if l != nil {
		errs = append(errs, l.inst.Close()) // before the lock: an RPC that hangs ends with the process
	}
	d.op <- struct{}{}
	defer d.unlock()
	d.mu.Lock()
	if d.state == StateClosed {
		d.mu.Unlock()
		return nil
	}
	l, d.cur = d.cur, nil
	d.setState(StateClosed, nil)
	for s := range d.subs {
		delete(d.subs, s)
		close(s.ch)
	}
	d.releaseMachine()
	d.mu.Unlock()
	if l != nil { // one that came meanwhile; before Wait, as its events end with it
		errs = append(errs, l.inst.Close())
	}
	d.workers.Wait()
	if err := errors.Join(errs...); err != nil {
		return d.err("close", err)
	}
	return nil
}

// Name is the device's name in the configuration.
func (d *Device) Name() string { return d.opts.Name }

// ID is the virtio device type.
func (d *Device) ID() virtio.DeviceID { return d.opts.DeviceID }

// Legacy tells whether SetFeatures may leave out VIRTIO_F_VERSION_1, as a driver of the legacy interface (2.2.3) does.
func (d *Device) Legacy() bool { return d.opts.Legacy }

// Features are the bits offered to the driver. Zero before Open.
func (d *Device) Features() virtio.Features {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.offer.Features
}

// Negotiated are the bits that the driver accepted; ok is false before SetFeatures.
func (d *Device) Negotiated() (f virtio.Features, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.features, d.featuresSet
}

// QueueCount is the number of virtqueues. Zero before Open, constant afterwards.
func (d *Device) QueueCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queues)
}

// QueueSizeMax is the largest size of queue i that the driver is to be told, in entries; 0 if there is no such queue. A
// driver that cannot be told may take another: SetQueue accepts any.
func (d *Device) QueueSizeMax(i int) uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i < 0 || i >= len(d.offer.QueueSizes) {
		return 0
	}
	return d.offer.QueueSizes[i]
}

// State tells what the device is doing, and why if that is bad news.
func (d *Device) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

// Cause is why the device is in its present state; nil if all is well.
func (d *Device) Cause() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cause
}

// Statistics reads the instance's counters; they begin anew with each instance. ErrNoInstance while there is none.
func (d *Device) Statistics(ctx context.Context) (pluginrpc.Statistics, error) {
	inst := d.instance()
	if inst == nil {
		return pluginrpc.Statistics{}, d.err("statistics", ErrNoInstance)
	}
	s, err := inst.Statistics(ctx)
	if err != nil {
		return s, d.err("statistics", err)
	}
	return s, nil
}

// Command runs one of the plugin's run-time commands; args and result are JSON objects. ErrNoInstance while there is none.
func (d *Device) Command(ctx context.Context, name string, args []byte) (result []byte, err error) {
	inst := d.instance()
	if inst == nil {
		return nil, d.err("command "+name, ErrNoInstance)
	}
	result, err = inst.Command(ctx, name, args)
	if err != nil {
		return nil, d.err("command "+name, err)
	}
	return result, nil
}

// err gives an error the device's name and the operation.
func (d *Device) err(op string, err error) error {
	return fmt.Errorf("%s: %s: %w", op, d.opts.Name, err)
}

// instance is the present instance, or nil.
func (d *Device) instance() Instance {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cur == nil {
		return nil
	}
	return d.cur.inst
}

// lock takes op. It fails if ctx ends first or the device is closed.
func (d *Device) lock(ctx context.Context) error {
	select {
	case d.op <- struct{}{}:
	case <-ctx.Done():
		if d.background.Err() == nil {
			return ctx.Err()
		}
		return ErrClosed
	case <-d.background.Done():
		return ErrClosed
	}
	if d.background.Err() != nil {
		d.unlock()
		return ErrClosed
	}
	return nil
}

func (d *Device) unlock() { <-d.op }

// whileOpen is ctx that also ends when the device is closed.
func (d *Device) whileOpen(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.background, cancel)
	return ctx, func() { stop(); cancel() }
}

// Limits of an offer: arbitrary, far above any device type, and bounding what a hostile plugin costs.
const (
	maxQueues      = 1024
	maxConfigBytes = 4096
)

// checkOffer validates what a plugin offers: it is not trusted.
func checkOffer(o pluginrpc.Offer) error {
	if len(o.QueueSizes) > maxQueues {
		return fmt.Errorf("plugin's offer: %d queues: at most %d", len(o.QueueSizes), maxQueues)
	}
	for i, n := range o.QueueSizes {
		if !validSize(n, virtio.QueueSizeMax) {
			return fmt.Errorf("plugin's offer: queue %d: size %d: not a power of two up to %d", i, n, virtio.QueueSizeMax)
		}
	}
	if len(o.Config) > maxConfigBytes {
		return fmt.Errorf("plugin's offer: configuration space of %d bytes: at most %d", len(o.Config), maxConfigBytes)
	}
	return nil
}

func validSize(n, limit uint16) bool { return n != 0 && n&(n-1) == 0 && n <= limit }
