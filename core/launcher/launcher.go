package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Errors that tell how a run failed; errors.Is finds them.
var (
	// ErrDevice: a device could not be started.
	ErrDevice = errors.New("device cannot start")
	// ErrMachine: no machine can run the guest on this host, or the one chosen cannot.
	ErrMachine = errors.New("the guest cannot run")
)

// errQuit is the cause of a stop that the user asked for, at the terminal or by the control socket.
var errQuit = errors.New("the user asked to quit")

// Plugins opens devices' files and starts plugin instances; Host is the real one.
type Plugins interface {
	// Prepare opens what the settings of d, a device of VM vm, name; nothing is started. Instances may put their own files into
	// runDir. Errors that concern one setting wrap a *pluginrpc.SettingError.
	Prepare(vm string, d *config.Device, runDir string) (Prepared, error)
}

// Prepared is a device whose files are open.
type Prepared interface {
	// Start starts and configures a new instance with the files. terminal is passed for the device's Terminal attribute; nil
	// if it has none. Start may be called again and again.
	Start(ctx context.Context, terminal *os.File) (device.Instance, error)
	// State is the region in which instances keep the device's state, for device.Options; nil: they keep none.
	State() *device.StateRegion
	// Close closes the files and the region, and removes listening sockets. Instances keep what they were given.
	Close() error
}

// Terminal is the user's terminal while a VM has it; *terminal.Terminal is the real one.
type Terminal interface {
	// Start takes the terminal over: from then on what the user types is the guest's. Until then Ctrl-C is the launcher's.
	Start()
	// PluginEnd is the end of the socket that is passed to the plugin. It belongs to the Terminal.
	PluginEnd() *os.File
	// Close restores the terminal. Idempotent.
	Close() error
}

// OpenTerminal takes over the user's terminal. resize is called with each new size in characters, quit when the user types the
// escape key; neither blocks.
type OpenTerminal func(resize func(cols, rows int), quit func()) (Terminal, error)

// Options are what a run needs.
type Options struct {
	VM      *config.VM
	Plugins Plugins
	// Machines are those that can be chosen; `auto` takes the first that this host can run.
	Machines []NamedMachine
	// Terminal opens the user's terminal for the device that wants it.
	Terminal OpenTerminal
	// RunRoot is where the run directory is made.
	RunRoot string
	// Log receives what happens; nil: nothing is logged.
	Log hclog.Logger
	// Event is told what a user wants to know; one call at a time. nil: nobody is told.
	Event func(Event)
	// KernelOutput receives the kernel's own output besides the virtio console; nil: dropped.
	KernelOutput io.Writer
	// NoReboot: a guest that asks to be restarted ends the run (machine.Reboot). Otherwise it boots again with the same
	// plugin instances, and KindRunning is sent again; one that asks for it as soon as it runs boots after a pause, of at most 5 s.
	NoReboot bool
	// Restart is what to do about plugins that die.
	Restart device.Restart
}

// Outcome is how a run ended.
type Outcome struct {
	machine.Exit
	// Machine is the name of the machine that ran.
	Machine string
	// Failed are the devices that had failed for good when the guest ended.
	Failed []string
	// Quit: the user asked for the end, at the terminal or by `virtplug stop`.
	Quit bool
}

// Run lives a VM's life and returns when nothing of it is left. If ctx ends, the guest is stopped (Outcome.Reason is
// machine.Stopped), or what was started of it is taken down and ctx's error returned. Errors are *config.Error where a place in
// the configuration is to blame.
func Run(ctx context.Context, o Options) (out Outcome, err error) {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{o: o, cancel: cancel, events: newEvents(o.Event)}
	defer func() {
		if uerr := r.undo.run(); uerr != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", uerr))
		}
	}()
	boot := guestOf(o.VM)
	chosen, err := choose(o, boot)
	if err != nil {
		return out, err
	}
	out.Machine = chosen.Name
	if chosen.Fallback() != "" {
		r.events.send(chosen.event())
	}
	r.guest = &guest{vm: boot.Name, machine: chosen.Name, events: r.events}
	dir, err := newRunDir(o.RunRoot, o.VM.Name)
	if err != nil {
		return out, err
	}
	r.undo.add(dir.Close)
	boot.RunDir, boot.Console, boot.Started = dir.path, o.KernelOutput, r.guest.started
	if err := r.prepare(dir.path); err != nil {
		return out, err
	}
	if err := r.open(ctx); err != nil {
		if out.Quit = quitting(ctx); out.Quit {
			out.Reason = machine.Stopped
			return out, nil
		}
		return out, err
	}
	if err := r.serveControl(dir.path); err != nil {
		return out, err
	}
	if r.terminal != nil {
		r.terminal.Start()
	}
	if out.Exit, err = r.boot(ctx, chosen.Machine, boot); err != nil {
		return out, fmt.Errorf("%w: %w", ErrMachine, Refusal{chosen.Name, err})
	}
	out.Quit = quitting(ctx)
	for _, d := range r.devices {
		if d.State() == device.StateFailed {
			out.Failed = append(out.Failed, d.Name())
		}
	}
	return out, nil
}

// boot runs the guest, again and again if it asks to be restarted.
func (r *run) boot(ctx context.Context, m machine.Machine, g machine.Guest) (machine.Exit, error) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(ended); r.guest.end() })
	defer func() {
		if !stop() {
			<-ended
		}
	}()
	var pause rebootPause
	for {
		r.guest.boots()
		r.events.send(Event{Kind: KindRunning, Machine: r.guest.machine, VM: g.Name})
		begin := time.Now()
		exit, err := m.Run(ctx, g, r.devices)
		if err != nil || exit.Reason != machine.Reboot || r.o.NoReboot || ctx.Err() != nil {
			return exit, err
		}
		r.guest.boots() // there is nothing to pause meanwhile
		d := pause.after(time.Since(begin))
		if d == lastRebootPause {
			r.o.Log.Warn("the guest restarts as soon as it runs: its next boot waits", "pause", d)
		}
		if !wait(ctx, d) {
			return machine.Exit{Reason: machine.Stopped}, nil
		}
	}
}

func quitting(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errQuit) }

// guestOf says what to boot.
func guestOf(vm *config.VM) machine.Guest {
	return machine.Guest{
		Name: vm.Name, MemoryBytes: vm.MemoryBytes, VCPUs: vm.VCPUs, Bus: vm.Bus, Kernel: vm.Kernel, Initrd: vm.Initrd, Cmdline: cmdline(vm),
	}
}

// cmdline is the user's kernel command line, with the virtio console as the kernel's if there is one and the user names none.
func cmdline(vm *config.VM) string {
	for word := range strings.FieldsSeq(vm.Cmdline) {
		if strings.HasPrefix(word, "console=") {
			return vm.Cmdline
		}
	}
	if !slices.ContainsFunc(vm.Devices, func(d config.Device) bool {
		return virtio.DeviceID(d.Description.GetDeviceId()) == virtio.IDConsole
	}) {
		return vm.Cmdline
	}
	return strings.TrimSpace("console=hvc0 " + vm.Cmdline)
}
