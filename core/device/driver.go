package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// maxConfigWrites bounds the driver's writes that are remembered for replay; a space has fewer writable fields.
const maxConfigWrites = 64

// configWrite is a driver's write to the configuration space.
type configWrite struct {
	offset int
	data   []byte
}

// SetFeatures tells which features the driver accepted (3.1.1). ErrBadRequest if a bit was not offered, or if the set
// changes while a queue runs. Setting the same features again does nothing.
func (d *Device) SetFeatures(ctx context.Context, f virtio.Features) error {
	const op = "set features"
	if err := d.lock(ctx); err != nil {
		return d.err(op, err)
	}
	defer d.unlock()
	d.mu.Lock()
	var err error
	switch {
	case d.state == StateNew:
		err = fmt.Errorf("%w: device is not open", ErrBadRequest)
	case !d.offer.Features.Has(f):
		err = fmt.Errorf("%w: bits %v were not offered", ErrBadRequest, f&^d.offer.Features)
	case d.featuresSet && d.features == f:
		d.mu.Unlock()
		return nil
	case d.anyRunning():
		err = fmt.Errorf("%w: a queue is running", ErrBadRequest)
	}
	l := d.cur
	d.mu.Unlock()
	if err != nil {
		return d.err(op, err)
	}
	ctx = context.WithoutCancel(ctx) // from here on the plugin's state would be unknown; the instance bounds the time
	var config []byte
	if l != nil {
		if config, err = d.setFeaturesOn(ctx, l.inst, f); err != nil && !d.lost(l, err) {
			return d.err(op, err)
		}
	}
	d.mu.Lock()
	d.features, d.featuresSet = f, true
	if l != nil && err == nil {
		d.takeConfig(config)
	}
	d.mu.Unlock()
	return nil
}

// setFeaturesOn tells inst the features, at which it takes up the state of its predecessor, unless that is from before a reset. So
// the state is forgotten here and not at the reset: now a predecessor that was to be replaced is gone, and inst saves nothing
// before it has features. The caller holds op.
func (d *Device) setFeaturesOn(ctx context.Context, inst Instance, f virtio.Features) (config []byte, err error) {
	if d.stateOld && d.opts.State != nil {
		if err := d.opts.State.Clear(); err != nil {
			return nil, err
		}
	}
	config, err = inst.SetFeatures(ctx, f)
	if err == nil {
		d.stateOld = false // what is saved from now on is this driver's
	}
	return config, err
}

// ConfigSpace is a copy of the device configuration space (2.5), empty if the device has none.
func (d *Device) ConfigSpace() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.config)
}

// ReadConfigAt copies the configuration space from offset into p and returns how many bytes there were. It asks nobody,
// so it may be called at any rate.
func (d *Device) ReadConfigAt(p []byte, offset int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if offset < 0 || offset >= len(d.config) {
		return 0
	}
	return copy(p, d.config[offset:])
}

