package main

import (
	"testing"

	"github.com/virtplug/virtplug/sdk/devicetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]any{"at once": nil, "later": {"delay": 100_000}} { // nanoseconds
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			devicetest.Run(t, plugin(), devicetest.Options{
				Settings: settings,
				Keeps:    func(queue int) bool { return queue == queueNews },
			})
		})
	}
}
