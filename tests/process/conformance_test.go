package process

import (
	"path/filepath"
	"testing"

	"github.com/virtplug/virtplug/core/pluginhost"
	"github.com/virtplug/virtplug/sdk/devicetest"
)

// The suite against real plugin processes, descriptor socket and gRPC included.
func TestProcessConformance(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, plugin string
		settings     map[string]any
	}{
		{"block", "block", map[string]any{"path": image(t, 1<<20), "queues": 2}},
		{"console", "console", map[string]any{"file": filepath.Join(t.TempDir(), "console.log")}},
		{"console with ports", "console", map[string]any{"backend": "null", "port": []any{map[string]any{"name": "p", "backend": "null"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			devicetest.RunTarget(t, devicetest.Program(filepath.Join(bin, pluginhost.FilePrefix+c.plugin)), devicetest.Options{Settings: c.settings})
		})
	}
}
