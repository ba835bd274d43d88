package vhostuser

import (
	"context"
	"os"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Device is what a session drives: *device.Device, whose methods these are, or a fake in tests. A session makes one call at
// a time. None waits for a plugin that is being restarted, but StopQueue for a bounded time.
type Device interface {
	// Name is the device's name, for messages.
	Name() string
	// Features are the bits that the device offers; bit 30 is the transport's and is not among them.
	Features() virtio.Features
	QueueCount() int
	SetFeatures(ctx context.Context, f virtio.Features) error
	ConfigSpace() []byte
	WriteConfig(ctx context.Context, offset int, data []byte) error
	// SetMemory duplicates the files. It stops and restarts queues that run.
	SetMemory(ctx context.Context, regions []device.MemoryRegion) error
	SetQueue(i int, size uint16, desc, driver, device guestmem.GPA) error
	SetQueueBase(i int, next uint16) error
	// SetKick and SetCall own f; nil: there is none.
	SetKick(ctx context.Context, i int, f *os.File) error
	SetCall(ctx context.Context, i int, f *os.File) error
	StartQueue(ctx context.Context, i int) error
	StopQueue(ctx context.Context, i int) (next uint16, err error)
	Reset(ctx context.Context) error
	// Release is Reset, and forgets memory, descriptors and callbacks.
	Release(ctx context.Context) error
	OnConfigChange(f func(config []byte))
	OnNeedsReset(f func())
}

var _ Device = (*device.Device)(nil)
