package device

import (
	"context"
	"errors"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// ErrLost is wrapped by the error of every Instance method that failed because the process died, lost its control
// connection or did not answer in time. Such an instance is of no more use: the broker closes it and starts another.
// Any other error is the plugin's refusal.
var ErrLost = errors.New("plugin instance lost")

// Instance is a running, configured plugin instance as the broker uses it; *pluginhost.Instance is the real one. Methods
// are those of the contract (sdk/proto/v1). Descriptors passed in stay the caller's. Every method returns within a time
// bounded by the implementation, whatever the process does.
type Instance interface {
	// Offer is what Configure answered: features, queue sizes, config space.
	Offer() pluginrpc.Offer
	SetFeatures(ctx context.Context, f virtio.Features) (config []byte, err error)
	WriteConfig(ctx context.Context, offset int, data []byte) (config []byte, err error)
	AttachMemory(ctx context.Context, regions []guestmem.MapRegion) error
	StartQueue(ctx context.Context, q pluginrpc.QueueStart) (resubmitted int, err error)
	StopQueue(ctx context.Context, index int) (pluginrpc.QueueState, error)
	Reset(ctx context.Context) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Health fails with ErrLost if nobody answers, and with another error if the device says that it is unwell.
	Health(ctx context.Context) error
	Statistics(ctx context.Context) (pluginrpc.Statistics, error)
	Command(ctx context.Context, name string, args []byte) (result []byte, err error)
	// Events delivers what the device tells, until the instance ends; then it is closed. Never blocks the plugin: the
	// oldest notices are dropped (counted) if nobody reads.
	Events() <-chan pluginrpc.Event
	// Done is closed when the process has ended or lost its control connection; Err then tells why (pluginhost.ErrExited).
	Done() <-chan struct{}
	Err() error
	// Close ends the process, gracefully if it can, and returns when it is gone. Idempotent.
	Close() error
}
