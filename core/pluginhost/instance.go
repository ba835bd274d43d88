package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-plugin"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Instance is a running, configured plugin. It implements device.Instance.
type Instance struct {
	spec   Spec
	dir    string // private, removed in the end
	socket *pluginrpc.Socket
	client *plugin.Client
	rpc    *pluginrpc.Client
	sink   *logSink

	runnerMu sync.Mutex
	runner   *hostRunner

	description  *pluginv1.DescribeResponse
	offer        pluginrpc.Offer
	cancelEvents context.CancelFunc
	events       chan pluginrpc.Event

	mu     sync.Mutex
	reason string // why we ended it
	err    error

	done    chan struct{} // the process has ended
	closing chan struct{} // Close was called
	gone    chan struct{} // nothing is left

	closeOnce sync.Once
	workers   sync.WaitGroup
}

var _ device.Instance = (*Instance)(nil)

// PID is the process's number.
func (i *Instance) PID() int { return i.process().pid }

// Description is what the plugin said about itself, verified. The caller must not change it.
func (i *Instance) Description() *pluginv1.DescribeResponse { return i.description }

// Offer implements device.Instance.
func (i *Instance) Offer() pluginrpc.Offer {
	o := i.offer
	o.QueueSizes, o.Config = slices.Clone(o.QueueSizes), slices.Clone(o.Config)
	return o
}

// Events implements device.Instance.
func (i *Instance) Events() <-chan pluginrpc.Event { return i.events }

// Done implements device.Instance.
func (i *Instance) Done() <-chan struct{} { return i.done }

// Err implements device.Instance: an *ExitError once Done is closed.
func (i *Instance) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.err
}

// call runs one RPC within limit. An error of the connection, or none in time, ends the process: the error is then an
// *ExitError, or matches device.ErrLost at least.
func (i *Instance) call(ctx context.Context, op string, limit time.Duration, f func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := f(limited)
	if err == nil {
		return nil
	}
	answered := (*pluginrpc.RPCError)(nil)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", op, err)
	case errors.Is(err, context.DeadlineExceeded):
		i.condemn(fmt.Sprintf("it did not answer %s within %v", op, limit))
	case errors.Is(err, pluginrpc.ErrUnavailable), errors.Is(err, context.Canceled):
		select { // an end of its own has a reason of its own
		case <-i.done:
		case <-time.After(2 * drainTime):
			i.condemn(fmt.Sprintf("its control connection broke during %s", op))
		}
	case errors.As(err, &answered), errors.Is(err, pluginrpc.ErrInvalid), errors.Is(err, pluginrpc.ErrAnswer), errors.Is(err, pluginrpc.ErrFailed):
		return err
	default:
		i.condemn(fmt.Sprintf("%s: %v", op, err))
	}
	t := time.NewTimer(goneLimit)
	defer t.Stop()
	select {
	case <-i.done:
		return fmt.Errorf("%s: %w", op, i.Err())
	case <-t.C:
		return fmt.Errorf("%s: %w: %w", op, device.ErrLost, err)
	}
}

// condemn kills the process for a reason.
func (i *Instance) condemn(reason string) {
	i.mu.Lock()
	if i.reason == "" && i.err == nil {
		i.reason = reason
	}
	i.mu.Unlock()
	i.kill()
}

// watch waits for the end of the process.
func (i *Instance) watch() {
	<-i.process().ended
	i.mu.Lock()
	reason := i.reason
	i.mu.Unlock()
	err := i.exitError(reason)
	i.mu.Lock()
	i.err = err
	i.mu.Unlock()
	close(i.done)
	i.cancelEvents()
}

// exitError describes a process that has ended.
func (i *Instance) exitError(reason string) error {
	p := i.process()
	e := &ExitError{Plugin: i.pluginName(), Device: i.spec.Settings.DeviceName, PID: p.pid, Reason: reason, Stderr: i.sink.Lines()}
	e.Status, e.Signal = p.exit()
	return e
}

func (i *Instance) pluginName() string {
	if i.description != nil {
		return i.description.GetName()
	}
	if i.spec.Program.Name != "" {
		return i.spec.Program.Name
	}
	return i.spec.Program.Path
}

const (
	// closeGrace is how long a plugin has to end by itself.
	closeGrace = 3 * time.Second
	// goneLimit is how long a killed process may take to go: one that waits in the kernel for a dead disk takes for ever.
	goneLimit = 10 * time.Second
)

// Close implements device.Instance. It fails if the process cannot be ended, after 13 seconds; it may then be called again.
func (i *Instance) Close() error {
	i.closeOnce.Do(func() {
		close(i.closing)
		i.mu.Lock()
		hopeless := i.reason != ""
		if !hopeless {
			i.reason = "it was closed"
		}
		i.mu.Unlock()
		if hopeless {
			i.kill()
		}
		i.cancelEvents()
		go i.abandon()
	})
	return i.awaitGone()
}

