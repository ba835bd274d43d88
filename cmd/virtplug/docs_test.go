package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestConfigurationReferenceIsCurrent: docs/configuration.md is what the plugins' schemas say.
func TestConfigurationReferenceIsCurrent(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), filepath.Join(os.Getenv(binEnv), "virtplug"), "docs", "configuration", "--plugin", "block", "--plugin", "console", "--plugin", "net") //nolint:gosec // our own program
	got, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("docs/configuration.md is not current; run `bin/virtplug docs configuration --plugin block --plugin console --plugin net > docs/configuration.md` (-file +plugins):\n%s", diff)
	}
}
