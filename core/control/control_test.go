package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/virtplug/virtplug/core/control"
	controlv1 "github.com/virtplug/virtplug/core/control/v1"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// serve serves a VM without devices that run, below root; it is enough for everything but a plugin's own answers.
func serve(t *testing.T, root, name string, stopped *atomic.Bool) {
	t.Helper()
	dir := filepath.Join(root, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := device.New(device.Options{Name: "vda", DeviceID: virtio.IDBlock})
	s, err := control.Serve(dir, control.VM{
		Name: name, Machine: "uml", MemoryBytes: 1 << 20, Devices: []*device.Device{d}, Types: []string{"block"},
		VCPUs: 2, Bus: "mmio", Guest: &fakeGuest{}, Stop: func() { stopped.Store(true) },
	}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
}

func shortRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "vc") //nolint:usetesting // the test's own is too long for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestARunningVMIsFoundAskedAndStopped(t *testing.T) {
	t.Parallel()
	root := shortRoot(t)
	var stopped atomic.Bool
	serve(t, root, "one", &stopped)
	serve(t, root, "two", new(atomic.Bool))
	c, err := control.Find(t.Context(), root, "one")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // read only
	if d := c.Description; d.GetName() != "one" || int(d.GetPid()) != os.Getpid() || len(d.GetDevices()) != 1 || d.GetDevices()[0].GetState() != "new" {
		t.Errorf("described as %v", d)
	}
	if _, err := c.Stop(t.Context(), &controlv1.StopRequest{}); err != nil || !stopped.Load() {
		t.Errorf("Stop = %v, stopped %v", err, stopped.Load())
	}
	info, err := os.Stat(filepath.Join(root, "one", control.SocketName))
	if err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the socket is open to others: %v, %v", info.Mode(), err)
	}
}

// refusing is an instance that does not tell its statistics.
type refusing struct {
	device.Instance

	done   chan struct{}
	events chan pluginrpc.Event
	once   sync.Once
}

func (r *refusing) Offer() pluginrpc.Offer         { return pluginrpc.Offer{} }
func (r *refusing) Events() <-chan pluginrpc.Event { return r.events }
func (r *refusing) Done() <-chan struct{}          { return r.done }
func (r *refusing) Err() error                     { return nil }
func (r *refusing) Close() error {
	r.once.Do(func() { close(r.done); close(r.events) })
	return nil
}

func (r *refusing) Statistics(context.Context) (pluginrpc.Statistics, error) {
	return pluginrpc.Statistics{}, errors.New("none of your business")
}

func TestADeviceThatRefusesStatisticsHidesNoOther(t *testing.T) {
	t.Parallel()
	root := shortRoot(t)
	dir := filepath.Join(root, "one")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := device.New(device.Options{Name: "bad", Start: func(context.Context) (device.Instance, error) {
		return &refusing{done: make(chan struct{}), events: make(chan pluginrpc.Event)}, nil
	}})
	if err := d.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := device.New(device.Options{Name: "good"})
	s, err := control.Serve(dir, control.VM{Name: "one", Devices: []*device.Device{d, other}, Types: []string{"a", "b"}, Guest: &fakeGuest{}}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(s.Close(), d.Close(), other.Close()); err != nil {
			t.Error(err)
		}
	}()
	got, err := s.Describe(t.Context(), &controlv1.DescribeRequest{Statistics: true})
	if err != nil {
		t.Fatal(err)
	}
	if l := got.GetDevices(); len(l) != 2 || l[0].GetState() != "ready" || !strings.Contains(l[0].GetCause(), "none of your business") {
		t.Errorf("devices are %v", l)
	}
}

