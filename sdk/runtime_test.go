package sdk

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// The state machine with real queues is tested through the contract, in pluginrpc.

// scripted is a device that offers what a test wants, and counts Close.
type scripted struct {
	spec   Spec
	config []byte
	closed int
}

func (s *scripted) Spec() Spec                                            { return s.spec }
func (s *scripted) ReadConfig() []byte                                    { return s.config }
func (s *scripted) Close() error                                          { s.closed++; return errors.New("told") }
func (*scripted) HandleChain(context.Context, *Queue, *virtq.Chain) error { return nil }

// mute has no way to serve a queue.
type mute struct{}

func (mute) Spec() Spec { return Spec{} }

func runtimeOf(t *testing.T, dev Device, commands ...CommandSpec) *deviceRuntime {
	t.Helper()
	d, err := define(Plugin[NoConfig]{
		Name: "x", Version: "1.0.0", Device: virtio.IDEntropy, Commands: commands,
		New: func(*Env, NoConfig) (Device, error) { return dev, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return newRuntime(d, hclog.NewNullLogger())
}

func TestAnAuthorsMistakesAreErrorsOfConfigure(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		dev      Device
		commands []CommandSpec
		says     string
	}{
		"nothing":               {nil, nil, "neither a device nor an error"},
		"no handler":            {mute{}, nil, "ChainHandler"},
		"no Commander":          {&scripted{}, []CommandSpec{{Name: "c"}}, "Commander"},
		"ring features":         {&scripted{spec: Spec{Features: virtio.FEventIdx}}, nil, "belong to the ring"},
		"queue size":            {&scripted{spec: Spec{QueueSizes: []uint16{64, 48}}}, nil, "queue 1: size 48"},
		"too many queues":       {&scripted{spec: Spec{QueueSizes: make([]uint16, 1025)}}, nil, "1025 queues"},
		"a configuration space": {&scripted{config: make([]byte, 4097)}, nil, "4097 bytes"},
	} {
		rt := runtimeOf(t, tc.dev, tc.commands...)
		_, err := rt.Configure(t.Context(), pluginrpc.Settings{DeviceName: "d", ConfigJSON: []byte("{}")})
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v: want %q", name, err, tc.says)
		}
		if s, ok := tc.dev.(*scripted); ok && s.closed != 1 {
			t.Errorf("%s: the refused device was closed %d times", name, s.closed)
		}
		if _, err := rt.Configure(t.Context(), pluginrpc.Settings{ConfigJSON: []byte("{}")}); !errors.Is(err, pluginrpc.ErrState) {
			t.Errorf("%s: again: %v: want ErrState", name, err)
		}
	}
}

func TestAPluginWithoutSenseIsRefused(t *testing.T) {
	t.Parallel()
	good := func() Plugin[NoConfig] {
		return Plugin[NoConfig]{
			Name: "x", Version: "1.0.0", Device: virtio.IDEntropy, New: func(*Env, NoConfig) (Device, error) { return mute{}, nil },
		}
	}
	for name, change := range map[string]func(p *Plugin[NoConfig]){
		"name":                 func(p *Plugin[NoConfig]) { p.Name = "X" },
		"version":              func(p *Plugin[NoConfig]) { p.Version = "1" },
		"device":               func(p *Plugin[NoConfig]) { p.Device = 0 },
		"New":                  func(p *Plugin[NoConfig]) { p.New = nil },
		"command's name":       func(p *Plugin[NoConfig]) { p.Commands = []CommandSpec{{Name: "a b"}} },
		"command's arguments":  func(p *Plugin[NoConfig]) { p.Commands = []CommandSpec{{Name: "a", Args: 1}} },
		"a file for a command": func(p *Plugin[NoConfig]) { p.Commands = []CommandSpec{{Name: "a", Args: fileArgs{}}} },
	} {
		p := good()
		if _, err := define(p); err != nil {
			t.Fatal(err)
		}
		change(&p)
		if _, err := define(p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

type fileArgs struct {
	F File `config:"f"`
}

func TestCloseClosesTheDeviceOnceAndEndsEverything(t *testing.T) {
	t.Parallel()
	dev := &scripted{spec: Spec{QueueSizes: []uint16{8}}}
	rt := runtimeOf(t, dev)
	if _, err := rt.Configure(t.Context(), pluginrpc.Settings{DeviceName: "d", ConfigJSON: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := rt.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if dev.closed != 1 {
		t.Errorf("closed %d times", dev.closed)
	}
	if _, err := rt.SetFeatures(t.Context(), virtio.FVersion1); !errors.Is(err, pluginrpc.ErrState) {
		t.Errorf("SetFeatures after Close: %v: want ErrState", err)
	}
}

func TestAWriteToAReadOnlySpaceIsIgnored(t *testing.T) {
	t.Parallel()
	rt := runtimeOf(t, &scripted{config: []byte{1, 2}})
	if _, err := rt.Configure(t.Context(), pluginrpc.Settings{ConfigJSON: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	if c, err := rt.WriteConfig(t.Context(), 1, []byte{9}); err != nil || string(c) != "\x01\x02" {
		t.Errorf("%v, %v", c, err)
	}
	if _, err := rt.WriteConfig(t.Context(), 2, []byte{9}); !errors.Is(err, pluginrpc.ErrInvalid) {
		t.Errorf("beyond the space: %v", err)
	}
}

func TestACallThatWaitsForAnotherHonoursItsDeadline(t *testing.T) {
	t.Parallel()
	rt := runtimeOf(t, &scripted{})
	end, err := rt.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := rt.Reset(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v: want Canceled", err)
	}
	if err := rt.Health(ctx); err != nil { // never waits
		t.Error(err)
	}
	end()
}
