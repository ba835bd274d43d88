package sdk

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// Plugin describes a device type and makes its devices. C is a struct whose fields are the settings (see SchemaOf for the
// tags), or NoConfig.
type Plugin[C any] struct {
	// Name is the type's name in configurations: lower-case letters, digits and '-', at most 32.
	Name string
	// Version is the plugin's semantic version.
	Version string
	// Device is the virtio device ID.
	Device virtio.DeviceID
	// Description is one line for people.
	Description string
	// Legacy: the device also serves drivers that do not accept VIRTIO_F_VERSION_1 (2.2.3), as those of the lguest bus and very
	// old ones. Without it, the features of such a driver are refused. Virtqueues are the same for both; what the device must
	// mind are the "Legacy interface" sections of its type: layouts that differ (a network header of 10 bytes, say), which its
	// FeatureSetter knows by VIRTIO_F_VERSION_1 missing; fields are little-endian all the same. Device-specific features above
	// bit 31 are out of such a driver's sight.
	Legacy bool
	// State: devices keep what the driver told them by Env.SaveState, and implement StateRestorer, so that a new instance continues
	// where one that died was.
	State bool
	// Commands lists what the device's Commander takes.
	Commands []CommandSpec
	// New makes the device, once per process, when its settings and files are there. Errors made by SettingError are
	// shown at the setting's line in the configuration. Files in cfg are the device's own from then on.
	New func(env *Env, cfg C) (Device, error)
}

// NoConfig is the settings of a plugin that has none.
type NoConfig struct{}

// CommandSpec describes one run-time command.
type CommandSpec struct {
	Name, Description string
	// Args is a pointer to (or value of) a struct with the same tags as settings; nil: no arguments.
	Args any
}

// Env is what a device has from its surroundings. Its methods may be called from any goroutine, during New too.
type Env struct {
	// Name is the device's name in the configuration: "vda".
	Name string
	// Log goes to the launcher. Never log for each request.
	Log hclog.Logger
	// Identity names this device: the same in every run on this host of a VM that has a name, different for every other device. What must be
	// unique, such as a network address, can be derived from it. All zero: the launcher knows none.
	Identity [16]byte

	host host
}

// host is the runtime behind Env.
type host interface {
	configChanged()
	fail(err error, queue int, needsReset bool)
	notice(message string, facts map[string]string)
	saveState(b []byte) error
	keepsState() bool
}

// ConfigChanged tells the driver that the configuration space changed by itself (VIRTIO 1.2, 2.5): the SDK reads
// ConfigReader again and passes it on.
func (e *Env) ConfigChanged() {
	if e.host != nil {
		e.host.configChanged()
	}
}

// Fail reports an error that no completed chain shows. needsReset: the device cannot go on until the driver resets it.
func (e *Env) Fail(err error, needsReset bool) {
	if e.host != nil {
		e.host.fail(err, -1, needsReset)
	}
}

// Notice tells the user of the VM something, with facts for programs: Notice("port 0 is /dev/pts/4", map{"pty": …}).
func (e *Env) Notice(message string, facts map[string]string) {
	if e.host != nil {
		e.host.notice(message, facts)
	}
}

// Spec is what a device offers. Constant for the life of the device.
type Spec struct {
	// Features are the device type's own bits; the SDK adds the ring's.
	Features virtio.Features
	// QueueSizes is the size of each virtqueue that the driver is offered, in entries: powers of two, at most 32768. Some
	// front-ends cannot be told and take another (User-Mode Linux: 256), larger or smaller.
	QueueSizes []uint16
}

// Device is a virtio device. Besides Spec it implements ChainHandler, BatchHandler or QueueRunner (exactly one is used, the
// last named first).
type Device interface {
	Spec() Spec
}

// ErrLater is what HandleChain returns for a chain that it will finish itself, from any goroutine, with Queue.Finish.
var ErrLater = errors.New("chain will be finished later")

// ChainHandler serves one chain at a time. One goroutine per queue calls it; several queues call it at once.
type ChainHandler interface {
	// HandleChain reads c's device-readable part, fills its device-writable part and returns; the SDK completes c with the
	// count its Writer kept. On an error the chain is completed all the same, and the error counted and logged (not each).
	// Returning ErrLater keeps c until q.Finish(c). ctx ends when the queue is to stop.
	HandleChain(ctx context.Context, q *Queue, c *virtq.Chain) error
}

// BatchSize is the most chains that HandleBatch gets at once.
const BatchSize = 8

// BatchHandler serves chains in batches.
type BatchHandler interface {
	// HandleBatch gets 1 to BatchSize chains. It calls q.Complete for those that are done (the SDK publishes them after it
	// returns) and q.Finish, later and from any goroutine, for the others. batch is reused after the return; the chains
	// stay valid until completed. An error is one of the device, not of a request: it is reported, and the queue goes on.
	HandleBatch(ctx context.Context, q *Queue, batch []*virtq.Chain) error
}

// QueueRunner owns the loop of every queue; for a queue that needs nothing special it calls Serve.
type QueueRunner interface {
	// RunQueue serves q until ctx ends, then returns nil promptly; returning before that breaks the queue. Chains that it
	// popped and neither completed nor returned by q.Unpop are finished later by Finish: the SDK waits for them. As long as
	// q.Resubmitted is not 0 there are chains that a former instance left in flight: RunQueue pops and finishes those before it
	// returns, even if ctx has ended, for the next start begins behind them. Serve does so by itself.
	RunQueue(ctx context.Context, q *Queue) error
}

// ConfigReader has a device configuration space.
type ConfigReader interface {
	// ReadConfig returns the whole space as the driver reads it. Called from any goroutine.
	ReadConfig() []byte
}

// ConfigWriter takes a driver's write to the configuration space. offset and data lie inside the space.
type ConfigWriter interface {
	WriteConfig(offset int, data []byte) error
}

// FeatureSetter is told the negotiated features before any queue starts. An error refuses them.
type FeatureSetter interface {
	SetFeatures(f virtio.Features) error
}

// Resetter is told that the driver reset the device. All queues have stopped.
type Resetter interface {
	Reset() error
}

// Commander runs the commands that Plugin.Commands lists. args is one JSON object; the result is marshalled to one.
// Called from any goroutine, while queues run.
type Commander interface {
	Command(ctx context.Context, name string, args json.RawMessage) (any, error)
}

// StatsReader has counters besides the queues'. Names match [a-z][a-z0-9_]*; counters only grow.
type StatsReader interface {
	Statistics() map[string]uint64
}

// HealthChecker tells what is wrong, nil if nothing. It answers at once.
type HealthChecker interface {
	Health() error
}
