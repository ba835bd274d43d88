package sdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// ringFeatures are what the SDK's virtqueue offers for every device.
const ringFeatures = virtio.FVersion1 | virtio.FIndirectDesc | virtio.FEventIdx

// deviceRuntime is the state machine of one plugin instance, behind pluginrpc.Server: New → Configure → SetFeatures, AttachMemory →
// StartQueue …. Calls that change the state run one at a time (ctl); the others only take mu, shortly.
type deviceRuntime struct {
	def    *definition
	log    hclog.Logger
	events *eventHub
	state  stateKeeper

	ctl    chan struct{} // holds one value while a call changes the state
	closed bool          // under ctl

	mu          sync.Mutex
	dev         Device        // nil until configured
	failed      bool          // Configure was tried and failed
	busyPoll    time.Duration // of each queue; not above 0: none
	offer       pluginrpc.Offer
	features    virtio.Features
	featuresSet bool
	paused      bool
	queues      []*queueSlot
	mem         *guestmem.Memory

	ignoredWrite atomic.Bool
}

var _ pluginrpc.Service = (*deviceRuntime)(nil)

func newRuntime(def *definition, log hclog.Logger) *deviceRuntime {
	return &deviceRuntime{
		def: def, log: log, events: newEventHub(log), state: stateKeeper{declared: def.state}, ctl: make(chan struct{}, 1),
	}
}

// begin waits until no other call changes the state. end must be called if err is nil.
func (r *deviceRuntime) begin(ctx context.Context) (end func(), err error) {
	select {
	case r.ctl <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("another call is still at work: %w", ctx.Err())
	}
	end = func() { <-r.ctl }
	if r.closed {
		end()
		return nil, fmt.Errorf("%w: the plugin is ending", pluginrpc.ErrState)
	}
	return end, nil
}

func outOfOrder(op, why string) error { return fmt.Errorf("%s: %w: %s", op, pluginrpc.ErrState, why) }

// device returns the device, or an error before Configure.
func (r *deviceRuntime) device(op string) (Device, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dev == nil {
		return nil, outOfOrder(op, "the device is not configured")
	}
	return r.dev, nil
}

// Describe implements pluginrpc.Service.
func (r *deviceRuntime) Describe() *pluginv1.DescribeResponse { return r.def.description }

// Configure implements pluginrpc.Service.
func (r *deviceRuntime) Configure(ctx context.Context, s pluginrpc.Settings) (pluginrpc.Offer, error) {
	end, err := r.begin(ctx)
	if err == nil {
		defer end()
		if r.dev != nil || r.failed {
			err = outOfOrder("configure", "it was configured before: start another instance")
		}
	}
	if err != nil {
		closeGrants(s.Files)
		if s.State != 0 {
			_ = unix.Close(s.State)
		}
		return pluginrpc.Offer{}, err
	}
	r.failed = true // until it worked; a panic of New leaves it so
	if err := r.state.open(s.State); err != nil {
		closeGrants(s.Files)
		return pluginrpc.Offer{}, fmt.Errorf("configure: device %s: %w", s.DeviceName, err)
	}
	env := &Env{Name: s.DeviceName, Log: r.log.With("device", s.DeviceName), Identity: s.Identity, host: r}
	dev, err := r.def.newDevice(env, s.ConfigJSON, s.Files)
	if err != nil {
		return pluginrpc.Offer{}, fmt.Errorf("configure: device %s: %w", s.DeviceName, err)
	}
	offer, err := r.adopt(dev, s.Withheld)
	if err != nil {
		r.closeDevice(dev)
		return pluginrpc.Offer{}, fmt.Errorf("configure: device %s: %w", s.DeviceName, err)
	}
	r.failed, r.busyPoll = false, s.BusyPoll
	if r.busyPoll == 0 {
		r.busyPoll = DefaultBusyPoll
	}
	return offer, nil
}

