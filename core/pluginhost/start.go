package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Default time limits.
const (
	DefaultStartTimeout = 10 * time.Second
	DefaultCallTimeout  = 5 * time.Second
	DefaultStopTimeout  = 30 * time.Second
)

// Spec says which plugin to start, for which device.
type Spec struct {
	Program Program
	// SHA256 pins the program, in hexadecimal; empty: any.
	SHA256 string
	// DeviceID is the device type that it must serve; 0: any.
	DeviceID virtio.DeviceID
	// Settings go to Configure. Files and State stay the caller's and must be open as long as Start may be called. A plugin without
	// CAPABILITY_STATE does not get State.
	Settings pluginrpc.Settings
	// Log receives what the plugin writes to standard error, at a bounded rate; nil: nothing.
	Log hclog.Logger
	// TempDir is where the instance's private directory is made; empty: the system's. A long path is replaced by /tmp, for
	// a socket's path has at most 107 bytes.
	TempDir string
	// StartTimeout bounds Start, CallTimeout each call, StopTimeout StopQueue, Pause and Reset, which drain. 0: 10 s, 5 s, 30 s.
	StartTimeout, CallTimeout, StopTimeout time.Duration
}

func (s Spec) withDefaults() Spec {
	def := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&s.StartTimeout, DefaultStartTimeout)
	def(&s.CallTimeout, DefaultCallTimeout)
	def(&s.StopTimeout, DefaultStopTimeout)
	if s.Log == nil {
		s.Log = hclog.NewNullLogger()
	}
	return s
}

// Start runs a plugin, verifies that it is what it should be, and configures it. The error is a *StartError; then nothing
// of the process is left. If ctx ends, the start is given up.
func Start(ctx context.Context, spec Spec) (*Instance, error) {
	spec = spec.withDefaults()
	i := &Instance{
		spec: spec, sink: newLogSink(spec.Log.Named(spec.Settings.DeviceName)),
		events: make(chan pluginrpc.Event),
		done:   make(chan struct{}), closing: make(chan struct{}), gone: make(chan struct{}),
	}
	limited, cancel := context.WithTimeout(ctx, spec.StartTimeout)
	defer cancel()
	err := i.start(limited)
	if err == nil {
		return i, nil
	}
	i.closeOnce.Do(func() { go i.abandon() })
	if e := i.awaitGone(); e != nil {
		err = errors.Join(err, e)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	} else if limited.Err() != nil {
		err = fmt.Errorf("%w: not ready after %v", ErrStartTimeout, spec.StartTimeout)
	}
	return nil, &StartError{
		Plugin: i.pluginName(), Device: spec.Settings.DeviceName, Path: spec.Program.Path, Err: err, Stderr: i.sink.Lines(),
	}
}

func (i *Instance) start(ctx context.Context) error {
	exe, err := openProgram(i.spec.Program.Path, i.spec.SHA256)
	if err != nil {
		return err
	}
	defer exe.Close() //nolint:errcheck // read only
	if i.dir, err = privateDir(i.spec.TempDir); err != nil {
		return err
	}
	var child *os.File
	if i.socket, child, err = pluginrpc.NewSocketPair(); err != nil {
		return err
	}
	defer child.Close() //nolint:errcheck // the child has its own
	i.client = plugin.NewClient(i.clientConfig(exe, child))
	if err := i.handshake(ctx); err != nil {
		return i.explain(ctx, err)
	}
	d, err := i.rpc.Describe(ctx)
	if err != nil {
		return i.explain(ctx, err)
	}
	if err := checkIdentity(d, i.spec.Program.Name, uint32(i.spec.DeviceID)); err != nil {
		return err
	}
	i.description = d
	if i.offer, err = i.rpc.Configure(ctx, settingsFor(i.spec.Settings, d)); err != nil {
		return i.explain(ctx, err)
	}
	life, cancel := context.WithCancel(context.Background())
	events, err := i.rpc.Events(life)
	if err != nil {
		cancel()
		return i.explain(ctx, err)
	}
	i.cancelEvents = cancel
	i.workers.Go(func() { i.relay(events) })
	i.workers.Go(i.watch)
	return nil
}

// settingsFor is what of s a plugin with description d gets: one without CAPABILITY_STATE would not know what the descriptor is.
func settingsFor(s pluginrpc.Settings, d *pluginv1.DescribeResponse) pluginrpc.Settings {
	if !slices.Contains(d.GetCapabilities(), pluginv1.Capability_CAPABILITY_STATE) {
		s.State = 0
	}
	return s
}

func (i *Instance) clientConfig(exe, child *os.File) *plugin.ClientConfig {
	return &plugin.ClientConfig{
		HandshakeConfig:  pluginrpc.Handshake(),
		Plugins:          pluginrpc.LauncherPlugins(i.socket),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Logger:           hclog.NewNullLogger(), // what it has to say, our errors say
		SkipHostEnv:      true,
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: i.dir},
		GRPCDialOptions:  pluginrpc.DialOptions(),
		SyncStdout:       i.sink.stream(), // not while the plugin is still in its handshake, so no longer a fault
		SyncStderr:       i.sink.stream(),
		StartTimeout:     i.spec.StartTimeout + time.Minute, // ours, which kills, comes first
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			r := newRunner(command{
				exe: exe, path: i.spec.Program.Path, socket: child,
				env:    append(cmd.Env, "TMPDIR="+dir),
				stderr: func(f *os.File) { i.sink.consume(f) },
			}, dir)
			i.runnerMu.Lock()
			defer i.runnerMu.Unlock()
			i.runner = r
			return r, nil
		},
	}
}

// handshake starts the process and connects. go-plugin offers no context: a timer that kills the process stands in.
func (i *Instance) handshake(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		_, err := i.client.Start()
		if err != nil {
			done <- err
			return
		}
		done <- i.connect()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// The runner exists as soon as Start got that far; it does so without waiting for the plugin.
	for {
		i.kill()
		select {
		case <-done: //nolint:errcheck // it failed, because we killed it
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (i *Instance) connect() error {
	conn, err := i.client.Client()
	if err != nil {
		return err
	}
	raw, err := conn.Dispense(pluginrpc.PluginName)
	if err != nil {
		return err
	}
	rpc, ok := raw.(*pluginrpc.Client)
	if !ok {
		return fmt.Errorf("dispense: unexpected %T", raw)
	}
	i.rpc = rpc
	return nil
}

// explain finds the reason behind an error of the start.
func (i *Instance) explain(ctx context.Context, err error) error {
	p := i.process()
	if ctx.Err() != nil || p == nil {
		return err
	}
	// Only a process that is gone, or a connection that never came to be, needs an explanation.
	gone := errors.Is(err, pluginrpc.ErrUnavailable) || i.rpc == nil
	if !gone {
		return err
	}
	if i.rpc == nil {
		if bad := i.runner.judge(); bad != nil {
			return bad
		}
		if !p.endedByItself() { // go-plugin has killed it
			return fmt.Errorf("%w: %w", ErrHandshake, err)
		}
	}
	select {
	case <-p.ended:
		return i.exitError("")
	case <-time.After(2 * drainTime): // its connection may break before it is reaped
		return err
	}
}

// maxTempDir leaves room in a socket's path for the names that go-plugin adds.
const maxTempDir = 60

// privateDir makes a directory of mode 0700 with a short path.
func privateDir(parent string) (string, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	if abs, err := filepath.Abs(parent); err == nil {
		parent = abs
	}
	if len(parent) > maxTempDir-len("/vp-0123456789") {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "vp-")
	if err != nil {
		return "", fmt.Errorf("private directory: %w", err)
	}
	return dir, nil
}
