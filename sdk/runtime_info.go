package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// Health implements pluginrpc.Service. An instance that is not configured yet is well.
func (r *deviceRuntime) Health(context.Context) error {
	r.mu.Lock()
	dev := r.dev
	r.mu.Unlock()
	if h, ok := dev.(HealthChecker); ok {
		return h.Health()
	}
	return nil
}

// Statistics implements pluginrpc.Service.
func (r *deviceRuntime) Statistics(context.Context) (pluginrpc.Statistics, error) {
	r.mu.Lock()
	dev := r.dev
	st := pluginrpc.Statistics{Queues: r.queueStatistics()}
	r.mu.Unlock()
	if sr, ok := dev.(StatsReader); ok {
		st.Counters = maps.Clone(sr.Statistics())
	}
	for name := range st.Counters {
		if !pluginrpc.ValidMember(name) {
			return pluginrpc.Statistics{}, fmt.Errorf("statistics: counter %q: want a name such as read_bytes", name)
		}
	}
	return st, nil
}

// Command implements pluginrpc.Service.
func (r *deviceRuntime) Command(ctx context.Context, name string, args []byte) ([]byte, error) {
	op := "command " + name
	spec, ok := r.def.commands[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w: there is no such command", op, pluginrpc.ErrInvalid)
	}
	dev, err := r.device(op)
	if err != nil {
		return nil, err
	}
	c, ok := dev.(Commander) // it is: checkDevice
	if !ok {
		return nil, fmt.Errorf("%s: %w", op, pluginrpc.ErrUnsupported)
	}
	if len(bytes.TrimSpace(args)) == 0 {
		args = []byte("{}")
	}
	if err := spec.decode(args, nil, reflect.New(spec.typ).Elem()); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	v, err := c.Command(ctx, name, args)
	if err != nil {
		return nil, err // the launcher's half names the command
	}
	if v == nil {
		return []byte("{}"), nil
	}
	result, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%s: result: %w", op, err)
	}
	if !bytes.HasPrefix(result, []byte("{")) {
		return nil, fmt.Errorf("%s: result %T: want what is one JSON object", op, v)
	}
	return result, nil
}

// Events implements pluginrpc.Service.
func (r *deviceRuntime) Events(ctx context.Context, send func(pluginrpc.Event) error) error {
	return r.events.stream(ctx, func(ev pluginrpc.Event) error {
		if _, changed := ev.(pluginrpc.ConfigChanged); changed {
			config, err := r.ReadConfig(ctx) // now, not when it was told: always the latest
			if err != nil {
				r.log.Error("configuration space changed", "error", err)
				return nil
			}
			ev = pluginrpc.ConfigChanged{Config: config}
		}
		return send(ev)
	})
}
