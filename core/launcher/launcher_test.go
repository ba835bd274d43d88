package launcher_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a launcher's whole surroundings, faked, with a list of what happened in it.
type rig struct {
	mu    sync.Mutex
	steps []string
	root  string

	prepareErr, startErr map[string]error
	// startHook is called at each start of a plugin.
	startHook func(ctx context.Context, name string) error
	run       func(ctx context.Context, g machine.Guest, devices []*device.Device) (machine.Exit, error)
	checkErr  error
	quit      func()
	instances map[string]*fakeInstance
	events    []launcher.Event
	// vms are the names that devices were prepared under.
	vms []string
}

func (r *rig) step(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, s)
}

func (r *rig) Describe(_ context.Context, ref config.PluginRef) (*pluginv1.DescribeResponse, error) {
	d := &pluginv1.DescribeResponse{Name: ref.Name, DeviceId: 2, Schema: &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
		{Name: "size", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE, Min: proto.Int64(1)},
	}}}
	if ref.Name == "console" {
		d.DeviceId = uint32(virtio.IDConsole)
		d.Commands = []*pluginv1.CommandSpec{{Name: "resize"}}
		d.Capabilities = []pluginv1.Capability{pluginv1.Capability_CAPABILITY_LEGACY}
		d.Schema.Attributes = append(d.Schema.Attributes,
			&pluginv1.Attribute{Name: "backend", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING},
			&pluginv1.Attribute{Name: "stdio", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE, File: &pluginv1.FileAccess{AnyKind: true}})
	}
	return d, nil
}

func (r *rig) Names([]string) []string { return []string{"block", "console"} }

func (r *rig) Prepare(vm string, d *config.Device, _ string) (launcher.Prepared, error) {
	r.vms = append(r.vms, vm)
	if err := r.prepareErr[d.Name]; err != nil {
		return nil, err
	}
	r.step("prepare " + d.Name)
	return &fakePrepared{r, d.Name}, nil
}

type fakePrepared struct {
	r    *rig
	name string
}

func (p *fakePrepared) Start(ctx context.Context, terminal *os.File) (device.Instance, error) {
	if p.r.startHook != nil {
		if err := p.r.startHook(ctx, p.name); err != nil {
			return nil, err
		}
	}
	if err := p.r.startErr[p.name]; err != nil {
		return nil, err
	}
	p.r.step("start " + p.name)
	if terminal != nil {
		p.r.step("terminal for " + p.name)
	}
	i := &fakeInstance{r: p.r, name: p.name, events: make(chan pluginrpc.Event, 1), done: make(chan struct{})}
	p.r.mu.Lock()
	if p.r.instances == nil {
		p.r.instances = map[string]*fakeInstance{}
	}
	p.r.instances[p.name] = i
	p.r.mu.Unlock()
	i.events <- pluginrpc.Notice{Message: "hello from " + p.name}
	return i, nil
}

func (p *fakePrepared) State() *device.StateRegion { return nil }

func (p *fakePrepared) Close() error { p.r.step("release " + p.name); return nil }

// fakeInstance is a plugin that serves nothing.
type fakeInstance struct {
	device.Instance

	r      *rig
	name   string
	events chan pluginrpc.Event
	done   chan struct{}
	once   sync.Once
}

func (i *fakeInstance) Offer() pluginrpc.Offer         { return pluginrpc.Offer{QueueSizes: []uint16{64}} }
func (i *fakeInstance) Events() <-chan pluginrpc.Event { return i.events }
func (i *fakeInstance) Done() <-chan struct{}          { return i.done }
func (i *fakeInstance) Err() error                     { return nil }
func (i *fakeInstance) Health(context.Context) error   { return nil }
func (i *fakeInstance) Command(_ context.Context, name string, args []byte) ([]byte, error) {
	i.r.step(name + " " + i.name + " " + string(args))
	return []byte("{}"), nil
}

func (i *fakeInstance) Close() error {
	i.once.Do(func() {
		i.r.step("close " + i.name)
		close(i.done)
		close(i.events)
	})
	return nil
}

func (r *rig) Check(machine.Guest) error { return r.checkErr }

func (r *rig) Run(ctx context.Context, g machine.Guest, devices []*device.Device) (machine.Exit, error) {
	r.step("run " + g.Cmdline)
	if info, err := os.Stat(g.RunDir); err != nil || info.Mode().Perm() != 0o700 {
		r.step("run directory is wrong")
	}
	if r.run != nil {
		return r.run(ctx, g, devices)
	}
	return machine.Exit{Reason: machine.PowerOff}, nil
}

