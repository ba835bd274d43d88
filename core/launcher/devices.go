package launcher

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/control"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// run is one VM's life.
type run struct {
	o      Options
	cancel context.CancelCauseFunc
	undo   undo
	events *events

	guest    *guest
	terminal Terminal // nil if no device wants it
	prepared []Prepared
	devices  []*device.Device
}

// prepare opens the files of all devices. It tells all that is wrong at once.
func (r *run) prepare(runDir string) error {
	var errs []error
	if i := r.terminalDevice(); i >= 0 && r.o.Terminal == nil {
		d := r.o.VM.Devices[i]
		errs = append(errs, r.o.VM.At(d.Name, strings.TrimSuffix(d.Terminal, "stdio")+"backend", errors.New("there is no terminal here for backend \"stdio\"")))
	}
	vm := r.o.VM.Name
	if !r.o.VM.Named {
		vm = rand.Text() // no other VM's: process numbers, and so run directories, are the same in each container
	}
	for i := range r.o.VM.Devices {
		d := &r.o.VM.Devices[i]
		p, err := r.o.Plugins.Prepare(vm, d, runDir)
		if err != nil {
			errs = append(errs, r.explain(d.Name, err))
			continue
		}
		r.undo.add(p.Close)
		r.prepared = append(r.prepared, p)
	}
	return config.Join(errs...)
}

// terminalDevice is the index of the device that wants the terminal, -1 if none does.
func (r *run) terminalDevice() int {
	return slices.IndexFunc(r.o.VM.Devices, func(d config.Device) bool { return d.Terminal != "" })
}

// explain gives an error about a setting its place in the configuration; several joined ones each.
func (r *run) explain(name string, err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { // only the outermost is taken apart
		var errs []error
		for _, e := range joined.Unwrap() {
			errs = append(errs, r.explain(name, e))
		}
		return config.Join(errs...)
	}
	if se, ok := errors.AsType[*pluginrpc.SettingError](err); ok {
		return r.o.VM.At(name, se.Attribute, se)
	}
	return fmt.Errorf("%w: %w", ErrDevice, err)
}

// open prepares the terminal, if a device wants it, and starts the devices' plugins, side by side.
func (r *run) open(ctx context.Context) error {
	terminal, sizes, err := r.openTerminal()
	if err != nil {
		return err
	}
	errs := make([]error, len(r.prepared))
	var opening sync.WaitGroup
	r.devices = make([]*device.Device, len(r.prepared))
	for i, p := range r.prepared {
		c := &r.o.VM.Devices[i]
		d := device.New(device.Options{
			Name: c.Name, DeviceID: virtio.DeviceID(c.Description.GetDeviceId()), Log: r.o.Log.Named(c.Name),
			Start:    func(ctx context.Context) (device.Instance, error) { return p.Start(ctx, terminalFor(c, terminal)) },
			Withhold: c.Withheld, Restart: r.o.Restart, State: p.State(),
			Unrecoverable: !slices.Contains(c.Description.GetCapabilities(), pluginv1.Capability_CAPABILITY_INFLIGHT),
			Legacy:        slices.Contains(c.Description.GetCapabilities(), pluginv1.Capability_CAPABILITY_LEGACY),
		})
		r.devices[i] = d
		told, _ := d.Subscribe()
		r.events.forward(told)
		opening.Go(func() {
			if err := d.Open(ctx); err != nil {
				errs[i] = r.explain(c.Name, err)
			}
		})
	}
	r.undo.add(r.closeDevices)
	opening.Wait()
	if err := ctx.Err(); err != nil { // then the devices' errors say no more than this
		return err
	}
	if err := config.Join(errs...); err != nil {
		return err
	}
	if i := r.terminalDevice(); i >= 0 {
		following, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.followSizes(following, sizes, i)
		}()
		r.undo.add(func() error { stop(); <-done; return nil })
	}
	return nil
}

// serveControl lets other processes ask and command the VM until it ends.
func (r *run) serveControl(dir string) error {
	vm := control.VM{
		Name: r.o.VM.Name, Machine: r.guest.machine, Bus: r.o.VM.Bus, MemoryBytes: r.o.VM.MemoryBytes, VCPUs: r.o.VM.VCPUs,
		Devices: r.devices, Guest: r.guest, Stop: func() { r.cancel(errQuit) },
	}
	if r.o.VM.Bus == machine.BusLguest {
		vm.LguestPage = r.guest.lguestPage
	}
	for _, d := range r.o.VM.Devices {
		vm.Types = append(vm.Types, d.Plugin.Name)
	}
	s, err := control.Serve(dir, vm, r.o.Log)
	if err != nil {
		return err
	}
	r.undo.add(s.Close)
	return nil
}

func terminalFor(c *config.Device, terminal *os.File) *os.File {
	if c.Terminal == "" {
		return nil
	}
	return terminal
}

// closeDevices ends all plugins, side by side, so that several that hang take no longer than one.
func (r *run) closeDevices() error {
	errs := make([]error, len(r.devices))
	var closing sync.WaitGroup
	for i, d := range r.devices {
		closing.Go(func() { errs[i] = d.Close() })
	}
	closing.Wait()
	r.events.wait()
	return errors.Join(errs...)
}

// resizeWait is how long a console may take to learn its size; arbitrary.
const resizeWait = 2 * time.Second

// size is a terminal's, in characters.
type size struct{ cols, rows int }

// openTerminal takes over the terminal, if a device wants it: as late as possible, because from then on Ctrl-C goes to the guest.
func (r *run) openTerminal() (end *os.File, sizes <-chan size, err error) {
	if r.terminalDevice() < 0 {
		return nil, nil, nil
	}
	latest := make(chan size, 1)
	resize := func(cols, rows int) {
		for {
			select {
			case latest <- size{cols, rows}:
				return
			default:
			}
			select { // only the newest counts
			case <-latest:
			default:
			}
		}
	}
	t, err := r.o.Terminal(resize, func() { r.cancel(errQuit) })
	if err != nil {
		return nil, nil, err
	}
	r.undo.add(t.Close)
	r.terminal = t
	return t.PluginEnd(), latest, nil
}

// followSizes tells device i the terminal's size, until ctx ends.
func (r *run) followSizes(ctx context.Context, sizes <-chan size, i int) {
	c, d := r.o.VM.Devices[i], r.devices[i]
	if !slices.ContainsFunc(c.Description.GetCommands(), func(s *pluginv1.CommandSpec) bool { return s.GetName() == "resize" }) {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-sizes:
			args, err := json.Marshal(map[string]int{"port": terminalPort(c.Terminal), "cols": s.cols, "rows": s.rows})
			if err == nil {
				call, cancel := context.WithTimeout(ctx, resizeWait)
				_, err = d.Command(call, "resize", args)
				cancel()
			}
			if err != nil && ctx.Err() == nil {
				r.o.Log.Warn("the guest's console does not learn its size", "device", c.Name, "error", err)
			}
		}
	}
}

// terminalPort is the number of the console port that an attribute belongs to: "stdio" is port 0, "port.0.stdio" port 1.
func terminalPort(attribute string) int {
	parts := strings.Split(attribute, ".")
	if len(parts) < 3 {
		return 0
	}
	n, _ := strconv.Atoi(parts[1])
	return n + 1
}
