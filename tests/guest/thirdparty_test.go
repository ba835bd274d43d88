package guest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A third party's device: built in a module of its own outside this repository, found, described and started by a launcher
// that knows nothing of it.
func TestGuestHasAThirdPartysDevice(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	module, plugins := v.Path("module"), v.Path("plugins")
	if err := os.CopyFS(module, os.DirFS("../../examples/entropy")); err != nil {
		t.Fatal(err)
	}
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	edit := exec.CommandContext(t.Context(), "go", "mod", "edit", "-replace", "github.com/virtplug/virtplug="+repository) //nolint:gosec // G204: this repository
	edit.Dir = module
	if out, err := edit.CombinedOutput(); err != nil {
		t.Fatalf("go mod edit: %v\n%s", err, out)
	}
	if err := os.Mkdir(plugins, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := goBuild(t.Context(), module, filepath.Join(plugins, "virtplug-plugin-entropy"), "."); err != nil {
		t.Fatal(err)
	}

	var list struct {
		Plugins []struct {
			Name, Path string
			DeviceID   uint32 `json:"device_id"`
		}
	}
	out := host(t, filepath.Join(built.dir, "virtplug"), "plugin", "list", "--json", "--plugin-dir", plugins)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("virtplug plugin list --json: %v\n%s", err, out)
	}
	var names []string
	for _, p := range list.Plugins {
		names = append(names, fmt.Sprintf("%s %d", p.Name, p.DeviceID))
	}
	for _, want := range []string{"entropy 4", "block 2", "console 3"} {
		if !slices.Contains(names, want) {
			t.Errorf("virtplug plugin list has no %q: %q", want, names)
		}
	}
	if out := host(t, filepath.Join(built.dir, "virtplug"), "plugin", "describe", "entropy", "--plugin-dir", plugins); !strings.Contains(out, "virtio-rng") {
		t.Errorf("virtplug plugin describe entropy: %s", out)
	}

	v.Boot("--plugin-dir", plugins, "--console", "stdio", "--device", "entropy=rng0", "--block", v.Image("d", mebi))
	// Debian's User-Mode Linux has no virtio-rng driver: the device is on the bus, acknowledged, and waits for one.
	if got := v.Must("cat /sys/bus/virtio/devices/*/device | sort | tr '\\n' ' '"); got != "0x0002 0x0003 0x0004" {
		t.Errorf("virtio devices in the guest: %q", got)
	}
	if n := len(v.Plugin("entropy")); n != 1 {
		t.Errorf("%d processes of the plugin, want 1", n)
	}
	v.PowerOff()
}
