package launcher_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/control"
	controlv1 "github.com/virtplug/virtplug/core/control/v1"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/machine"
)

// refusing is a machine that cannot run anything.
type refusing struct{ err error }

func (r refusing) Check(machine.Guest) error { return r.err }
func (r refusing) Run(context.Context, machine.Guest, []*device.Device) (machine.Exit, error) {
	return machine.Exit{}, errors.New("BUG: it was refused")
}

var errDenied = errors.New("kvm: /dev/kvm: permission denied: add yourself to group kvm")

// withMachine is the configuration of a rig with other settings of the vm block.
func withMachine(t *testing.T, r *rig, o launcher.Options, settings string) launcher.Options {
	t.Helper()
	vm, err := config.Parse(t.Context(), []byte("vm \"demo\" {\n"+settings+"\n}\n"), config.Input{Path: "vm.hcl"}, r, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.VM = vm
	return o
}

func TestAutoSaysOnceWhyItDoesNotTakeTheBest(t *testing.T) {
	t.Parallel()
	r, o := newRig(t)
	boots := 0
	r.run = func(context.Context, machine.Guest, []*device.Device) (machine.Exit, error) {
		if boots++; boots < 3 {
			return machine.Exit{Reason: machine.Reboot}, nil
		}
		return machine.Exit{Reason: machine.PowerOff}, nil
	}
	o.Machines = []launcher.NamedMachine{{Name: "kvm", Machine: refusing{errDenied}}, {Name: "uml", Machine: r}}
	choice, err := launcher.Check(o)
	if err != nil || choice.Name != "uml" || len(choice.Refused) != 1 {
		t.Fatalf("Check = %+v, %v", choice, err)
	}
	out, err := launcher.Run(t.Context(), o)
	if err != nil || out.Machine != "uml" || boots != 3 {
		t.Fatalf("Run = %+v, %v after %d boots", out, err, boots)
	}
	var told []launcher.Event
	for _, e := range r.events {
		if e.Kind == launcher.KindMachine {
			told = append(told, e)
		}
	}
	want := []launcher.Event{{
		Kind: "machine", Machine: "uml",
		Message: "machine auto: kvm cannot be used (/dev/kvm: permission denied: add yourself to group kvm); using uml",
		Facts:   map[string]string{"kvm": "/dev/kvm: permission denied: add yourself to group kvm"},
	}}
	if d := cmp.Diff(want, told); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

func TestWhichMachineIsTaken(t *testing.T) {
	t.Parallel()
	errNone := errors.New("no linux.uml in PATH")
	for _, c := range []struct {
		name, settings   string
		kvm, uml         error
		want, wrong      string
		refused, noErrIs bool
	}{
		{name: "the best", want: "kvm"},
		{name: "the next", kvm: errDenied, want: "uml", refused: true},
		{name: "none", kvm: errDenied, uml: errNone, wrong: "the guest cannot run: kvm: /dev/kvm: permission denied: add yourself to group kvm\numl: no linux.uml"},
		{name: "the one that is named", settings: `machine = "uml"`, want: "uml"},
		{name: "the one that is named, silently", settings: `machine = "uml"`, kvm: errDenied, want: "uml"},
		{name: "only the one that is named", settings: `machine = "kvm"`, kvm: errDenied, wrong: "the guest cannot run: kvm: /dev/kvm: permission"},
		{name: "the one that has the bus", settings: `bus = "lguest"`, kvm: errDenied, wrong: "the guest cannot run: kvm: /dev/kvm"},
	} {
		r, o := newRig(t)
		o = withMachine(t, r, o, c.settings)
		o.Machines = []launcher.NamedMachine{{Name: "kvm", Machine: refusing{c.kvm}}, {Name: "uml", Machine: refusing{c.uml}}}
		choice, err := launcher.Check(o)
		if c.wrong != "" {
			if !errors.Is(err, launcher.ErrMachine) || !strings.HasPrefix(err.Error(), c.wrong) || !errors.Is(err, errDenied) {
				t.Errorf("%s: error %v, want %q", c.name, err, c.wrong)
			}
			continue
		}
		if err != nil || choice.Name != c.want || (choice.Fallback() != "") != c.refused {
			t.Errorf("%s: %+v (%s), %v", c.name, choice, choice.Fallback(), err)
		}
	}
}

func TestTheMachineGetsTheBus(t *testing.T) {
	t.Parallel()
	r, o := newRig(t)
	o = withMachine(t, r, o, "bus = \"lguest\"\ncpus = 3\n}\ndevice \"console\" \"con0\" {")
	var got machine.Guest
	legacy := false
	r.run = func(_ context.Context, g machine.Guest, devices []*device.Device) (machine.Exit, error) {
		got, legacy = g, devices[0].Legacy()
		return machine.Exit{Reason: machine.PowerOff}, nil
	}
	o.Machines = []launcher.NamedMachine{{Name: "kvm", Machine: r}}
	if _, err := launcher.Run(t.Context(), o); err != nil || got.Bus != machine.BusLguest || got.VCPUs != 3 || got.Started == nil || !legacy {
		t.Errorf("guest %+v (legacy devices: %v), %v", got, legacy, err)
	}
}

// pausable is a running guest that writes down what it is told.
type pausable struct {
	r      *rig
	err    error
	mu     sync.Mutex
	paused bool
	// resumed is closed when it goes on for the first time.
	resumed chan struct{}
	once    sync.Once
}

func (p *pausable) Pause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.paused = true
	}
	return p.err
}

