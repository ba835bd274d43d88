package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// live is one instance in the broker's hands.
type live struct {
	inst  Instance
	since time.Time
	// gone is closed by lose, after cause was set.
	gone  chan struct{}
	once  sync.Once
	cause error
}

// errCannotResume: a new instance is there but cannot take over what the driver has set up.
var errCannotResume = errors.New("the new instance cannot continue")

// current is the present instance, or nil.
func (d *Device) current() *live {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cur
}

// PID is the process number of the present plugin instance; 0: there is none, or it does not tell.
func (d *Device) PID() int {
	if l := d.current(); l != nil {
		if p, ok := l.inst.(interface{ PID() int }); ok {
			return p.PID()
		}
	}
	return 0
}

func newLive(inst Instance) *live {
	return &live{inst: inst, since: time.Now(), gone: make(chan struct{})}
}

// adopt makes l the present instance. The caller holds op and mu.
func (d *Device) adopt(l *live) {
	d.cur = l
	d.setState(StateReady, nil)
	d.workers.Go(func() { d.pump(l) })
}

// lost tells whether err means that l is of no more use, and if so gives it up: the caller's change is then replayed to
// the next instance. Any other error is the plugin's refusal.
func (d *Device) lost(l *live, err error) bool {
	if l == nil || !errors.Is(err, ErrLost) {
		return false
	}
	d.lose(l, err)
	return true
}

// lose gives l up; the supervisor does the rest.
func (d *Device) lose(l *live, cause error) {
	d.mu.Lock()
	if d.cur == l {
		d.cur = nil
		d.setState(StateRestarting, cause)
	}
	d.mu.Unlock()
	l.once.Do(func() { l.cause = cause; close(l.gone) })
}

// supervise watches l and its successors until the device is closed.
func (d *Device) supervise(l *live) {
	attempts := 0
	for {
		cause := d.watch(l)
		if cause == nil {
			return
		}
		d.lose(l, cause)
		d.toldToo(d.log.Warn)("plugin instance lost, starting another", "error", cause)
		if !d.bury(l) {
			return
		}
		if time.Since(l.since) >= d.opts.Restart.StableAfter {
			attempts = 0
		}
		if l = d.restart(&attempts, cause); l == nil {
			return
		}
	}
}

// bury closes l, again and again until its process is gone: while it may still write to the rings, no other may. false if
// the device was closed meanwhile.
func (d *Device) bury(l *live) bool {
	for {
		err := l.inst.Close()
		if err == nil {
			return true
		}
		d.log.Error("lost plugin instance cannot be ended: the device waits", "error", err)
		if !d.pauseBefore(1) {
			return false
		}
	}
}