type fakeTerminal struct{ r *rig }

func (t *fakeTerminal) Start()              { t.r.step("take terminal over") }
func (t *fakeTerminal) PluginEnd() *os.File { return os.Stdin }
func (t *fakeTerminal) Close() error        { t.r.step("restore terminal"); return nil }

const vmFile = `vm "demo" {
}
device "block" "vda" {
  size = 5
}
device "console" "con0" {
  backend = "stdio"
}
device "block" "vdb" {
}
`

func newRig(t *testing.T) (*rig, launcher.Options) {
	t.Helper()
	r := &rig{root: filepath.Join(t.TempDir(), "r")}
	if len(r.root) > 40 { // room for sockets
		dir, err := os.MkdirTemp("/tmp", "vl") //nolint:usetesting // the test's own is too long for the paths of sockets
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		r.root = filepath.Join(dir, "r")
	}
	vm, err := config.Parse(t.Context(), []byte(vmFile), config.Input{Path: "vm.hcl"}, r, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r, launcher.Options{
		VM: vm, Plugins: r, Machines: []launcher.NamedMachine{{Name: "uml", Machine: r}}, RunRoot: r.root,
		Terminal: func(resize func(cols, rows int), quit func()) (launcher.Terminal, error) {
			r.step("open terminal")
			r.quit = quit
			resize(80, 24)
			resize(100, 30)
			return &fakeTerminal{r}, nil
		},
		Event: func(e launcher.Event) { r.events = append(r.events, e) },
	}
}

// checkClean checks that everything that was opened was closed, and no run directory is left.
func (r *rig) checkClean(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, pair := range [][2]string{{"prepare", "release"}, {"start", "close"}, {"open terminal", "restore terminal"}} {
		var opened, closed int
		for _, s := range r.steps {
			if strings.HasPrefix(s, pair[0]) {
				opened++
			}
			if strings.HasPrefix(s, pair[1]) {
				closed++
			}
		}
		if opened != closed {
			t.Errorf("%d times %s, but %d times %s: %q", opened, pair[0], closed, pair[1], r.steps)
		}
	}
	entries, err := os.ReadDir(r.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			t.Errorf("run directory %s is left", e.Name())
		}
	}
}

func TestAWholeLife(t *testing.T) {
	t.Parallel()
	r, o := newRig(t)
	r.run = func(ctx context.Context, _ machine.Guest, devices []*device.Device) (machine.Exit, error) {
		var names []string
		for _, d := range devices {
			names = append(names, d.Name())
		}
		r.step(strings.Join(names, ","))
		for { // the console learns the terminal's newest size
			r.mu.Lock()
			told := slices.Contains(r.steps, `resize con0 {"cols":100,"port":0,"rows":30}`)
			r.mu.Unlock()
			if told {
				return machine.Exit{Reason: machine.PowerOff}, nil
			}
			select {
			case <-ctx.Done():
				return machine.Exit{Reason: machine.Stopped}, nil
			case <-time.After(time.Millisecond):
			}
		}
	}
	out, err := launcher.Run(t.Context(), o)
	if err != nil || out.Reason != machine.PowerOff || out.Machine != "uml" || out.Quit || len(out.Failed) > 0 {
		t.Fatalf("Run = %+v, %v", out, err)
	}
	r.checkClean(t)
	steps := strings.Join(r.steps, "; ")
	for _, want := range []string{"run console=hvc0", "vda,con0,vdb", "terminal for con0", "restore terminal; release vdb; release con0; release vda"} {
		if !strings.Contains(steps, want) {
			t.Errorf("no %q in %s", want, steps)
		}
	}
	if strings.Index(steps, "close con0") > strings.Index(steps, "restore terminal") {
		t.Errorf("the terminal is restored before the console's plugin ends: %s", steps)
	}
	var told []string
	for _, e := range r.events {
		told = append(told, string(e.Kind)+" "+e.Device+e.VM+" "+e.Message)
	}
	for _, want := range []string{"running demo ", "notice vda hello from vda", "notice con0 hello from con0"} {
		if !slices.Contains(told, want) {
			t.Errorf("event %q is not among %q", want, told)
		}
	}
}