func (p *pausable) Resume() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.paused = false
		p.once.Do(func() { close(p.resumed) })
	}
	return p.err
}

func (p *pausable) Counters() map[string]uint64 { return map[string]uint64{"exits": 5} }
func (p *pausable) LguestPage() ([]byte, error) { return []byte("page"), nil }

func TestARunningGuestIsPaused(t *testing.T) {
	t.Parallel()
	r, o := newRig(t)
	o = withMachine(t, r, o, `bus = "lguest"`)
	booted, start, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p := &pausable{r: r, resumed: make(chan struct{})}
	r.run = func(ctx context.Context, g machine.Guest, _ []*device.Device) (machine.Exit, error) {
		close(booted)
		<-start
		g.Started(p)
		close(end)
		<-ctx.Done()
		// It is paused; without being told to go on it would not hear that it is to end.
		select {
		case <-p.resumed:
			return machine.Exit{Reason: machine.Stopped}, nil
		case <-time.After(time.Minute):
			return machine.Exit{}, errors.New("still paused")
		}
	}
	o.Machines = []launcher.NamedMachine{{Name: "kvm", Machine: r}}
	done := make(chan error, 1)
	go func() {
		out, err := launcher.Run(t.Context(), o)
		if err == nil && (!out.Quit || out.Reason != machine.Stopped) {
			err = fmt.Errorf("it ended by %+v", out)
		}
		done <- err
	}()
	<-booted
	c, err := control.Find(t.Context(), r.root, "demo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // read only
	state := func(want string, counters int) {
		t.Helper()
		d, err := c.Describe(t.Context(), &controlv1.DescribeRequest{Statistics: true})
		if err != nil || d.GetState() != want || len(d.GetCounters()) != counters {
			t.Errorf("described as %v, %v; want state %s and %d counters", d, err, want, counters)
		}
	}
	state("starting", 0)
	if _, err := c.Pause(t.Context(), &controlv1.PauseRequest{}); err == nil || !strings.Contains(err.Error(), "does not run yet") {
		t.Errorf("pause before it runs: %v", err)
	}
	if _, err := c.LguestPage(t.Context(), &controlv1.LguestPageRequest{}); err == nil {
		t.Error("there is a page before it runs")
	}
	close(start)
	<-end
	state("running", 1)
	for range 2 { // the second changes nothing
		if _, err := c.Pause(t.Context(), &controlv1.PauseRequest{}); err != nil {
			t.Error(err)
		}
		state("paused", 1)
	}
	if page, err := c.LguestPage(t.Context(), &controlv1.LguestPageRequest{}); err != nil || string(page.GetPage()) != "page" {
		t.Errorf("page %v, %v", page, err)
	}
	if _, err := c.Stop(t.Context(), &controlv1.StopRequest{}); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range r.events {
		told = append(told, string(e.Kind)+" "+e.VM)
	}
	if d := cmp.Diff([]string{"running demo", "paused demo"}, told); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

func TestAMachineThatCannotPauseSaysSo(t *testing.T) {
	t.Parallel()
	r, o := newRig(t)
	started := make(chan struct{})
	r.run = func(ctx context.Context, g machine.Guest, _ []*device.Device) (machine.Exit, error) {
		g.Started(&pausable{r: r, err: machine.ErrUnsupported})
		close(started)
		<-ctx.Done()
		return machine.Exit{Reason: machine.Stopped}, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := launcher.Run(ctx, o)
		done <- err
	}()
	<-started
	c, err := control.Find(t.Context(), r.root, "demo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // read only
	if _, err := c.Pause(t.Context(), &controlv1.PauseRequest{}); err == nil || !strings.Contains(err.Error(), "machine uml: this machine cannot do that") {
		t.Errorf("pause: %v", err)
	}
	if d, err := c.Describe(t.Context(), &controlv1.DescribeRequest{}); err != nil || d.GetState() != "running" {
		t.Errorf("described as %v, %v", d, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
