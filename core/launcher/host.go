package launcher

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/pluginhost"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Host is Plugins and config.Plugins by core/pluginhost.
type Host struct {
	// Log receives what plugins log; nil: nothing is logged.
	Log hclog.Logger
}

var (
	_ Plugins        = (*Host)(nil)
	_ config.Plugins = (*Host)(nil)
)

// Discover searches dirs and then the default places. A plugin in dirs hides those of the same name elsewhere.
func Discover(dirs []string) pluginhost.Catalogue {
	rest := pluginhost.Discover(pluginhost.Search{})
	if len(dirs) == 0 {
		return rest
	}
	all := pluginhost.Discover(pluginhost.Search{Dirs: dirs})
	first := map[string]string{}
	for _, f := range all.Findings {
		if f.Err == nil && f.ShadowedBy == "" {
			first[f.Name] = f.Path
		}
	}
	for _, d := range rest.Directories {
		if !slices.ContainsFunc(all.Directories, func(o pluginhost.Directory) bool { return o.Path == d.Path }) {
			all.Directories = append(all.Directories, d)
		}
	}
	for _, f := range rest.Findings {
		if slices.ContainsFunc(all.Findings, func(o pluginhost.Finding) bool { return o.Path == f.Path }) {
			continue
		}
		if by := first[f.Name]; by != "" {
			f.ShadowedBy = by
		}
		all.Findings = append(all.Findings, f)
	}
	return all
}

// Names implements config.Plugins. It lists those that were refused too: Describe tells why.
func (*Host) Names(dirs []string) []string {
	var names []string
	for _, f := range Discover(dirs).Findings {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Describe implements config.Plugins. A program that is pinned is not run if it is another.
func (*Host) Describe(ctx context.Context, ref config.PluginRef) (*pluginv1.DescribeResponse, error) {
	program, err := find(ref)
	if err != nil {
		return nil, err
	}
	if err := checkPin(program.Path, ref.SHA256); err != nil {
		return nil, err
	}
	return pluginhost.Describe(ctx, program)
}

// find returns the program of ref.
func find(ref config.PluginRef) (pluginhost.Program, error) {
	if ref.Path != "" {
		return pluginhost.FromPath(ref.Path)
	}
	return Discover(ref.Dirs).Find(ref.Name)
}

// checkPin compares a program's hash with the configured one. pluginhost.Start does it again, for the file that it runs.
func checkPin(path, want string) error {
	if want == "" {
		return nil
	}
	f, err := os.Open(path) //nolint:gosec // a plugin that the configuration names
	if err != nil {
		return fmt.Errorf("pinned plugin: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("pinned plugin: %s: %w", path, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, want) {
		return fmt.Errorf("%s: %w: it is %s, pinned is %s", path, pluginhost.ErrHash, got, strings.ToLower(want))
	}
	return nil
}

// Prepare implements Plugins.
func (h *Host) Prepare(vm string, d *config.Device, runDir string) (Prepared, error) {
	program, err := find(d.Plugin)
	if err != nil {
		return nil, err
	}
	files, err := pluginhost.OpenFiles(d.Description.GetSchema(), d.FilesJSON)
	if err != nil {
		return nil, err
	}
	settings, err := files.Complete(d.ConfigJSON)
	if err != nil {
		return nil, errors.Join(err, files.Close())
	}
	p := &prepared{files: files, terminal: d.Terminal, spec: pluginhost.Spec{
		Program: program, SHA256: d.Plugin.SHA256, DeviceID: virtio.DeviceID(d.Description.GetDeviceId()),
		Settings: pluginrpc.Settings{
			DeviceName: d.Name, ConfigJSON: settings, Files: files.Grants, Withheld: d.Withheld, BusyPoll: d.BusyPoll,
			Identity: Identity(vm, d.Name),
		},
		Log: h.Log, TempDir: runDir,
	}}
	if slices.Contains(d.Description.GetCapabilities(), pluginv1.Capability_CAPABILITY_STATE) {
		if p.state, err = device.NewStateRegion(); err != nil {
			return nil, errors.Join(err, files.Close())
		}
		p.spec.Settings.State = p.state.FD()
	}
	return p, nil
}

// prepared is a device's opened files and what to start with them.
type prepared struct {
	files    *pluginhost.Files
	state    *device.StateRegion
	spec     pluginhost.Spec
	terminal string
}

// State implements Prepared.
func (p *prepared) State() *device.StateRegion { return p.state }

// Start implements Prepared.
func (p *prepared) Start(ctx context.Context, terminal *os.File) (device.Instance, error) {
	spec := p.spec
	if p.terminal == "" {
		return start(ctx, spec)
	}
	if terminal == nil {
		return nil, &pluginrpc.SettingError{Attribute: p.terminal, Message: "there is no terminal"}
	}
	raw, err := terminal.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("start: %s: terminal: %w", spec.Settings.DeviceName, err)
	}
	var inst device.Instance
	var startErr error
	// Within Control the descriptor stays open, and File.Fd would make it blocking.
	err = raw.Control(func(fd uintptr) {
		grant := pluginrpc.FileGrant{Attribute: p.terminal, FD: int(fd)}
		spec.Settings.Files = append(slices.Clone(spec.Settings.Files), grant)
		inst, startErr = start(ctx, spec)
	})
	return inst, errors.Join(startErr, err)
}

// start makes sure that a failed start is no instance, not even a nil one.
func start(ctx context.Context, spec pluginhost.Spec) (device.Instance, error) {
	inst, err := pluginhost.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return inst, nil
}

// Close implements Prepared.
func (p *prepared) Close() error {
	err := p.files.Close()
	if p.state != nil {
		err = errors.Join(err, p.state.Close())
	}
	return err
}
