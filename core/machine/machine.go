// Package machine defines what runs a guest. Implementations are the packages below it (kvm, uml, …); devices and
// plugins cannot tell which one they serve.
package machine

import (
	"context"
	"errors"
	"io"

	"github.com/virtplug/virtplug/core/device"
)

// Guest says what to boot.
type Guest struct {
	// Name is the VM's name, for messages and process titles.
	Name string
	// MemoryBytes is the size of guest memory.
	MemoryBytes uint64
	// VCPUs is the number of virtual CPUs; 0: the machine's default.
	VCPUs int
	// Kernel and Initrd are paths; an empty Kernel is the machine's default, an empty Initrd none.
	Kernel, Initrd string
	// Cmdline is appended to what the machine itself needs on the kernel command line.
	Cmdline string
	// RunDir is a private directory (0700) for sockets and the like; the launcher removes it.
	RunDir string
	// Console receives the kernel's own early output (not the virtio console); nil: dropped.
	Console io.Writer
	// Bus is how the driver finds its devices, one of the Bus constants; "" is the machine's default.
	Bus string
	// Started is called once, when the guest runs; nil: nobody wants to know. It must not block.
	Started func(Running)
}

// Buses.
const (
	// BusMMIO is virtio-mmio (VIRTIO 1.2, 4.2).
	BusMMIO = "mmio"
	// BusLguest is the device page of lguest, legacy virtio.
	BusLguest = "lguest"
)

// ErrUnsupported tells that a machine cannot do what was asked.
var ErrUnsupported = errors.New("this machine cannot do that")

// Running is a guest that runs. Its methods may be called from any goroutine, also after the guest has ended.
type Running interface {
	// Pause stops the virtual CPUs: when it returns none executes. Devices go on with what they were told. Idempotent.
	// ErrUnsupported if the machine cannot.
	Pause() error
	// Resume goes on after Pause. Idempotent.
	Resume() error
	// Counters are what the machine counts, by name, since the guest started: how often the launcher was woken, as a rule.
	Counters() map[string]uint64
}

// Reason is why a guest ended.
type Reason int

// Reasons.
const (
	// PowerOff: the guest switched itself off.
	PowerOff Reason = iota
	// Reboot: the guest asked for a restart.
	Reboot
	// Panic: the guest's kernel panicked.
	Panic
	// Stopped: the context ended.
	Stopped
	// Crashed: the machine itself failed.
	Crashed
)

// Exit is how a guest ended.
type Exit struct {
	Reason Reason
	// Detail is for people: the panic's line, the signal, the last lines of output.
	Detail string
}

// Machine runs one guest with its devices.
type Machine interface {
	// Check tells whether this host can run the guest, before anything starts; the error says what to install or change.
	Check(g Guest) error
	// Run boots the guest and returns when it has ended and nothing of it is left. If ctx ends, the guest is stopped:
	// Exit.Reason is Stopped. The error is nil whenever the guest ran.
	Run(ctx context.Context, g Guest, devices []*device.Device) (Exit, error)
}
