package config

import (
	"time"

	"context"
	"encoding/json"
	"slices"

	"github.com/hashicorp/hcl/v2"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// VM is one virtual machine, checked and complete. It is not changed after it was made.
type VM struct {
	// Name is the machine's name in messages and paths.
	Name string
	// Named: the name was given.
	Named bool
	// MemoryBytes is the size of guest memory, a multiple of 4096.
	MemoryBytes uint64
	// VCPUs is the number of virtual CPUs.
	VCPUs int
	// Machine is one of Machines.
	Machine string
	// Bus is one of Buses, or empty: the machine's default. Only the kvm machine has a choice: with a bus, Machine is "kvm".
	Bus string
	// Kernel and Initrd are paths; empty: the machine's default, none.
	Kernel, Initrd string
	// Cmdline is added to the kernel's command line.
	Cmdline string
	// PluginDirs are searched for plugins before the default places, in order.
	PluginDirs []string
	// Devices are in the order written, which is the order in which the guest finds them.
	Devices []Device

	// ranges maps the vm block's attributes to their places.
	ranges  map[string]hcl.Range
	sources Sources
}

// Device is one device of a VM.
type Device struct {
	// Name is unique within the VM: "vda".
	Name string
	// Plugin tells which program serves it; Plugin.Name is the device's type.
	Plugin PluginRef
	// Description is what the plugin told of itself.
	Description *pluginv1.DescribeResponse
	// ConfigJSON is one JSON object that fits the plugin's schema, with defaults filled in and paths resolved.
	ConfigJSON json.RawMessage
	// Terminal is the path of the file attribute that is to be a socket to the launcher's terminal; empty: none. In
	// ConfigJSON it is TerminalPath. At most one device has it.
	Terminal string
	// FilesJSON is ConfigJSON without Terminal: what is to be opened.
	FilesJSON json.RawMessage
	// Withheld are feature bits that are not to be offered to the driver.
	Withheld virtio.Features
	// BusyPoll is as in pluginrpc.Settings: 0 is the plugin's default, negative none.
	BusyPoll time.Duration

	// ranges maps attribute paths to their places; "" is the device itself.
	ranges map[string]hcl.Range
}

// PluginRef names a plugin.
type PluginRef struct {
	// Name is the plugin's name: "block".
	Name string
	// Path is the program, if the configuration names one; else Dirs and the default places are searched.
	Path string
	// SHA256 is what the program must hash to, as 64 hexadecimal digits; empty: anything.
	SHA256 string
	// Dirs are searched before the default places.
	Dirs []string
}

// Plugins is how a configuration learns which plugins there are. It is called from one goroutine.
type Plugins interface {
	// Describe returns what a plugin tells of itself.
	Describe(ctx context.Context, ref PluginRef) (*pluginv1.DescribeResponse, error)
	// Names lists the plugins that can be found without a path.
	Names(dirs []string) []string
}

// UsesTerminal tells whether a device is to be connected to the launcher's terminal.
func (vm *VM) UsesTerminal() bool {
	return slices.ContainsFunc(vm.Devices, func(d Device) bool { return d.Terminal != "" })
}

// Machines lists the values of `machine`.
func Machines() []string { return []string{MachineAuto, "kvm", "uml"} }

// MachineAuto stands for the first machine that the host can run.
const MachineAuto = "auto"

// Buses lists the values of `bus`.
func Buses() []string { return []string{"mmio", "lguest"} }
