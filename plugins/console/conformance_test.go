package main

import (
	"path/filepath"
	"testing"

	"github.com/virtplug/virtplug/sdk/devicetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	log := func(t *testing.T) string { t.Helper(); return filepath.Join(t.TempDir(), "console.log") }
	for name, settings := range map[string]func(t *testing.T) map[string]any{
		"one port": func(t *testing.T) map[string]any { t.Helper(); return map[string]any{"file": log(t)} },
		"no host":  func(t *testing.T) map[string]any { t.Helper(); return map[string]any{"backend": "null"} },
		"three ports": func(t *testing.T) map[string]any {
			t.Helper()
			return map[string]any{"backend": "pty", "cols": 80, "rows": 24, "port": []any{
				map[string]any{"name": "log", "file": log(t)},
				map[string]any{"name": "second", "console": true, "backend": "null"},
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			devicetest.Run(t, plugin(), devicetest.Options{Settings: settings(t)})
		})
	}
}
