package pluginhost_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/virtplug/virtplug/core/pluginhost"
	"github.com/virtplug/virtplug/core/tap/taptest"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// buildDir holds the compiled testdata/plugin, under the name of each behaviour.
var buildDir string

func TestMain(m *testing.M) {
	if path := os.Getenv(launcherEnv); path != "" {
		os.Exit(launcherMain(path))
	}
	dir, err := os.MkdirTemp("", "pluginhost-test-")
	if err == nil && !taptest.Inside() { // those tests start no plugin
		buildDir = dir
		var out []byte
		//nolint:gosec // our own program
		out, err = exec.CommandContext(context.Background(), "go", "build", "-o", filepath.Join(dir, "plugin"), "./testdata/plugin").CombinedOutput()
		_, _ = os.Stderr.Write(out)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the test plugin:", err)
	} else {
		code = m.Run()
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// plugin is the test plugin with a behaviour, in a directory of its own.
func plugin(t *testing.T, behaviour string) pluginhost.Program {
	t.Helper()
	path := filepath.Join(t.TempDir(), pluginhost.FilePrefix+behaviour)
	if err := os.Link(filepath.Join(buildDir, "plugin"), path); err != nil {
		t.Fatal(err)
	}
	return pluginhost.Program{Name: behaviour, Path: path}
}

func spec(t *testing.T, behaviour string) pluginhost.Spec {
	t.Helper()
	return pluginhost.Spec{
		Program: plugin(t, behaviour), DeviceID: virtio.IDEntropy, TempDir: "/tmp",
		Settings:     pluginrpc.Settings{DeviceName: "dev0", ConfigJSON: []byte("{}")},
		StartTimeout: 30 * time.Second, // machines are slow; the tests of time-outs set their own
	}
}

func start(t *testing.T, s pluginhost.Spec) *pluginhost.Instance {
	t.Helper()
	i, err := pluginhost.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// logBuffer is a log that a test reads.
type logBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	return len(p), nil
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

func (l *logBuffer) logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: l})
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// shortDir is a temporary directory whose path is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ph-") //nolint:usetesting // t.TempDir is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// copyOf copies a program beside itself, with a mode.
func copyOf(path string, mode os.FileMode) string {
	b, err := os.ReadFile(path) //nolint:gosec // ours
	if err == nil {
		path += "-copy"
		err = os.WriteFile(path, b, 0o600) //nolint:gosec // ours
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		panic(err)
	}
	return path
}

func hashOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path) //nolint:gosec // ours
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}
