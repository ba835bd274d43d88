package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/machine"
)

// reporter tells what happens to a VM: text to standard error, or JSON to standard output.
type reporter struct {
	app  *app
	json bool
	mu   sync.Mutex
}

// event tells one event.
func (r *reporter) event(e launcher.Event) {
	if r.json {
		r.line(struct {
			Version int `json:"schema_version"`
			launcher.Event
		}{schemaVersion, e})
		return
	}
	text := ""
	switch e.Kind {
	case launcher.KindRunning:
		return // the guest itself shows that
	case launcher.KindMachine:
		fmt.Fprintf(r.app.stderr, "virtplug: %s\n", e.Message)
		return
	case launcher.KindPaused:
		fmt.Fprintf(r.app.stderr, "virtplug: %s: paused; `virtplug resume %s` lets it go on\n", e.VM, e.VM)
		return
	case launcher.KindResumed:
		fmt.Fprintf(r.app.stderr, "virtplug: %s: goes on\n", e.VM)
		return
	case launcher.KindNotice:
		text = e.Message
	case launcher.KindError:
		text = "error: " + e.Message
	case launcher.KindState:
		text = e.State
		if e.Message != "" {
			text += ": " + e.Message
		}
	}
	fmt.Fprintf(r.app.stderr, "virtplug: %s: %s\n", e.Device, text)
}

// ending is the last line of run --json.
type ending struct {
	Version int    `json:"schema_version"`
	Event   string `json:"event"`
	// Reason is one of power-off, reboot, panic, crash, quit, interrupted, error, and checked after a dry run.
	Reason  string `json:"reason"`
	Code    int    `json:"code"`
	Machine string `json:"machine,omitempty"`
	Detail  string `json:"detail,omitempty"`
	// Note says after a dry run why machine auto is not the best one.
	Note   string   `json:"note,omitempty"`
	Failed []string `json:"failed_devices,omitempty"`
	Error  string   `json:"error,omitempty"`
	// Diagnostics are set if the configuration is wrong.
	Diagnostics *config.Error `json:"diagnostics,omitempty"`
}

// end tells how a run ended, and returns the error for the exit status.
func (r *reporter) end(out launcher.Outcome, err error) error {
	e := ending{Version: schemaVersion, Event: "exit", Machine: out.Machine, Detail: out.Detail, Failed: out.Failed}
	if err != nil {
		e.Reason, e.Code, e.Error = "error", codeOf(err), err.Error()
		if e.Code == exitInterrupted {
			e.Reason = "interrupted"
			err = exitStatus{exitInterrupted, "interrupted"}
		}
		if ce, ok := errors.AsType[*config.Error](err); ok {
			e.Diagnostics, e.Error = ce, "the configuration is wrong"
		}
	} else {
		err = r.outcome(out, &e)
	}
	if r.json {
		r.line(e)
	}
	return err
}

// dryRun tells that a VM can run, or why not.
func (r *reporter) dryRun(o launcher.Options) error {
	chosen, err := launcher.Check(o)
	if err != nil {
		return r.end(launcher.Outcome{}, err)
	}
	if r.json {
		r.line(ending{Version: schemaVersion, Event: "exit", Reason: "checked", Machine: chosen.Name, Note: chosen.Fallback()})
		return nil
	}
	if note := chosen.Fallback(); note != "" {
		fmt.Fprintf(r.app.stderr, "virtplug: %s\n", note)
	}
	_, err = fmt.Fprintf(r.app.stdout, "%s: configuration is good: machine %s, %s of memory, %d devices\n",
		o.VM.Name, chosen.Name, config.FormatSize(int64(o.VM.MemoryBytes)), len(o.VM.Devices)) //nolint:gosec // G115: checked against a maximum
	return err
}

// outcome judges how a guest ended.
func (r *reporter) outcome(out launcher.Outcome, e *ending) error {
	message := ""
	switch out.Reason {
	case machine.PowerOff:
		e.Reason = "power-off"
	case machine.Reboot:
		e.Reason = "reboot"
		if !r.json {
			fmt.Fprintln(r.app.stderr, "virtplug: the guest asked to be restarted")
		}
	case machine.Stopped:
		e.Reason, e.Code, message = "interrupted", exitInterrupted, "interrupted; the guest was stopped"
		if out.Quit {
			e.Reason, e.Code, message = "quit", exitOK, ""
		}
	case machine.Panic:
		e.Reason, e.Code, message = "panic", exitGuestPanic, "the guest's kernel panicked: "+indented(out.Detail)
	case machine.Crashed:
		e.Reason, e.Code, message = "crash", exitMachine, fmt.Sprintf("the machine %s crashed: %s", out.Machine, indented(out.Detail))
	}
	if len(out.Failed) > 0 && e.Code == exitOK {
		e.Code, message = exitDevice, "failed devices: "+strings.Join(out.Failed, ", ")
	}
	if e.Code == exitOK {
		return nil
	}
	return exitStatus{e.Code, message}
}

// indented puts further lines of a text, such as registers, below the first one. They may hold what the guest wrote.
func indented(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, l := range lines {
		lines[i] = oneLine(l)
	}
	return strings.Join(lines, "\n    ")
}

// line writes one JSON object.
func (r *reporter) line(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// There is nowhere to tell that standard output is gone; the guest goes on.
	_ = json.NewEncoder(r.app.stdout).Encode(v)
}

// printJSON writes v, indented, for the commands that print one result.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
