// Package pluginrpc is the go-plugin glue of the contract in sdk/proto/v1: Client is the launcher's half, Server the plugin's.
package pluginrpc

import (
	"time"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// APIVersion is the version of the contract in sdk/proto/v1, and go-plugin's protocol version.
const APIVersion = 1

// maxBusyPoll bounds Settings.BusyPoll: arbitrary, far above where looking pays.
const maxBusyPoll = time.Second

// Settings are what Configure sends.
type Settings struct {
	// DeviceName is the device's name in the configuration.
	DeviceName string
	// ConfigJSON is one JSON object that fits the plugin's schema, defaults filled in.
	ConfigJSON []byte
	// Files are opened files for the schema's file and listener attributes. The descriptors stay the caller's.
	Files []FileGrant
	// Withheld are feature bits that the launcher will not offer.
	Withheld virtio.Features
	// BusyPoll is how long a queue looks for more work before it sleeps, in whole microseconds; 0: the plugin's own default;
	// negative: not at all.
	BusyPoll time.Duration
	// Identity is 16 bytes that name this device, the same in every run of the VM on this host; all zero: none is known.
	Identity [16]byte
	// State is the descriptor of the state region (docs/plugin-protocol.md, "Device state"), for plugins with CAPABILITY_STATE;
	// 0: none. It stays the caller's.
	State int
}

// FileGrant is one opened file of Settings.
type FileGrant struct {
	// Attribute is its path in ConfigJSON: "path", "port.0.socket".
	Attribute string
	FD        int
}

// Offer is what Configure answers.
type Offer struct {
	Features   virtio.Features
	QueueSizes []uint16
	Config     []byte
}

// QueueStart is what StartQueue sends.
type QueueStart struct {
	Index                            int
	Size                             uint16
	DescArea, DriverArea, DeviceArea guestmem.GPA
	// Kick, Call and Inflight are descriptors; they stay the caller's.
	Kick, Call, Inflight int
	NextAvail            uint16
	Recover              bool
}

// QueueState is what StopQueue answers.
type QueueState struct {
	NextAvail, UsedIndex uint16
	// Broken is empty unless the driver broke the ring's rules.
	Broken string
}

// Event is one of ConfigChanged, DeviceError, Notice.
type Event interface{ event() }

// ConfigChanged carries the new configuration space.
type ConfigChanged struct{ Config []byte }

// DeviceError is an error that no answered request shows. Queue is -1 for the whole device.
type DeviceError struct {
	Message    string
	Queue      int
	NeedsReset bool
}

// Notice is something a user of the VM wants to know.
type Notice struct {
	Message string
	Facts   map[string]string
}

func (ConfigChanged) event() {}
func (DeviceError) event()   {}
func (Notice) event()        {}

// Statistics is a reading of a device's counters.
type Statistics struct {
	Queues   []QueueStatistics
	Counters map[string]uint64
}

// QueueStatistics are one queue's counters, as in sdk/proto/v1.
type QueueStatistics struct {
	Index                         int
	Running                       bool
	Chains, Completed             uint64
	ReadableBytes, WrittenBytes   uint64
	Kicks, Calls, CallsSuppressed uint64
	Errors                        uint64
	Broken                        string
}