// watch returns why l is lost, or nil when the device is closed.
func (d *Device) watch(l *live) error {
	var tick <-chan time.Time
	if iv := d.opts.Restart.HealthInterval; iv > 0 {
		t := time.NewTicker(iv)
		defer t.Stop()
		tick = t.C
	}
	unwell := ""
	for {
		select {
		case <-d.background.Done():
			return nil
		case <-l.gone:
			return l.cause
		case <-l.inst.Done():
			if d.background.Err() != nil {
				return nil
			}
			if err := l.inst.Err(); err != nil {
				return err
			}
			return fmt.Errorf("%w: ended by itself", ErrLost)
		case <-tick:
			err := l.inst.Health(d.background)
			if errors.Is(err, ErrLost) {
				return err
			}
			if s := errText(err); s != unwell && d.background.Err() == nil {
				unwell = s
				d.log.Warn("device health changed", "reason", s)
			}
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// restart starts instances until one serves the device, or returns nil when the device is closed.
func (d *Device) restart(attempts *int, cause error) *live {
	revived := false // by a reset: that is worth one attempt whatever the budget
	for {
		if b := d.opts.Restart.Budget; !revived && (b < 0 || b > 0 && *attempts >= b) {
			if !d.fail(fmt.Errorf("given up after %d attempts to restart: %w", *attempts, cause)) {
				return nil
			}
			*attempts = 0
		}
		d.noteAttempts(*attempts, cause)
		if !d.pauseBefore(*attempts) {
			return nil
		}
		revived = false
		*attempts++
		l, err := d.startAndReplay()
		switch {
		case err == nil:
			d.log.Info("plugin restarted", "attempt", *attempts)
			return l
		case d.background.Err() != nil:
			return nil
		case errors.Is(err, errCannotResume):
			if !d.fail(err) {
				return nil
			}
			*attempts, revived = 0, true
		default:
			d.log.Warn("plugin restart failed", "attempt", *attempts, "error", err)
		}
		cause = err
	}
}

// noteAttempts shows in the state how the restart goes.
func (d *Device) noteAttempts(n int, cause error) {
	state := StateRestarting
	if n >= d.opts.Restart.DegradedAfter {
		state = StateDegraded
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setState(state, cause)
}

// pauseBefore waits as long as the back-off says after n attempts; false if the device was closed.
func (d *Device) pauseBefore(n int) bool {
	var wait time.Duration
	if n > 0 {
		wait = d.opts.Restart.MaxDelay
		if n < 16 {
			wait = min(wait, d.opts.Restart.MinDelay<<(n-1))
		}
		wait += time.Duration(float64(wait) * (rand.Float64() - 0.5) / 2) //nolint:gosec // jitter, not a secret
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return d.background.Err() == nil
	case <-d.background.Done():
		return false
	}
}

// fail is DEVICE_NEEDS_RESET: it waits for the driver's reset; false if the device was closed instead.
func (d *Device) fail(cause error) bool {
	d.toldToo(d.log.Error)("device needs a reset by the driver", "error", cause)
	select { // a reset from before the failure
	case <-d.revive:
	default:
	}
	d.askReset(func() { d.setState(StateFailed, cause) })
	select {
	case <-d.revive:
		return true
	case <-d.background.Done():
		return false
	}
}

// startAndReplay starts an instance and gives it all that the driver and the machine have set up.
func (d *Device) startAndReplay() (*live, error) {
	inst, err := d.opts.Start(d.background)
	if err != nil {
		return nil, err
	}
	if err := d.lock(d.background); err != nil {
		return nil, errors.Join(err, inst.Close())
	}
	l, changed, err := d.replay(d.background, inst)
	d.unlock()
	if err != nil {
		return nil, errors.Join(err, inst.Close())
	}
	if changed {
		d.tellConfig()
	}
	return l, nil
}

// replay checks that inst can take over and brings it where its predecessor was. The caller holds op.
func (d *Device) replay(ctx context.Context, inst Instance) (l *live, changed bool, err error) {
	offer := inst.Offer()
	if err := d.checkCompatible(offer); err != nil {
		return nil, false, err
	}
	refused := func(err error) error {
		if errors.Is(err, ErrLost) || ctx.Err() != nil {
			return err
		}
		return fmt.Errorf("%w: %w", errCannotResume, err)
	}
	config := offer.Config
	if d.featuresSet {
		if config, err = d.setFeaturesOn(ctx, inst, d.features); err != nil {
			return nil, false, refused(err)
		}
	}
	if config, err = d.replayWrites(ctx, inst, config); err != nil {
		return nil, false, refused(err)
	}
	l = newLive(inst)
	if d.featuresSet && len(d.memory) > 0 {
		if err := d.attach(ctx, l, d.memory); err != nil {
			return nil, false, refused(err)
		}
	}
	for i := range d.queues {
		if q := &d.queues[i]; q.running && !d.paused {
			if err := d.startOn(ctx, l, q); err != nil {
				return nil, false, refused(err)
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.featuresSet {
		d.offer.Features &= offer.Features
	}
	changed = d.takeConfig(config)
	d.adopt(l)
	return l, changed, nil
}

// checkCompatible tells whether an instance with this offer can serve what the driver has set up. The caller holds op.
func (d *Device) checkCompatible(o pluginrpc.Offer) error {
	if err := checkOffer(o); err != nil {
		return fmt.Errorf("%w: %w", errCannotResume, err)
	}
	if missing := d.features &^ o.Features; missing != 0 {
		return fmt.Errorf("%w: it lacks negotiated features %v", errCannotResume, missing)
	}
	if len(o.QueueSizes) != len(d.queues) {
		return fmt.Errorf("%w: it has %d queues, not %d", errCannotResume, len(o.QueueSizes), len(d.queues))
	}
	if len(o.Config) != len(d.config) {
		return fmt.Errorf("%w: its configuration space has %d bytes, not %d", errCannotResume, len(o.Config), len(d.config))
	}
	for i := range d.queues {
		q := &d.queues[i]
		if d.opts.Unrecoverable && q.running && q.served {
			return fmt.Errorf("%w: queue %d ran, and the plugin does not track chains in flight", errCannotResume, i)
		}
	}
	return nil
}

// replayWrites repeats the driver's settings in the configuration space where the new instance differs.
func (d *Device) replayWrites(ctx context.Context, inst Instance, config []byte) ([]byte, error) {
	for _, w := range slices.Clone(d.writes) {
		end := w.offset + len(w.data)
		if len(config) < end || bytes.Equal(config[w.offset:end], w.data) || !bytes.Equal(d.config[w.offset:end], w.data) {
			continue
		}
		after, err := inst.WriteConfig(ctx, w.offset, w.data)
		if err != nil {
			return nil, err
		}
		config = after
	}
	return config, nil
}
