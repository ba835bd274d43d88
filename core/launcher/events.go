package launcher

import (
	"sync"

	"github.com/virtplug/virtplug/core/device"
)

// Kind is what an Event is about.
type Kind string

// Kinds of events. Programs read them: they are not renamed.
const (
	// KindRunning: all devices are there and the guest boots.
	KindRunning Kind = "running"
	// KindMachine: `auto` takes another machine than the best, and why.
	KindMachine Kind = "machine"
	// KindPaused: the guest's processors stand still.
	KindPaused Kind = "paused"
	// KindResumed: they go on.
	KindResumed Kind = "resumed"
	// KindNotice: a device tells something that a user wants to know.
	KindNotice Kind = "notice"
	// KindState: a device's plugin died, is being restarted, is back, or has failed for good.
	KindState Kind = "state"
	// KindError: a device reports an error.
	KindError Kind = "error"
)

// Event is something that happened, for the user.
type Event struct {
	Kind Kind `json:"event"`
	// VM and Machine are set for KindRunning, KindPaused and KindResumed; Machine for KindMachine too.
	VM      string `json:"vm,omitempty"`
	Machine string `json:"machine,omitempty"`
	// Device is the device's name for the others.
	Device string `json:"device,omitempty"`
	// State is the device's new state.
	State string `json:"state,omitempty"`
	// Message is for people.
	Message string `json:"message,omitempty"`
	// Facts are a notice's, for programs; for KindMachine why a machine cannot be used, by its name.
	Facts map[string]string `json:"facts,omitempty"`
}

// events passes on what devices tell, one at a time.
type events struct {
	mu   sync.Mutex
	tell func(Event)
	wg   sync.WaitGroup
}

func newEvents(tell func(Event)) *events { return &events{tell: tell} }

func (e *events) send(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.tell != nil {
		e.tell(ev)
	}
}

// forward passes on what a device tells until its channel is closed.
func (e *events) forward(from <-chan device.Event) {
	e.wg.Go(func() {
		well := true // as far as the user was told
		for ev := range from {
			switch ev.Kind {
			case device.EventNotice:
				e.send(Event{Kind: KindNotice, Device: ev.Device, Message: ev.Notice.Message, Facts: ev.Notice.Facts})
			case device.EventError:
				e.send(Event{Kind: KindError, Device: ev.Device, Message: ev.Error.Message})
			case device.EventState:
				bad := ev.State == device.StateRestarting || ev.State == device.StateDegraded || ev.State == device.StateFailed
				if bad || ev.State == device.StateReady && !well {
					e.send(stateEvent(ev))
				}
				well = !bad
			}
		}
	})
}

func stateEvent(ev device.Event) Event {
	out := Event{Kind: KindState, Device: ev.Device, State: ev.State.String()}
	if ev.Cause != nil {
		out.Message = ev.Cause.Error()
	}
	return out
}

// wait returns when all channels are closed.
func (e *events) wait() { e.wg.Wait() }