// awaitGone waits for abandon.
func (i *Instance) awaitGone() error {
	t := time.NewTimer(closeGrace + goneLimit)
	defer t.Stop()
	select {
	case <-i.gone:
		return nil
	case <-t.C:
		return fmt.Errorf("close plugin %s: %s: process %d does not end: it hangs in the kernel", i.pluginName(),
			i.spec.Settings.DeviceName, i.process().pid)
	}
}

// abandon ends whatever there is of the process, releases everything and closes gone.
func (i *Instance) abandon() {
	defer close(i.gone)
	if i.rpc == nil {
		i.kill() // nobody to be graceful with
	}
	if i.client != nil {
		t := time.AfterFunc(closeGrace, i.kill) // go-plugin asks it to go, without a limit of time
		i.client.Kill()
		t.Stop()
	}
	if p := i.process(); p != nil {
		p.kill()
		<-p.ended
	}
	i.workers.Wait()
	if i.socket != nil {
		_ = i.socket.Close()
	}
	if i.dir != "" {
		_ = os.RemoveAll(i.dir)
	}
}

// process is the instance's process, or nil if it was not started.
func (i *Instance) process() *process {
	i.runnerMu.Lock()
	r := i.runner
	i.runnerMu.Unlock()
	if r == nil {
		return nil
	}
	return r.process()
}

func (i *Instance) kill() {
	if p := i.process(); p != nil {
		p.kill()
	}
}

// SetFeatures implements device.Instance.
func (i *Instance) SetFeatures(ctx context.Context, f virtio.Features) (config []byte, err error) {
	err = i.call(ctx, "SetFeatures", i.spec.CallTimeout, func(ctx context.Context) (err error) {
		config, err = i.rpc.SetFeatures(ctx, f)
		return err
	})
	return config, err
}

// WriteConfig implements device.Instance.
func (i *Instance) WriteConfig(ctx context.Context, offset int, data []byte) (config []byte, err error) {
	err = i.call(ctx, "WriteConfig", i.spec.CallTimeout, func(ctx context.Context) (err error) {
		config, err = i.rpc.WriteConfig(ctx, offset, data)
		return err
	})
	return config, err
}

// AttachMemory implements device.Instance.
func (i *Instance) AttachMemory(ctx context.Context, regions []guestmem.MapRegion) error {
	return i.call(ctx, "AttachMemory", i.spec.CallTimeout, func(ctx context.Context) error {
		return i.rpc.AttachMemory(ctx, regions)
	})
}

// StartQueue implements device.Instance.
func (i *Instance) StartQueue(ctx context.Context, q pluginrpc.QueueStart) (resubmitted int, err error) {
	err = i.call(ctx, "StartQueue", i.spec.CallTimeout, func(ctx context.Context) (err error) {
		resubmitted, err = i.rpc.StartQueue(ctx, q)
		return err
	})
	return resubmitted, err
}

// StopQueue implements device.Instance.
func (i *Instance) StopQueue(ctx context.Context, index int) (st pluginrpc.QueueState, err error) {
	err = i.call(ctx, "StopQueue", i.spec.StopTimeout, func(ctx context.Context) (err error) {
		st, err = i.rpc.StopQueue(ctx, index)
		return err
	})
	return st, err
}

// Reset implements device.Instance.
func (i *Instance) Reset(ctx context.Context) error {
	return i.call(ctx, "Reset", i.spec.StopTimeout, i.rpc.Reset)
}

// Pause implements device.Instance.
func (i *Instance) Pause(ctx context.Context) error {
	return i.call(ctx, "Pause", i.spec.StopTimeout, i.rpc.Pause)
}

// Resume implements device.Instance.
func (i *Instance) Resume(ctx context.Context) error {
	return i.call(ctx, "Resume", i.spec.CallTimeout, i.rpc.Resume)
}

// Health implements device.Instance.
func (i *Instance) Health(ctx context.Context) error {
	return i.call(ctx, "Health", i.spec.CallTimeout, i.rpc.Health)
}

// Statistics implements device.Instance.
func (i *Instance) Statistics(ctx context.Context) (s pluginrpc.Statistics, err error) {
	err = i.call(ctx, "Statistics", i.spec.CallTimeout, func(ctx context.Context) (err error) {
		s, err = i.rpc.Statistics(ctx)
		return err
	})
	return s, err
}

// Command implements device.Instance.
func (i *Instance) Command(ctx context.Context, name string, args []byte) (result []byte, err error) {
	err = i.call(ctx, "Command "+name, i.spec.CallTimeout, func(ctx context.Context) (err error) {
		result, err = i.rpc.Command(ctx, name, args)
		return err
	})
	return result, err
}
