package launcher

import (
	"errors"
	"fmt"
	"sync"

	"github.com/virtplug/virtplug/core/control"
	"github.com/virtplug/virtplug/core/machine"
)

// errNotRunning says that there is no guest to pause.
var errNotRunning = errors.New("the guest does not run yet; try again")

// errEnding says that it is too late.
var errEnding = errors.New("the guest is being ended")

// guest is the guest as other processes see and command it. All methods may be called at once.
type guest struct {
	vm, machine string
	events      *events

	// telling keeps events in their order. Whoever reads them may be slow, which is not to hold up mu.
	telling sync.Mutex
	mu      sync.Mutex
	// running is what the machine gave for the present boot; nil before.
	running        machine.Running
	paused, ending bool
}

var _ control.Guest = (*guest)(nil)

// boots tells that the guest boots, again perhaps. One that was paused while it was being restarted stays so.
func (g *guest) boots() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = nil
}

// started is machine.Guest.Started.
func (g *guest) started(r machine.Running) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = r
	if g.paused {
		_ = r.Pause() // nobody is there to be told of an error, and there is none: a machine that cannot pause has refused before
	}
}

// end lets a paused guest go on, so that it can hear that it is to end. From now on it cannot be paused.
func (g *guest) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ending = true
	if g.paused && g.running != nil {
		_ = g.running.Resume() // the machine ends the guest in any case
		g.paused = false
	}
}

// Pause implements control.Guest.
func (g *guest) Pause() error { return g.set(true, machine.Running.Pause, KindPaused) }

// Resume implements control.Guest.
func (g *guest) Resume() error { return g.set(false, machine.Running.Resume, KindResumed) }

func (g *guest) set(paused bool, do func(machine.Running) error, kind Kind) error {
	g.telling.Lock()
	defer g.telling.Unlock()
	changed, err := g.change(paused, do)
	if changed {
		g.events.send(Event{Kind: kind, VM: g.vm, Machine: g.machine})
	}
	return err
}

// change calls do, and tells whether the guest was not as it is now.
func (g *guest) change(paused bool, do func(machine.Running) error) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ending:
		return false, errEnding
	case g.running == nil:
		return false, errNotRunning
	}
	if err := do(g.running); err != nil {
		return false, fmt.Errorf("machine %s: %w", g.machine, err)
	}
	changed := g.paused != paused
	g.paused = paused
	return changed, nil
}

// State implements control.Guest.
func (g *guest) State() control.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ending:
		return control.StateEnding
	case g.paused:
		return control.StatePaused
	case g.running == nil:
		return control.StateStarting
	}
	return control.StateRunning
}

// Counters implements control.Guest.
func (g *guest) Counters() map[string]uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running == nil {
		return nil
	}
	return g.running.Counters()
}

// lguestPager is a machine's running guest that may have a lguest bus.
type lguestPager interface {
	// LguestPage copies the bus's device page.
	LguestPage() ([]byte, error)
}

// lguestPage is control.VM.LguestPage.
func (g *guest) lguestPage() ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running == nil {
		return nil, errNotRunning
	}
	pager, ok := g.running.(lguestPager)
	if !ok {
		return nil, fmt.Errorf("machine %s: %w", g.machine, machine.ErrUnsupported)
	}
	return pager.LguestPage()
}
