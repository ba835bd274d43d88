package guest_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
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
	defer f.kill()
	var left string
	for end := time.Now().Add(commandLimit); !strings.Contains(left, "sleep"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left behind: %q, want a sleep", left)
		}
		left = strings.Join(f.alive(), " ") // it is still a shell before it has become a sleep
	}
}