func TestErrorsTellWhatThereIs(t *testing.T) {
	t.Parallel()
	root := shortRoot(t)
	if _, err := control.Find(t.Context(), root, "one"); !errors.Is(err, control.ErrNoVM) {
		t.Errorf("Find in an empty root = %v", err)
	}
	if _, err := control.Find(t.Context(), filepath.Join(root, "none"), "one"); !errors.Is(err, control.ErrNoVM) {
		t.Errorf("Find without a root = %v", err)
	}
	serve(t, root, "one", new(atomic.Bool))
	_, err := control.Find(t.Context(), root, "other")
	if !errors.Is(err, control.ErrNoVM) {
		t.Errorf("Find of another = %v", err)
	}
	c, err := control.Find(t.Context(), root, "one")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // read only
	for _, r := range []struct {
		req  *controlv1.CommandRequest
		want codes.Code
	}{
		{&controlv1.CommandRequest{Device: "nope", Name: "resize"}, codes.NotFound},
		{&controlv1.CommandRequest{Device: "vda", Name: "resize", ArgsJson: "{"}, codes.InvalidArgument},
		{&controlv1.CommandRequest{Device: "vda", Name: "resize"}, codes.Unavailable},
	} {
		if _, err := c.Command(t.Context(), r.req); status.Code(err) != r.want {
			b, _ := json.Marshal(r.req)
			t.Errorf("%s: %v, want %v", b, err, r.want)
		}
	}
}

func TestADeadLaunchersSocketIsPassedOver(t *testing.T) {
	t.Parallel()
	root := shortRoot(t)
	serve(t, root, "one", new(atomic.Bool))
	dead := filepath.Join(root, "dead")
	if err := os.Mkdir(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, control.SocketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	clients, errs := control.All(context.Background(), root)
	if len(clients) != 1 || len(errs) != 1 {
		t.Errorf("%d clients, errors %v: want one each", len(clients), errs)
	}
	for _, c := range clients {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// fakeGuest is a guest that can be paused, or whose machine cannot.
type fakeGuest struct {
	mu     sync.Mutex
	paused bool
	err    error
}

func (g *fakeGuest) set(paused bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.paused = paused
	}
	return g.err
}

func (g *fakeGuest) Pause() error              { return g.set(true) }
func (g *fakeGuest) Resume() error             { return g.set(false) }
func (*fakeGuest) Counters() map[string]uint64 { return map[string]uint64{"exits.io": 7} }

func (g *fakeGuest) State() control.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paused {
		return control.StatePaused
	}
	return control.StateRunning
}

func TestAGuestIsPausedAndResumed(t *testing.T) {
	t.Parallel()
	root := shortRoot(t)
	serve(t, root, "one", new(atomic.Bool))
	c, err := control.Find(t.Context(), root, "one")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // read only
	check := func(want string) {
		t.Helper()
		d, err := c.Describe(t.Context(), &controlv1.DescribeRequest{Statistics: true})
		if err != nil || d.GetState() != want || d.GetVcpus() != 2 || d.GetBus() != "mmio" || d.GetCounters()["exits.io"] != 7 {
			t.Errorf("described as %v, %v; want state %s", d, err, want)
		}
	}
	check("running")
	if len(c.Description.GetCounters()) > 0 {
		t.Error("counters are told without being asked for")
	}
	if _, err := c.Pause(t.Context(), &controlv1.PauseRequest{}); err != nil {
		t.Error(err)
	}
	check("paused")
	if _, err := c.Resume(t.Context(), &controlv1.ResumeRequest{}); err != nil {
		t.Error(err)
	}
	check("running")
}

func TestWhyAGuestCannotBePaused(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		err  error
		code codes.Code
	}{
		{fmt.Errorf("machine uml: %w", machine.ErrUnsupported), codes.Unimplemented},
		{errors.New("the guest does not run yet"), codes.FailedPrecondition},
	} {
		dir := shortRoot(t)
		s, err := control.Serve(dir, control.VM{Name: "one", Guest: &fakeGuest{err: k.err}}, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		_, perr := s.Pause(t.Context(), &controlv1.PauseRequest{})
		_, rerr := s.Resume(t.Context(), &controlv1.ResumeRequest{})
		for _, err := range []error{perr, rerr} {
			if status.Code(err) != k.code || !strings.Contains(err.Error(), k.err.Error()) {
				t.Errorf("got %v, want %v with %q", err, k.code, k.err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
