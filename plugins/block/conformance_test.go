package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/virtplug/virtplug/sdk/devicetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]any{
		"one queue":    {},
		"four queues":  {"queues": 4, "queue_size": 64},
		"read-only":    {"read_only": true},
		"writethrough": {"cache": "writethrough", "discard": "ignore"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk.img")
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			settings["path"] = path
			devicetest.Run(t, plugin(), devicetest.Options{Settings: settings})
		})
	}
}
