package devicetest

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Target is a plugin instance that is not configured yet, as pluginrpc.Client sees one. Errors wrap pluginrpc's sentinels.
// Descriptors that are passed in stay the caller's. Methods may be called concurrently where sdk/proto/v1 allows it.
type Target interface {
	Describe(ctx context.Context) (*pluginv1.DescribeResponse, error)
	Configure(ctx context.Context, s pluginrpc.Settings) (pluginrpc.Offer, error)
	SetFeatures(ctx context.Context, f virtio.Features) (config []byte, err error)
	ReadConfig(ctx context.Context) ([]byte, error)
	WriteConfig(ctx context.Context, offset int, data []byte) (config []byte, err error)
	AttachMemory(ctx context.Context, regions []guestmem.MapRegion) error
	StartQueue(ctx context.Context, q pluginrpc.QueueStart) (resubmitted int, err error)
	StopQueue(ctx context.Context, index int) (pluginrpc.QueueState, error)
	Reset(ctx context.Context) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Health(ctx context.Context) error
	Events(ctx context.Context) (<-chan pluginrpc.Event, error)
	Statistics(ctx context.Context) (pluginrpc.Statistics, error)
	Command(ctx context.Context, name string, args []byte) (result []byte, err error)
	// Close ends the instance and returns when it is gone. Idempotent.
	Close() error
	// PID is the process that the instance lives in, for counting what it leaves behind.
	PID() int
}

// Opener makes one more instance; log takes what it logs.
type Opener func(ctx context.Context, log hclog.Logger) (Target, error)

// closeLimit is how long an instance in this process may take to finish its chains at the end.
const closeLimit = time.Second

// InProcess makes instances of p in this process.
func InProcess[C any](p sdk.Plugin[C]) Opener {
	return func(_ context.Context, log hclog.Logger) (Target, error) {
		i, err := sdk.NewInstance(p, log)
		if err != nil {
			return nil, fmt.Errorf("plugin %s: %w", p.Name, err)
		}
		return &inProcess{Service: i.Service(), instance: i}, nil
	}
}

// inProcess is a Target without gRPC and descriptor socket between. It gives away copies of descriptors, as a socket does, and
// its errors are what would come out at the other end.
type inProcess struct {
	pluginrpc.Service
	instance *sdk.Instance
}

// across is an error as a launcher sees it.
func across(op string, err error) error { return pluginrpc.FromStatus(op, pluginrpc.ToStatus(err)) }

func (p *inProcess) Describe(context.Context) (*pluginv1.DescribeResponse, error) {
	d := p.Service.Describe()
	return d, pluginrpc.CheckDescription(d)
}

func (p *inProcess) Configure(ctx context.Context, s pluginrpc.Settings) (pluginrpc.Offer, error) {
	files := make([]pluginrpc.FileGrant, 0, len(s.Files))
	for _, f := range s.Files {
		fd, err := dup(f.FD)
		if err != nil {
			return pluginrpc.Offer{}, err
		}
		files = append(files, pluginrpc.FileGrant{Attribute: f.Attribute, FD: fd})
	}
	s.Files = files
	if s.State != 0 {
		var err error
		if s.State, err = dup(s.State); err != nil {
			return pluginrpc.Offer{}, err
		}
	}
	o, err := p.Service.Configure(ctx, s)
	return o, across("Configure", err)
}

func (p *inProcess) SetFeatures(ctx context.Context, f virtio.Features) ([]byte, error) {
	b, err := p.Service.SetFeatures(ctx, f)
	return b, across("SetFeatures", err)
}

func (p *inProcess) ReadConfig(ctx context.Context) ([]byte, error) {
	b, err := p.Service.ReadConfig(ctx)
	return b, across("ReadConfig", err)
}

func (p *inProcess) WriteConfig(ctx context.Context, offset int, data []byte) ([]byte, error) {
	b, err := p.Service.WriteConfig(ctx, offset, data)
	return b, across("WriteConfig", err)
}

func (p *inProcess) AttachMemory(ctx context.Context, regions []guestmem.MapRegion) error {
	return across("AttachMemory", p.Service.AttachMemory(ctx, regions))
}

func (p *inProcess) StartQueue(ctx context.Context, q pluginrpc.QueueStart) (int, error) {
	var err error
	for _, fd := range []*int{&q.Kick, &q.Call, &q.Inflight} {
		if *fd, err = dup(*fd); err != nil {
			return 0, err
		}
	}
	n, err := p.Service.StartQueue(ctx, q)
	return n, across("StartQueue", err)
}

func (p *inProcess) StopQueue(ctx context.Context, index int) (pluginrpc.QueueState, error) {
	s, err := p.Service.StopQueue(ctx, index)
	return s, across("StopQueue", err)
}

func (p *inProcess) Reset(ctx context.Context) error { return across("Reset", p.Service.Reset(ctx)) }

func (p *inProcess) Pause(ctx context.Context) error { return across("Pause", p.Service.Pause(ctx)) }

func (p *inProcess) Resume(ctx context.Context) error { return across("Resume", p.Service.Resume(ctx)) }

func (p *inProcess) Health(ctx context.Context) error { return across("Health", p.Service.Health(ctx)) }

func (p *inProcess) Statistics(ctx context.Context) (pluginrpc.Statistics, error) {
	s, err := p.Service.Statistics(ctx)
	return s, across("Statistics", err)
}

func (p *inProcess) Command(ctx context.Context, name string, args []byte) ([]byte, error) {
	b, err := p.Service.Command(ctx, name, args)
	return b, across("Command "+name, err)
}

func (p *inProcess) Events(ctx context.Context) (<-chan pluginrpc.Event, error) {
	events := make(chan pluginrpc.Event)
	go func() {
		defer close(events)
		_ = p.Service.Events(ctx, func(e pluginrpc.Event) error {
			select {
			case events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return events, nil
}

func (p *inProcess) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	return p.instance.Close(ctx)
}

func (p *inProcess) PID() int { return os.Getpid() }

func dup(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("descriptor %d: %w", fd, os.NewSyscallError("fcntl", err))
	}
	return n, nil
}
