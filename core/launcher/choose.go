package launcher

import (
	"errors"
	"fmt"
	"strings"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/machine"
)

// NamedMachine is a machine with its name in configurations.
type NamedMachine struct {
	Name    string
	Machine machine.Machine
}

// Choice is the machine that runs a VM.
type Choice struct {
	NamedMachine

	// Refused are the machines that `auto` would rather have had, and why they cannot be used.
	Refused []Refusal
}

// Refusal is why a machine cannot be used.
type Refusal struct {
	Machine string
	Reason  error
}

// Error implements error. It names the machine once, whether its own message begins with it or not.
func (r Refusal) Error() string { return r.Machine + ": " + r.why() }

// Unwrap returns the reason.
func (r Refusal) Unwrap() error { return r.Reason }

func (r Refusal) why() string { return strings.TrimPrefix(r.Reason.Error(), r.Machine+": ") }

// Fallback says why another machine than the best is used, and what to do about it; empty if it is the best.
func (c Choice) Fallback() string {
	if len(c.Refused) == 0 {
		return ""
	}
	var parts []string
	for _, r := range c.Refused {
		parts = append(parts, fmt.Sprintf("%s cannot be used (%s)", r.Machine, r.why()))
	}
	return fmt.Sprintf("machine %s: %s; using %s", config.MachineAuto, strings.Join(parts, ", "), c.Name)
}

// event is Fallback for the user and for programs.
func (c Choice) event() Event {
	e := Event{Kind: KindMachine, Machine: c.Name, Message: c.Fallback(), Facts: map[string]string{}}
	for _, r := range c.Refused {
		e.Facts[r.Machine] = r.why()
	}
	return e
}

// Check tells by which machine this host can run the VM, without starting anything.
func Check(o Options) (Choice, error) { return choose(o, guestOf(o.VM)) }

// choose returns the machine that the configuration names, or for `auto` the first that this host can run.
func choose(o Options, g machine.Guest) (Choice, error) {
	var c Choice
	for _, m := range o.Machines {
		if o.VM.Machine != config.MachineAuto && o.VM.Machine != m.Name {
			continue
		}
		err := m.Machine.Check(g)
		if err == nil {
			c.NamedMachine = m
			return c, nil
		}
		c.Refused = append(c.Refused, Refusal{m.Name, err})
	}
	if len(c.Refused) == 0 {
		return Choice{}, o.VM.AtVM("machine", fmt.Errorf("there is no machine %q in this build", o.VM.Machine))
	}
	errs := make([]error, len(c.Refused))
	for i, r := range c.Refused {
		errs[i] = r
	}
	return Choice{}, fmt.Errorf("%w: %w", ErrMachine, errors.Join(errs...))
}
