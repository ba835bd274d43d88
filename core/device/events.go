package device

import (
	"slices"
	"time"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// eventInterval is the least time between two events that reach the guest or the log, so that a plugin that floods us
// floods nobody else; arbitrary.
const eventInterval = 10 * time.Millisecond

// pump passes on what l tells, until it ends.
func (d *Device) pump(l *live) {
	for e := range l.inst.Events() {
		switch e := e.(type) {
		case pluginrpc.ConfigChanged:
			d.mu.Lock()
			changed := d.cur == l && d.takeConfig(e.Config)
			d.mu.Unlock()
			if changed {
				d.tellConfig()
				d.breathe()
			}
		case pluginrpc.Notice:
			d.notice(e)
		case pluginrpc.DeviceError:
			d.deviceError(l, e)
			d.breathe()
		}
	}
}

// toldToo is the log for what subscribers are told as well: level info if there are any, lest a user who is shown both read it twice.
func (d *Device) toldToo(otherwise func(string, ...any)) func(string, ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.subs) > 0 {
		return d.log.Info
	}
	return otherwise
}

func (d *Device) tellConfig() {
	d.mu.Lock()
	f, config := d.onConfig, slices.Clone(d.config)
	d.mu.Unlock()
	if f != nil {
		f(config)
	}
}

func (d *Device) notice(n pluginrpc.Notice) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.notices) == keptNotices {
		d.notices = slices.Delete(d.notices, 0, 1)
	}
	d.notices = append(d.notices, n)
	d.publish(Event{Kind: EventNotice, Notice: n})
}

func (d *Device) deviceError(l *live, e pluginrpc.DeviceError) {
	d.quiet.line(d.toldToo(d.log.Error), "device error", "queue", e.Queue, "needs_reset", e.NeedsReset, "error", e.Message)
	d.mu.Lock()
	stale := d.cur != l
	d.publish(Event{Kind: EventError, Error: e})
	d.mu.Unlock()
	if e.NeedsReset && !stale {
		d.askReset(func() {})
	}
}

// breathe waits for eventInterval, or until the device is closed.
func (d *Device) breathe() {
	t := time.NewTimer(eventInterval)
	defer t.Stop()
	select {
	case <-t.C:
	case <-d.background.Done():
	}
}

// askReset sets DEVICE_NEEDS_RESET, with change done under the same lock, and tells the machine.
func (d *Device) askReset(change func()) {
	d.mu.Lock()
	told := d.needsReset
	d.needsReset = true
	change()
	f := d.onNeedsReset
	d.mu.Unlock()
	if f != nil && !told {
		f()
	}
}
