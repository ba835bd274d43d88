package process

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/virtio"
)

const hostFile = `vm "demo" {
}
device "console" "con0" {
  backend = "null"
}
device "block" "vda" {
  path = "%"
}
device "net" "net0" {
  backend = "null"
}
device "net" "net1" {
  backend = "null"
}
`

// prepared are the devices of hostFile, as the launcher opens them.
func prepared(t *testing.T, vm string) (devices map[string]*device.Device, states map[string]*device.StateRegion) {
	t.Helper()
	host := &launcher.Host{}
	text := bytes.ReplaceAll([]byte(hostFile), []byte("%"), []byte(image(t, 1<<20)))
	cfg, err := config.Parse(t.Context(), text, config.Input{Path: "vm.hcl", Flags: config.Flags{PluginDirs: []string{bin}}}, host, config.Options{})
	check(t, err)
	devices, states = map[string]*device.Device{}, map[string]*device.StateRegion{}
	for i := range cfg.Devices {
		c := &cfg.Devices[i]
		p, err := host.Prepare(vm, c, t.TempDir())
		check(t, err)
		d := device.New(device.Options{
			Name: c.Name, DeviceID: virtio.DeviceID(c.Description.GetDeviceId()), State: p.State(),
			Start: func(ctx context.Context) (device.Instance, error) { return p.Start(ctx, nil) },
		})
		t.Cleanup(func() { check(t, errors.Join(d.Close(), p.Close())) })
		check(t, d.Open(t.Context()))
		devices[c.Name], states[c.Name] = d, p.State()
	}
	return devices, states
}

// What core/launcher passes reaches the plugins: a state region to those that keep a state, and who the device is.
func TestProcessHostGivesStateAndIdentity(t *testing.T) {
	t.Parallel()
	devices, states := prepared(t, "demo")
	if states["vda"] != nil {
		t.Error("the block device, which keeps no state, has a region")
	}
	for _, name := range []string{"con0", "net0"} {
		if states[name] == nil {
			t.Fatalf("%s: no state region", name)
		}
	}
	m, err := loopback.Open(t.Context(), devices["con0"], loopback.Options{QueueSize: 64})
	check(t, err)
	driver := newConsoleDriver(t, m)
	driver.say(0, virtio.ConsoleDeviceReady, 1)
	var b [8]byte
	_, err = unix.Pread(states["con0"].FD(), b[:], 0)
	check(t, err)
	if binary.NativeEndian.Uint64(b[:]) == 0 {
		t.Error("the console has saved nothing in its region")
	}
	check(t, m.Close(t.Context()))

	mac := func(d *device.Device) string { return string(d.ConfigSpace()[:6]) }
	again, _ := prepared(t, "demo")
	other, _ := prepared(t, "demo2")
	first := mac(devices["net0"])
	if mac(again["net0"]) != first {
		t.Errorf("MAC %x, in the next run %x", first, mac(again["net0"]))
	}
	for what, mac := range map[string]string{"net1": mac(devices["net1"]), "net0 of another VM": mac(other["net0"])} {
		if mac == first {
			t.Errorf("%s has the MAC of net0: %x", what, mac)
		}
	}
}