func TestNothingStaysWhateverFails(t *testing.T) {
	t.Parallel()
	setting := &pluginrpc.SettingError{Attribute: "size", Message: "5 is odd"}
	for name, c := range map[string]struct {
		spoil func(*rig, *launcher.Options)
		want  string
		is    error
	}{
		"machine missing": {func(r *rig, _ *launcher.Options) { r.checkErr = errors.New("install it") }, "install it", launcher.ErrMachine},
		"no terminal":     {func(_ *rig, o *launcher.Options) { o.Terminal = nil }, "vm.hcl:7: ", nil},
		"terminal fails": {func(_ *rig, o *launcher.Options) {
			o.Terminal = func(func(int, int), func()) (launcher.Terminal, error) { return nil, errors.New("no tty") }
		}, "no tty", nil},
		"files of two devices": {func(r *rig, _ *launcher.Options) {
			r.prepareErr = map[string]error{"vda": errors.Join(setting), "con0": &pluginrpc.SettingError{Attribute: "backend", Message: "bad"}}
		}, "vm.hcl:4: Device \"vda\" cannot be made: size: 5 is odd.\nvm.hcl:7: ", nil},
		"plugin dies": {func(r *rig, _ *launcher.Options) { r.startErr = map[string]error{"vdb": errors.New("exit status 3")} }, "exit status 3", launcher.ErrDevice},
		"setting and death": {func(r *rig, _ *launcher.Options) {
			r.startErr = map[string]error{"vdb": errors.New("exit status 3"), "vda": setting}
		}, "vm.hcl:4: ", launcher.ErrDevice},
		"machine fails": {func(r *rig, _ *launcher.Options) {
			r.run = func(context.Context, machine.Guest, []*device.Device) (machine.Exit, error) {
				return machine.Exit{}, errors.New("boom")
			}
		}, "boom", launcher.ErrMachine},
		"run directory": {func(_ *rig, o *launcher.Options) { o.RunRoot = "/proc/self/nothing" }, "run directory", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, o := newRig(t)
			c.spoil(r, &o)
			_, err := launcher.Run(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("Run = %v; want %q (%v)", err, c.want, c.is)
			}
			r.checkClean(t)
		})
	}
}

