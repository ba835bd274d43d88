package guest_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/machine/uml"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/tests/session"
)

// inProcess boots a machine with the launcher's parts in this process, to reach a device while it runs. It returns the
// devices and a function that waits for the guest's end.
func inProcess(t *testing.T, v *session.VM, flags config.Flags) ([]*device.Device, func()) {
	t.Helper()
	log := hclog.New(&hclog.LoggerOptions{Output: v.Stderr, Level: hclog.Info})
	plugins := &launcher.Host{Log: log}
	flags.Memory, flags.Initrd, flags.PluginDirs = memory, built.initrd, []string{built.dir}
	cfg, err := config.Load(t.Context(), config.Input{Flags: flags}, plugins, config.Options{CheckFiles: true})
	if err != nil {
		t.Fatal(err)
	}
	devices := make([]*device.Device, len(cfg.Devices))
	for i := range cfg.Devices {
		d := &cfg.Devices[i]
		p, err := plugins.Prepare("test", d, v.Run)
		if err != nil {
			t.Fatal(err)
		}
		devices[i] = device.New(device.Options{
			Name: d.Name, DeviceID: virtio.DeviceID(d.Description.GetDeviceId()), Log: log, State: p.State(),
			Start: func(ctx context.Context) (device.Instance, error) { return p.Start(ctx, nil) },
		})
		t.Cleanup(func() {
			if err := devices[i].Close(); err != nil {
				t.Error(err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := devices[i].Open(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		g := machine.Guest{Name: "test", MemoryBytes: cfg.MemoryBytes, VCPUs: 1, Initrd: cfg.Initrd, Cmdline: "console=hvc0", RunDir: v.Run, Console: v.Stderr}
		if exit, err := uml.New(uml.Options{Log: log}).Run(t.Context(), g, devices); err != nil || exit.Reason != machine.PowerOff {
			t.Errorf("guest: %+v, %v", exit, err)
		}
	}()
	return devices, func() {
		t.Helper()
		select {
		case <-done:
		case <-time.After(session.EndLimit):
			t.Fatalf("the guest has not ended within %v\n%s", session.EndLimit, v.Stderr)
		}
	}
}

// The image grows while the guest runs: the guest is told, sees the new size and can use it.
func TestGuestSeesItsDiskGrow(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	image := v.Image("disk.img", 8*mebi)
	devices, wait := inProcess(t, v, config.Flags{Devices: []config.DeviceFlag{
		config.BlockFlag(image), config.ConsoleFlag("socket:" + v.Path("c")),
	}})
	c := dialConsole(t, v.Path("c"))
	c.hear(t, session.Prompt)
	c.say(t, "cat /sys/block/vda/size; echo FIR''ST\r")
	c.hear(t, "16384\r\nFIRST\r\n")

	if _, err := devices[0].Command(t.Context(), "resize", []byte(`{"size": 25165824}`)); err != nil {
		t.Fatal(err)
	}
	c.say(t, `for i in $(seq 500); do [ $(cat /sys/block/vda/size) = 49152 ] && break; usleep 20000; done; cat /sys/block/vda/size; echo SEC''OND`+"\r")
	c.hear(t, "49152\r\nSECOND\r\n")
	c.say(t, "echo at the end | dd of=/dev/vda bs=1M seek=23 conv=notrunc,fsync 2>/dev/null; echo STAT''US$?.\r")
	c.hear(t, "STATUS0.")
	c.say(t, "poweroff\r")
	wait()
	b, err := os.ReadFile(image) //nolint:gosec // G304: a file of this test
	if err != nil || len(b) != 24*mebi || !strings.HasPrefix(string(b[23*mebi:]), "at the end\n") {
		t.Errorf("the image has %d bytes (%v), or not what the guest wrote", len(b), err)
	}
}