// WriteConfig is a driver's write to the configuration space. ErrBadRequest if it does not lie inside the space.
func (d *Device) WriteConfig(ctx context.Context, offset int, data []byte) error {
	const op = "write config"
	if err := d.lock(ctx); err != nil {
		return d.err(op, err)
	}
	defer d.unlock()
	d.mu.Lock()
	l, size := d.cur, len(d.config)
	d.mu.Unlock()
	if offset < 0 || len(data) > size || offset > size-len(data) {
		return d.err(op, fmt.Errorf("%w: %d bytes at %d: the space has %d", ErrBadRequest, len(data), offset, size))
	}
	if len(data) == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	var config []byte
	var err error
	if l != nil {
		if config, err = l.inst.WriteConfig(ctx, offset, data); err != nil && !d.lost(l, err) {
			return d.err(op, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if l != nil && err == nil {
		d.takeConfig(config)
	} else {
		copy(d.config[offset:], data) // replayed to the next instance
	}
	d.remember(configWrite{offset, slices.Clone(data)})
	return nil
}

// remember keeps a write for the next instance, if it reads back as written: what does not is a trigger, not a setting.
// The caller holds mu.
func (d *Device) remember(w configWrite) {
	d.writes = slices.DeleteFunc(d.writes, func(o configWrite) bool {
		return o.offset == w.offset && len(o.data) == len(w.data)
	})
	if bytes.Equal(d.config[w.offset:w.offset+len(w.data)], w.data) && len(d.writes) < maxConfigWrites {
		d.writes = append(d.writes, w)
	}
}

// takeConfig replaces the configuration space by an answer of the plugin. One of another length is refused: the driver
// has laid out its accesses. The caller holds mu.
func (d *Device) takeConfig(config []byte) bool {
	if len(config) != len(d.config) {
		d.log.Error("plugin changed the size of the configuration space: ignored", "was", len(d.config), "is", len(config))
		return false
	}
	if bytes.Equal(config, d.config) {
		return false
	}
	copy(d.config, config)
	return true
}

// Status is the device status field (2.1): what SetStatus was given, with NEEDS_RESET added if that is so.
func (d *Device) Status() virtio.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.status
	if d.needsReset {
		s |= virtio.StatusNeedsReset
	}
	return s
}

// SetStatus stores the driver's status. It does nothing else: a transport for which a status of 0 means reset calls Reset.
func (d *Device) SetStatus(s virtio.Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status = s &^ virtio.StatusNeedsReset
}

// NeedsReset tells whether the device waits for the driver's reset (2.1.2).
func (d *Device) NeedsReset() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.needsReset
}

// OnConfigChange sets who is told that the configuration space changed by itself; nil: nobody. config is the callee's.
func (d *Device) OnConfigChange(f func(config []byte)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onConfig = f
}

// OnNeedsReset sets who is told that the device needs a reset; nil: nobody. If it needs one already, Status tells.
func (d *Device) OnNeedsReset(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onNeedsReset = f
}

// Reset is the driver's reset (2.4): queues stop without being drained to the driver's knowledge, features, status, queue
// addresses and bases are forgotten. The memory table and the kick and call descriptors stay. It never fails for the
// plugin's sake: an instance that cannot reset is replaced. A failed device tries to start again.
func (d *Device) Reset(ctx context.Context) error {
	const op = "reset"
	if err := d.lock(ctx); err != nil {
		return d.err(op, err)
	}
	defer d.unlock()
	d.mu.Lock()
	l := d.cur
	d.mu.Unlock()
	if l != nil {
		if err := l.inst.Reset(context.WithoutCancel(ctx)); err != nil && !d.lost(l, err) {
			d.lose(l, fmt.Errorf("%w: reset refused: %w", ErrLost, err))
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stateOld = true
	d.features, d.featuresSet, d.status = 0, false, 0
	d.needsReset, d.paused, d.writes = false, false, nil
	d.memoryOn = nil // plugins may take the table for the driver's
	for i := range d.queues {
		d.queues[i].forget()
	}
	if d.state == StateFailed {
		d.setState(StateRestarting, nil)
		select {
		case d.revive <- struct{}{}:
		default:
		}
	}
	return nil
}

// Release is Reset, and forgets the memory table, the kick and call descriptors and the callbacks too: the machine is gone.
func (d *Device) Release(ctx context.Context) error {
	if err := d.Reset(ctx); err != nil {
		return err
	}
	if err := d.lock(ctx); err != nil {
		return d.err("release", err)
	}
	defer d.unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.releaseMachine()
	return nil
}

// releaseMachine closes what belongs to the machine. The caller holds op and mu.
func (d *Device) releaseMachine() {
	for i := range d.queues {
		q := &d.queues[i]
		q.forget()
		q.kick, q.call = replace(q.kick, nil), replace(q.call, nil)
	}
	closeRegions(d.memory)
	d.memory, d.memoryOn, d.onConfig, d.onNeedsReset = nil, nil, nil, nil
}

// Pause stops all queues, drained, until Resume; the driver sees a slow device. Idempotent.
func (d *Device) Pause(ctx context.Context) error { return d.setPaused(ctx, true) }

// Resume goes on after Pause. Idempotent.
func (d *Device) Resume(ctx context.Context) error { return d.setPaused(ctx, false) }

func (d *Device) setPaused(ctx context.Context, pause bool) error {
	op := "resume"
	if pause {
		op = "pause"
	}
	if err := d.lock(ctx); err != nil {
		return d.err(op, err)
	}
	defer d.unlock()
	d.mu.Lock()
	l, same := d.cur, d.paused == pause
	d.mu.Unlock()
	if same {
		return nil
	}
	if l != nil {
		err := d.pauseInstance(context.WithoutCancel(ctx), l, pause)
		if err != nil && !d.lost(l, err) {
			return d.err(op, err)
		}
	}
	d.mu.Lock()
	d.paused = pause
	d.mu.Unlock()
	return nil
}

// pauseInstance passes Pause or Resume on. Queues that the instance was not told of yet are started instead.
func (d *Device) pauseInstance(ctx context.Context, l *live, pause bool) error {
	if pause {
		return l.inst.Pause(ctx)
	}
	if err := l.inst.Resume(ctx); err != nil {
		return err
	}
	var errs []error
	for i := range d.queues {
		q := &d.queues[i]
		if !q.running {
			continue
		}
		if q.on != l {
			errs = append(errs, d.startOn(ctx, l, q))
			continue
		}
		q.ring()
	}
	if err := errors.Join(errs...); err != nil { // half resumed: only another instance helps
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}