func TestInterruptsAtEveryStageLeaveNothing(t *testing.T) {
	t.Parallel()
	for _, stage := range []string{"before", "starting", "running", "quit while starting", "quit"} {
		t.Run(stage, func(t *testing.T) {
			t.Parallel()
			r, o := newRig(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			wait := func(ctx context.Context) { <-ctx.Done() }
			r.run = func(ctx context.Context, _ machine.Guest, _ []*device.Device) (machine.Exit, error) {
				switch stage {
				case "running":
					cancel()
				case "quit":
					r.quit()
				}
				wait(ctx)
				return machine.Exit{Reason: machine.Stopped}, nil
			}
			r.startHook = func(ctx context.Context, name string) error {
				if !strings.HasSuffix(stage, "starting") || name != "vdb" {
					return nil
				}
				if stage == "starting" {
					cancel()
				} else {
					r.quit()
				}
				wait(ctx)
				return ctx.Err()
			}
			if stage == "before" {
				cancel()
			}
			out, err := launcher.Run(ctx, o)
			early := stage == "before" || stage == "starting"
			quit := strings.HasPrefix(stage, "quit")
			if errors.Is(err, launcher.ErrDevice) {
				t.Errorf("the interrupt is called a device's failure: %v", err)
			}
			if early != errors.Is(err, context.Canceled) || !early && (err != nil || out.Reason != machine.Stopped) || out.Quit != quit {
				t.Errorf("Run = %+v, %v", out, err)
			}
			// Until there is a guest, the terminal is the user's: Ctrl-C must reach the launcher.
			if took, ran := slices.Contains(r.steps, "take terminal over"), stage == "running" || stage == "quit"; took != ran {
				t.Errorf("terminal taken over: %v; guest ran: %v: %q", took, ran, r.steps)
			}
			r.checkClean(t)
		})
	}
}

func TestTheUserIsToldWhenAPluginDiesAndComesBack(t *testing.T) {
	t.Parallel()
	r, o := newRig(t)
	back := make(chan struct{})
	var told []string
	o.Event = func(e launcher.Event) {
		if e.Kind == launcher.KindState {
			told = append(told, e.Device+" "+e.State)
			if e.State == "ready" {
				close(back)
			}
		}
	}
	r.run = func(ctx context.Context, _ machine.Guest, _ []*device.Device) (machine.Exit, error) {
		r.mu.Lock()
		i := r.instances["vda"]
		r.mu.Unlock()
		_ = i.Close() // it dies
		select {
		case <-back:
		case <-time.After(30 * time.Second):
		case <-ctx.Done():
		}
		return machine.Exit{Reason: machine.PowerOff}, nil
	}
	if _, err := launcher.Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if want := []string{"vda restarting", "vda ready"}; !slices.Equal(told, want) {
		t.Errorf("told is %q, want %q", told, want)
	}
	r.checkClean(t)
}

func TestAGuestThatRestartsBootsAgainWithTheSamePlugins(t *testing.T) {
	t.Parallel()
	for _, noReboot := range []bool{false, true} {
		r, o := newRig(t)
		o.NoReboot = noReboot
		boots := 0
		r.run = func(context.Context, machine.Guest, []*device.Device) (machine.Exit, error) {
			if boots++; boots < 3 {
				return machine.Exit{Reason: machine.Reboot}, nil
			}
			return machine.Exit{Reason: machine.PowerOff}, nil
		}
		out, err := launcher.Run(t.Context(), o)
		want, wantBoots := machine.PowerOff, 3
		if noReboot {
			want, wantBoots = machine.Reboot, 1
		}
		if err != nil || out.Reason != want || boots != wantBoots {
			t.Errorf("no reboot %v: Run = %+v, %v after %d boots", noReboot, out, err, boots)
		}
		if n := strings.Count(strings.Join(r.steps, ";"), "start vda"); n != 1 {
			t.Errorf("the plugin of vda was started %d times", n)
		}
		r.checkClean(t)
	}
}

func TestUsersOwnConsoleIsKept(t *testing.T) {
	t.Parallel()
	r, o := newRig(t)
	vm, err := config.Parse(t.Context(), []byte(vmFile), config.Input{Path: "vm.hcl", Flags: config.Flags{Cmdline: "quiet console=tty0"}}, r, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.VM = vm
	if _, err := launcher.Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(r.steps, "run quiet console=tty0") {
		t.Errorf("steps are %q", r.steps)
	}
}

// A guest that restarts in a loop is not booted as fast as it can, and can be stopped in the pause.
func TestAGuestThatRestartsInALoopIsSlowedDown(t *testing.T) {
	t.Parallel()
	r, o := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var boots []time.Time
	r.run = func(context.Context, machine.Guest, []*device.Device) (machine.Exit, error) {
		if boots = append(boots, time.Now()); len(boots) == 5 {
			time.AfterFunc(50*time.Millisecond, cancel) // within a pause of 1.6 s
		}
		return machine.Exit{Reason: machine.Reboot}, nil
	}
	out, err := launcher.Run(ctx, o)
	stopped := time.Now()
	if err != nil || out.Reason != machine.Stopped || len(boots) != 5 {
		t.Fatalf("Run = %+v, %v after %d boots", out, err, len(boots))
	}
	for i, least := range []int64{100, 200, 400, 800} {
		if d := boots[i+1].Sub(boots[i]); d.Milliseconds() < least {
			t.Errorf("boot %d came %v after the one before: want %d ms", i+1, d, least)
		}
	}
	if d := stopped.Sub(boots[4]); d > 1500*time.Millisecond {
		t.Errorf("it took %v to stop in a pause", d)
	}
	r.checkClean(t)
}

// VMs of one name have the same addresses: those that nobody gave a name must not share the default one.
func TestAVMWithoutANameIsNobodyElse(t *testing.T) {
	t.Parallel()
	root := "" // of all runs, as a user's: the directory of one that ended may be used again, in a container by the same process number
	names := func(named bool) []string {
		r, o := newRig(t)
		if root == "" {
			root = o.RunRoot
		}
		o.RunRoot, o.VM.Named = root, named
		if _, err := launcher.Run(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		return r.vms
	}
	if got := names(true); len(got) == 0 || got[0] != "demo" {
		t.Errorf("a VM with a name: devices of %q, want its name", got)
	}
	if a, b := names(false), names(false); len(a) == 0 || a[0] == b[0] || a[0] == "demo" {
		t.Errorf("two VMs without a name: devices of %q and %q, want different ones", a, b)
	}
}
