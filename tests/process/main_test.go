package process

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/core/pluginhost"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// bin is where TestMain builds the plugins.
var bin string

// binEnv tells a test that runs itself again, in a namespace, where they are.
const binEnv = "VIRTPLUG_TEST_PLUGINS"

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if bin = os.Getenv(binEnv); bin != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "virtplug-process-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	bin = dir
	for _, name := range []string{"block", "console", "net"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, pluginhost.FilePrefix+name), "../../plugins/"+name) //nolint:gosec,noctx // our own programs
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build plugin %s: %v\n%s", name, err, out)
			return 1
		}
	}
	if err := os.Setenv(binEnv, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// rig is a device behind the broker, with its plugin process.
type rig struct {
	t      *testing.T
	dev    *device.Device
	starts atomic.Int32
	inst   atomic.Pointer[pluginhost.Instance]
}

// open starts plugin with settings and opens its device.
func open(t *testing.T, plugin string, settings map[string]any) *rig {
	t.Helper()
	prog, err := pluginhost.FromPath(filepath.Join(bin, pluginhost.FilePrefix+plugin))
	check(t, err)
	desc, err := pluginhost.Describe(t.Context(), prog)
	check(t, err)
	config, err := json.Marshal(settings)
	check(t, err)
	files, err := pluginhost.OpenFiles(desc.GetSchema(), config)
	check(t, err)
	config, err = files.Complete(config)
	check(t, err)
	state, err := device.NewStateRegion()
	check(t, err)
	r := &rig{t: t}
	log := hclog.New(&hclog.LoggerOptions{Name: plugin, Level: hclog.Warn, Output: testWriter{t}})
	r.dev = device.New(device.Options{
		Name: plugin + "0", DeviceID: virtio.DeviceID(desc.GetDeviceId()), Log: log, State: state,
		Legacy: slices.Contains(desc.GetCapabilities(), pluginv1.Capability_CAPABILITY_LEGACY),
		Start: func(ctx context.Context) (device.Instance, error) {
			i, err := pluginhost.Start(ctx, pluginhost.Spec{
				Program: prog, Log: log, TempDir: t.TempDir(),
				Settings: pluginrpc.Settings{DeviceName: plugin + "0", ConfigJSON: config, Files: files.Grants, State: state.FD()},
			})
			if err != nil {
				return nil, err
			}
			r.starts.Add(1)
			r.inst.Store(i)
			return i, nil
		},
	})
	t.Cleanup(func() {
		check(t, r.dev.Close())
		check(t, files.Close())
		check(t, state.Close())
	})
	check(t, r.dev.Open(t.Context()))
	return r
}

// drive starts the device's queues on a loopback machine.
func (r *rig) drive(o loopback.Options) *loopback.Machine {
	r.t.Helper()
	m, err := loopback.Open(r.t.Context(), r.dev, o)
	check(r.t, err)
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		check(r.t, m.Close(ctx))
	})
	return m
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testWriter sends a plugin's log to the test's.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
