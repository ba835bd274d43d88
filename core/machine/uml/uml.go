package uml

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/machine/kernellog"
	"github.com/virtplug/virtplug/core/transport/vhostuser"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Options are settings of the machine. The zero value is the default.
type Options struct {
	// Log receives what happens; nil: nothing is logged.
	Log hclog.Logger
	// Grace is how long a stopped guest may write back its file systems before it is killed; 0: 5 s.
	Grace time.Duration
}

// Machine runs guests under User-Mode Linux. It has no state of its own: several guests may run at once.
type Machine struct{ opts Options }

var _ machine.Machine = (*Machine)(nil)

// New makes a machine.
func New(o Options) *Machine {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Grace == 0 {
		o.Grace = 5 * time.Second
	}
	return &Machine{opts: o}
}

// Check implements machine.Machine.
func (m *Machine) Check(g machine.Guest) error {
	_, err := m.plan(g)
	return err
}

// plan is what Check found out.
type plan struct {
	kernel, tmpDir string
}

func (m *Machine) plan(g machine.Guest) (plan, error) {
	var p plan
	if g.VCPUs > 1 {
		return p, fmt.Errorf("user-mode linux: %d CPUs: it has one CPU only: ask for 1, or use another machine", g.VCPUs)
	}
	var err error
	if p.kernel, err = findKernel(g.Kernel); err != nil {
		return p, err
	}
	initrd, err := initrdSize(g.Initrd)
	if err != nil {
		return p, err
	}
	p.tmpDir, err = placeMemory(g.MemoryBytes, initrd, g.RunDir)
	return p, err
}

// endpoint is one device and its virtio type.
type endpoint struct {
	id  virtio.DeviceID
	dev vhostuser.Device
}

// Run implements machine.Machine.
func (m *Machine) Run(ctx context.Context, g machine.Guest, devices []*device.Device) (machine.Exit, error) {
	eps := make([]endpoint, len(devices))
	for i, d := range devices {
		eps[i] = endpoint{id: d.ID(), dev: d}
	}
	return m.run(ctx, g, eps)
}

func (m *Machine) run(ctx context.Context, g machine.Guest, eps []endpoint) (exit machine.Exit, err error) {
	p, err := m.plan(g)
	if err != nil {
		return exit, err
	}
	if err := prepareRunDir(g); err != nil {
		return exit, err
	}
	args, err := arguments(g, eps)
	if err != nil {
		return exit, err
	}
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer func() { stopServing(); wg.Wait() }()
	for i, ep := range eps {
		s, err := vhostuser.Listen(filepath.Join(g.RunDir, socketName(i)), ep.dev, vhostuser.Options{
			Protocol: vhostuser.ProtoUML, Log: m.opts.Log.With("device", ep.dev.Name()),
		})
		if err != nil {
			return exit, err
		}
		defer func() { _ = s.Close() }()
		wg.Go(func() {
			if err := s.Run(serving); err != nil {
				m.opts.Log.Error("device not served any more", "error", err)
			}
		})
	}
	if ctx.Err() != nil {
		return machine.Exit{Reason: machine.Stopped}, nil
	}
	out := kernellog.New(g.Console)
	proc, err := start(p.kernel, args, g.RunDir, p.tmpDir, out)
	if err != nil {
		return exit, err
	}
	m.opts.Log.Debug("guest started", "pid", proc.pid, "jail", proc.jail)
	if g.Started != nil {
		g.Started(running{})
	}
	select {
	case <-proc.done:
	case <-ctx.Done():
		m.stop(g, proc, out)
		<-proc.done
		out.Close()
		return machine.Exit{Reason: machine.Stopped, Detail: context.Cause(ctx).Error()}, nil
	}
	out.Close()
	return explain(proc.code, out.Lines()), nil
}

// runDirMax leaves room for the longest socket below RunDir in the 108 bytes of a unix socket's address.
const runDirMax = 107 - len("/umid/g/mconsole")

// prepareRunDir checks RunDir and puts in it what the guest is given by relative name.
func prepareRunDir(g machine.Guest) error {
	if !filepath.IsAbs(g.RunDir) || len(g.RunDir) > runDirMax {
		return fmt.Errorf("user-mode linux: run directory %q: want an absolute path of at most %d bytes, as unix sockets allow no more: set a shorter XDG_RUNTIME_DIR or TMPDIR",
			g.RunDir, runDirMax)
	}
	if g.Initrd == "" {
		return nil
	}
	abs, err := filepath.Abs(g.Initrd)
	if err != nil {
		return fmt.Errorf("user-mode linux: initrd: %w", err)
	}
	link := filepath.Join(g.RunDir, initrdName)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("user-mode linux: initrd: %w", err)
	}
	if err := os.Symlink(abs, link); err != nil {
		return fmt.Errorf("user-mode linux: initrd: %w", err)
	}
	return nil
}

// running is a guest that can only be watched.
type running struct{}

// Pause implements machine.Running.
func (running) Pause() error { return machine.ErrUnsupported }

// Resume implements machine.Running.
func (running) Resume() error { return machine.ErrUnsupported }

// Counters implements machine.Running: the launcher is not woken for this guest.
func (running) Counters() map[string]uint64 { return nil }
