package kvm

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// instance is a plugin instance without a plugin: each kick is answered by a call, with nothing done. Real plugins run under
// this machine in tests/kvm and tests/nested.
type instance struct {
	features virtio.Features
	block    chan struct{} // a reset waits for its end; nil: it does not
	blocked  chan struct{} // closed when the first reset waits
	once     sync.Once
	events   chan pluginrpc.Event
	done     chan struct{}
	end      sync.Once

	mu    sync.Mutex
	stops map[int]func()
	total uint64
}

// newDevice makes an open entropy device with an instance of one queue of 8.
func newDevice(t *testing.T, features virtio.Features) (*device.Device, *instance) {
	t.Helper()
	in := &instance{
		features: features, events: make(chan pluginrpc.Event), done: make(chan struct{}),
		stops: map[int]func(){},
	}
	d := device.New(device.Options{
		Name: "fake", DeviceID: virtio.IDEntropy, Legacy: true,
		Start:   func(context.Context) (device.Instance, error) { return in, nil },
		Restart: device.Restart{HealthInterval: -1},
	})
	if err := d.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, in
}

func (in *instance) Offer() pluginrpc.Offer {
	return pluginrpc.Offer{Features: in.features, QueueSizes: []uint16{8}, Config: make([]byte, 8)}
}

func (in *instance) SetFeatures(context.Context, virtio.Features) ([]byte, error) {
	return make([]byte, 8), nil
}

func (in *instance) WriteConfig(_ context.Context, _ int, b []byte) ([]byte, error) { return b, nil }

func (in *instance) AttachMemory(context.Context, []guestmem.MapRegion) error { return nil }

// StartQueue begins to answer kicks.
func (in *instance) StartQueue(_ context.Context, q pluginrpc.QueueStart) (int, error) {
	kick, err := unix.FcntlInt(uintptr(q.Kick), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return 0, err
	}
	call, err := unix.FcntlInt(uintptr(q.Call), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return 0, err
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stops[q.Index] = func() {
		_, _ = unix.Write(stop, one)
		<-ended
	}
	go func() {
		defer close(ended)
		defer func() { _, _, _ = unix.Close(kick), unix.Close(call), unix.Close(stop) }()

		for {
			p := []unix.PollFd{{Fd: int32(kick), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}} //nolint:gosec // G115: descriptors
			if _, err := unix.Poll(p, -1); err != nil && err != unix.EINTR {
				return
			}
			if p[1].Revents != 0 {
				return
			}
			if p[0].Revents != 0 {
				var b [8]byte
				_, _ = unix.Read(kick, b[:])
				in.mu.Lock()
				in.total += binary.NativeEndian.Uint64(b[:])
				total := in.total
				in.mu.Unlock()
				if total > 1 {
					_, _ = unix.Write(call, one)
				}
			}
		}
	}()
	return 0, nil
}

func (in *instance) StopQueue(_ context.Context, i int) (pluginrpc.QueueState, error) {
	in.mu.Lock()
	stop := in.stops[i]
	delete(in.stops, i)
	in.mu.Unlock()
	if stop != nil {
		stop()
	}
	return pluginrpc.QueueState{}, nil
}

func (in *instance) Reset(ctx context.Context) error {
	if in.block != nil {
		in.once.Do(func() { close(in.blocked) })
		<-in.block
	}
	_, err := in.StopQueue(ctx, 0)
	return err
}

func (in *instance) Pause(context.Context) error  { return nil }
func (in *instance) Resume(context.Context) error { return nil }
func (in *instance) Health(context.Context) error { return nil }
func (in *instance) Statistics(context.Context) (pluginrpc.Statistics, error) {
	return pluginrpc.Statistics{}, nil
}
func (in *instance) Command(context.Context, string, []byte) ([]byte, error) { return nil, nil }
func (in *instance) Events() <-chan pluginrpc.Event                          { return in.events }
func (in *instance) Done() <-chan struct{}                                   { return in.done }
func (in *instance) Err() error                                              { return nil }
func (in *instance) Close() error {
	in.end.Do(func() { close(in.events); close(in.done) })
	return nil
}
