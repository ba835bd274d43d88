package device_test

import (
	"bytes"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/device"
)

// A driver may break its queue, stop it and start it again for ever: that must not fill the log.
func TestABrokenDriverDoesNotFloodTheLog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r := newRig(t, func(o *device.Options, _ *host) { o.Log = hclog.New(&hclog.LoggerOptions{Output: &out}) })
	r.setUsed(t, 7)
	r.setUp(t)
	r.instance(0).broken = "descriptor loop"
	for range 1000 {
		if err := r.StartQueue(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := r.StopQueue(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := bytes.Count(out.Bytes(), []byte("\n")); n == 0 || n > 50 {
		t.Errorf("%d lines of log for 1000 broken queues", n)
	}
}