// adopt checks what the device offers and makes it the runtime's.
func (r *deviceRuntime) adopt(dev Device, withheld virtio.Features) (pluginrpc.Offer, error) {
	if err := checkDevice(dev, r.def); err != nil {
		return pluginrpc.Offer{}, err
	}
	spec := dev.Spec()
	if f := spec.Features & virtio.RingFeatures; f != 0 {
		return pluginrpc.Offer{}, fmt.Errorf("spec: features %v belong to the ring: the SDK offers them", f)
	}
	if len(spec.QueueSizes) > pluginrpc.MaxQueues {
		return pluginrpc.Offer{}, fmt.Errorf("spec: %d queues: want at most %d", len(spec.QueueSizes), pluginrpc.MaxQueues)
	}
	queues := make([]*queueSlot, len(spec.QueueSizes))
	for i, n := range spec.QueueSizes {
		if !pluginrpc.ValidQueueSize(uint32(n)) {
			return pluginrpc.Offer{}, fmt.Errorf("spec: queue %d: size %d: want a power of two, at most %d", i, n, virtio.QueueSizeMax)
		}
		queues[i] = &queueSlot{index: i}
	}
	config, err := configOf(dev)
	if err != nil {
		return pluginrpc.Offer{}, err
	}
	offer := pluginrpc.Offer{Features: (ringFeatures | spec.Features) &^ withheld, QueueSizes: spec.QueueSizes, Config: config}
	r.mu.Lock()
	r.dev, r.offer, r.queues = dev, offer, queues
	r.mu.Unlock()
	// What changed between reading the space and now would be lost otherwise.
	if again, err := configOf(dev); err == nil && !bytes.Equal(again, config) {
		r.events.configChanged()
	}
	return offer, nil
}

func closeGrants(files []pluginrpc.FileGrant) {
	for _, f := range files {
		_ = unix.Close(f.FD)
	}
}

func checkDevice(dev Device, def *definition) error {
	switch dev.(type) {
	case nil:
		return errors.New("the function New returned neither a device nor an error")
	case QueueRunner, BatchHandler, ChainHandler:
	default:
		return fmt.Errorf("%T implements none of ChainHandler, BatchHandler, QueueRunner", dev)
	}
	if _, ok := dev.(Commander); len(def.commands) > 0 && !ok {
		return fmt.Errorf("%T: Plugin.Commands is not empty, but it is no Commander", dev)
	}
	if _, ok := dev.(StateRestorer); def.state && !ok {
		return fmt.Errorf("%T: Plugin.State is set, but it is no StateRestorer", dev)
	}
	return nil
}

// configOf reads the device's configuration space; the result is the caller's.
func configOf(dev Device) ([]byte, error) {
	cr, ok := dev.(ConfigReader)
	if !ok {
		return nil, nil
	}
	c := cr.ReadConfig()
	if len(c) > pluginrpc.MaxConfigBytes {
		return nil, fmt.Errorf("configuration space of %d bytes: want at most %d", len(c), pluginrpc.MaxConfigBytes)
	}
	return bytes.Clone(c), nil
}

// SetFeatures implements pluginrpc.Service.
func (r *deviceRuntime) SetFeatures(ctx context.Context, f virtio.Features) ([]byte, error) {
	const op = "set features"
	end, err := r.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	defer end()
	dev, err := r.device(op)
	if err != nil {
		return nil, err
	}
	if i := r.running(); i >= 0 {
		return nil, outOfOrder(op, fmt.Sprintf("queue %d runs", i))
	}
	if alien := f &^ r.offer.Features; alien != 0 {
		return nil, fmt.Errorf("%s: %w: %v were not offered", op, pluginrpc.ErrInvalid, alien)
	}
	if !f.Has(virtio.FVersion1) && !r.def.legacy {
		return nil, fmt.Errorf("%s %v: %w: VIRTIO_F_VERSION_1 (bit 32) is missing, and this plugin does not serve legacy drivers: "+
			"use a driver of VIRTIO 1.0 or later (for the plugin's author: Plugin.Legacy, CAPABILITY_LEGACY)", op, f, pluginrpc.ErrInvalid)
	}
	if fs, ok := dev.(FeatureSetter); ok {
		if err := fs.SetFeatures(f); err != nil {
			return nil, fmt.Errorf("%s %v: %w", op, f, err)
		}
	}
	if err := r.state.restore(dev, r.log); err != nil {
		return nil, fmt.Errorf("%s %v: %w", op, f, err)
	}
	r.mu.Lock()
	r.features, r.featuresSet = f, true
	r.mu.Unlock()
	return configOf(dev)
}

// ReadConfig implements pluginrpc.Service.
func (r *deviceRuntime) ReadConfig(context.Context) ([]byte, error) {
	dev, err := r.device("read configuration space")
	if err != nil {
		return nil, err
	}
	return configOf(dev)
}

