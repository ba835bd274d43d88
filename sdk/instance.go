package sdk

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// Instance is a plugin instance in this process: what Main serves to a launcher, without one. It is for tests of a device;
// package devicetest uses it.
type Instance struct{ rt *deviceRuntime }

// NewInstance makes an instance of p that logs to log (nil: nowhere). An error is a mistake in p.
func NewInstance[C any](p Plugin[C], log hclog.Logger) (*Instance, error) {
	d, err := define(p)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = hclog.NewNullLogger()
	}
	return &Instance{rt: newRuntime(d, log)}, nil
}

// Service is what the instance answers to the contract's calls. Who owns descriptors is as pluginrpc.Service says.
func (i *Instance) Service() pluginrpc.Service { return i.rt }

// Close does what the end of the process does: it stops the queues, waiting for chains in flight until ctx ends, and closes
// the device. Idempotent.
func (i *Instance) Close(ctx context.Context) error { return i.rt.Close(ctx) }
