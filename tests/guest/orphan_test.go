package guest_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// What looks for processes left behind finds one whose parent has gone.
func TestOrphansAreSeen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "(sleep 60 &)")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := watchFamily(cmd.Process.Pid, dir)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	f.stop()
	left := strings.Join(f.alive(), " ")
	f.kill()
	if !strings.Contains(left, "sleep") {
		t.Errorf("left behind: %q, want a sleep", left)
	}
}
