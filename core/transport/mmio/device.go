package mmio

import (
	"context"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Device is what the registers drive: *device.Device, whose methods these are, or a fake in tests. Those without a context
// answer at once but for SetQueue and SetQueueBase, and are called with a lock held, so none may call back.
type Device interface {
	// Name is the device's name, for messages.
	Name() string
	ID() virtio.DeviceID
	Features() virtio.Features
	QueueCount() int
	QueueSizeMax(i int) uint16
	NeedsReset() bool
	ReadConfigAt(p []byte, offset int) int
	SetStatus(s virtio.Status)

	SetFeatures(ctx context.Context, f virtio.Features) error
	WriteConfig(ctx context.Context, offset int, data []byte) error
	SetQueue(i int, size uint16, desc, driver, device guestmem.GPA) error
	SetQueueBase(i int, next uint16) error
	StartQueue(ctx context.Context, i int) error
	StopQueue(ctx context.Context, i int) (next uint16, err error)
	Reset(ctx context.Context) error

	OnConfigChange(f func(config []byte))
	OnNeedsReset(f func())
}

var _ Device = (*device.Device)(nil)
