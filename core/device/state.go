package device

import (
	"fmt"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// State is what a Device is doing.
type State int

// States.
const (
	// StateNew: Open has not succeeded yet.
	StateNew State = iota
	// StateReady: an instance serves the device.
	StateReady
	// StateRestarting: the instance is gone, another is being started; the driver's I/O waits.
	StateRestarting
	// StateDegraded: as StateRestarting, but Restart.DegradedAfter attempts have failed: somebody should look.
	StateDegraded
	// StateFailed: the device cannot go on until the driver resets it (DEVICE_NEEDS_RESET, 2.1.2).
	StateFailed
	// StateClosed: Close was called.
	StateClosed
)

// String is one word for people.
func (s State) String() string {
	switch s {
	case StateNew:
		return "new"
	case StateReady:
		return "ready"
	case StateRestarting:
		return "restarting"
	case StateDegraded:
		return "degraded"
	case StateFailed:
		return "failed"
	case StateClosed:
		return "closed"
	}
	return fmt.Sprintf("state-%d", int(s))
}

// Event is something that happened to a device: exactly one of State (with Cause), Notice, Error is meant, as Kind says.
type Event struct {
	// Device is the device's name.
	Device string
	Kind   EventKind
	// State is the new state, for EventState; Cause is why, nil for a good reason.
	State State
	Cause error
	// Notice is set for EventNotice.
	Notice pluginrpc.Notice
	// Error is set for EventError.
	Error pluginrpc.DeviceError
}

// EventKind tells which field of an Event counts.
type EventKind int

// Kinds of events.
const (
	EventState EventKind = iota
	EventNotice
	EventError
)

const (
	// subscriberBuffer is how many events a subscriber may be late; arbitrary, more than a start makes.
	subscriberBuffer = 64
	// keptNotices is how many notices a new subscriber is told afterwards; arbitrary, bounds memory.
	keptNotices = 32
)

// subscriber is one channel handed out by Subscribe.
type subscriber struct{ ch chan Event }

// Subscribe returns a channel of events: first the last notices (at most 32) and the present state, then what happens. A
// subscriber that is more than 32 events late loses the oldest. cancel closes the channel; so does Close.
func (d *Device) Subscribe() (events <-chan Event, cancel func()) {
	s := &subscriber{ch: make(chan Event, subscriberBuffer)}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.notices {
		s.put(Event{Device: d.opts.Name, Kind: EventNotice, Notice: n})
	}
	s.put(Event{Device: d.opts.Name, Kind: EventState, State: d.state, Cause: d.cause})
	if d.state == StateClosed {
		close(s.ch)
		return s.ch, func() {}
	}
	d.subs[s] = struct{}{}
	return s.ch, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if _, ok := d.subs[s]; ok {
			delete(d.subs, s)
			close(s.ch)
		}
	}
}

// put adds e, dropping the oldest event if the subscriber is late. The caller holds Device.mu.
func (s *subscriber) put(e Event) {
	for {
		select {
		case s.ch <- e:
			return
		default:
		}
		select {
		case <-s.ch:
		default:
		}
	}
}

// publish tells all subscribers. The caller holds mu.
func (d *Device) publish(e Event) {
	e.Device = d.opts.Name
	for s := range d.subs {
		s.put(e)
	}
}

// setState changes the state and wakes who waits for a change. The caller holds mu.
func (d *Device) setState(s State, cause error) {
	if d.state == StateClosed {
		return
	}
	same := d.state == s
	d.state, d.cause = s, cause
	close(d.changed)
	d.changed = make(chan struct{})
	if !same {
		d.publish(Event{Kind: EventState, State: s, Cause: cause})
	}
}
