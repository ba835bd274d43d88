package main

import (
	"testing"

	"github.com/virtplug/virtplug/sdk/devicetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings map[string]any
		pairs    int
	}{
		"nothing":      {map[string]any{"backend": "null"}, 1},
		"loopback":     {map[string]any{"backend": "loopback"}, 1},
		"three pairs":  {map[string]any{"backend": "loopback", "queue_pairs": 3, "queue_size": 32}, 3},
		"no offload":   {map[string]any{"backend": "loopback", "offload": false, "mtu": 1400, "speed": 1000}, 1},
		"limited":      {map[string]any{"backend": "loopback", "rx_bandwidth": 65536, "tx_packets": 500}, 1},
		"cable is out": {map[string]any{"backend": "loopback", "link": false}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			devicetest.Run(t, plugin(), devicetest.Options{
				Settings: c.settings,
				Keeps:    func(queue int) bool { return queue%2 == 0 && queue < 2*c.pairs },
			})
		})
	}
}
