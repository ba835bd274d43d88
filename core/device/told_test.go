package device_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// lines is a log that a test reads.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A launcher shows its user the events and, from level warn on, the log: what both tell was told twice.
func TestWhatSubscribersAreToldIsNotWarnedOfToo(t *testing.T) {
	t.Parallel()
	for _, subscribed := range []bool{false, true} {
		log := &lines{}
		r := newRig(t, func(o *device.Options, h *host) {
			o.Log = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Info})
			h.prepare = func(n int, f *fake) {
				if n == 1 {
					f.fail["start"] = errors.New("in-flight region is damaged")
				}
			}
		})
		if subscribed {
			events, cancel := r.Subscribe()
			defer cancel()
			go func() {
				for range events { // so that somebody hears them
				}
			}()
		}
		r.startQueue(t)
		r.instance(0).events <- pluginrpc.DeviceError{Message: "disk is full", Queue: -1}
		eventually(t, "the error in the log", func() bool { return strings.Contains(log.String(), "disk is full") })
		r.instance(0).crash()
		r.await(t, device.StateFailed)
		eventually(t, "all in the log", func() bool { return strings.Contains(log.String(), "needs a reset") })
		for _, what := range []string{"disk is full", "instance lost", "needs a reset"} {
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, what) && strings.Contains(line, "[INFO]") != subscribed {
					t.Errorf("subscribed %t: %s", subscribed, line)
				}
			}
			if !strings.Contains(log.String(), what) {
				t.Errorf("subscribed %t: %q is nowhere", subscribed, what)
			}
		}
	}
}
