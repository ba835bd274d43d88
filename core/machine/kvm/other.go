//go:build !linux || !amd64

package kvm

import (
	"context"
	"fmt"
	"runtime"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine"
)

// Check implements machine.Machine.
func (m *Machine) Check(machine.Guest) error { return m.Probe() }

// Probe tells whether this host can run an ordinary Linux kernel: it cannot.
func (m *Machine) Probe() error {
	return fmt.Errorf("kvm: %w: it runs on x86-64 only, and this is %s/%s: use machine uml, or export the devices to another machine",
		machine.ErrUnsupported, runtime.GOOS, runtime.GOARCH)
}

// Run implements machine.Machine.
func (m *Machine) Run(context.Context, machine.Guest, []*device.Device) (machine.Exit, error) {
	return machine.Exit{}, m.Probe()
}