// WriteConfig implements pluginrpc.Service. A device without ConfigWriter has a space that is read-only: it ignores the write.
func (r *deviceRuntime) WriteConfig(ctx context.Context, offset int, data []byte) ([]byte, error) {
	const op = "write configuration space"
	end, err := r.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	defer end()
	dev, err := r.device(op)
	if err != nil {
		return nil, err
	}
	config, err := configOf(dev)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if offset < 0 || offset > len(config) || len(data) > len(config)-offset {
		return nil, fmt.Errorf("%s: %w: %d bytes at %d of %d", op, pluginrpc.ErrInvalid, len(data), offset, len(config))
	}
	w, ok := dev.(ConfigWriter)
	if !ok {
		if !r.ignoredWrite.Swap(true) {
			r.log.Warn("the driver wrote to a read-only configuration space: ignored (told once)", "offset", offset, "bytes", len(data))
		}
		return config, nil
	}
	if err := w.WriteConfig(offset, data); err != nil {
		return nil, fmt.Errorf("%s: %d bytes at %d: %w", op, len(data), offset, err)
	}
	return configOf(dev)
}

// AttachMemory implements pluginrpc.Service. Memory belongs to the machine, not to the driver: Reset leaves it, and it may come
// before or after SetFeatures.
func (r *deviceRuntime) AttachMemory(ctx context.Context, regions []guestmem.MapRegion) error {
	const op = "attach memory"
	end, err := r.begin(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer end()
	if _, err := r.device(op); err != nil {
		return err
	}
	if i := r.running(); i >= 0 {
		return outOfOrder(op, fmt.Sprintf("queue %d runs", i))
	}
	for i := 1; i < len(regions); i++ {
		if regions[i].Start <= regions[i-1].Start {
			return fmt.Errorf("%s: %w: region %v after %v: want them ascending", op, pluginrpc.ErrInvalid, regions[i].Start, regions[i-1].Start)
		}
	}
	mem, err := guestmem.Map(regions)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", op, pluginrpc.ErrInvalid, err)
	}
	r.mu.Lock()
	old := r.mem
	r.mem = mem
	r.mu.Unlock()
	if old != nil {
		if err := old.Close(); err != nil {
			return fmt.Errorf("%s: the former table: %w", op, err)
		}
	}
	return nil
}

// Reset implements pluginrpc.Service.
func (r *deviceRuntime) Reset(ctx context.Context) error {
	const op = "reset"
	end, err := r.begin(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer end()
	dev, err := r.device(op)
	if err != nil {
		return err
	}
	if err := r.stopAll(ctx, false); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	r.mu.Lock()
	for _, s := range r.queues {
		s.last, s.broken, s.left = pluginrpc.QueueState{}, "", 0
	}
	r.features, r.featuresSet, r.paused = 0, false, false
	r.mu.Unlock()
	r.state.forget()
	if rs, ok := dev.(Resetter); ok {
		if err := rs.Reset(); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	return nil
}

// Close stops the queues, as far as ctx lets it, and closes the device: once, whoever calls. After it every call fails.
func (r *deviceRuntime) Close(ctx context.Context) error {
	end, err := r.begin(ctx)
	if errors.Is(err, pluginrpc.ErrState) {
		return nil // closed before
	}
	if err != nil { // a call hangs: close the device all the same, the process is ending
		r.log.Error("ending while a call is still at work", "error", err)
		end = func() {}
	}
	defer end()
	r.closed = true
	stopped := r.stopAll(ctx, false)
	r.mu.Lock()
	dev, mem := r.dev, r.mem
	r.mu.Unlock()
	if dev != nil {
		r.closeDevice(dev)
	}
	unmapped := r.state.close()
	if mem != nil && stopped == nil && err == nil { // otherwise somebody may be using it
		return errors.Join(unmapped, mem.Close())
	}
	return errors.Join(unmapped, stopped)
}

func (r *deviceRuntime) closeDevice(dev Device) {
	c, ok := dev.(io.Closer)
	if !ok {
		return
	}
	start := time.Now()
	if err := c.Close(); err != nil {
		r.log.Error("close device", "error", err)
	}
	if d := time.Since(start); d > time.Second {
		r.log.Warn("closing the device took long", "duration", d)
	}
}

// The methods below implement host.
func (r *deviceRuntime) configChanged() { r.events.configChanged() }

func (r *deviceRuntime) fail(err error, queue int, needsReset bool) {
	if err == nil {
		err = errors.New("unspecified failure")
	}
	log := r.log.Error
	if r.events.heard() { // the launcher tells it: not twice
		log = r.log.Info
	}
	log("device error", "queue", queue, "needs_reset", needsReset, "error", err)
	r.events.add(pluginrpc.DeviceError{Message: err.Error(), Queue: queue, NeedsReset: needsReset})
}

func (r *deviceRuntime) saveState(b []byte) error { return r.state.save(b) }

func (r *deviceRuntime) keepsState() bool { return r.state.kept() }

func (r *deviceRuntime) notice(message string, facts map[string]string) {
	r.events.add(pluginrpc.Notice{Message: message, Facts: facts})
}
