package session_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/session"
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
	f := session.Watch(cmd.Process.Pid, dir)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	f.Stop()
	defer f.Kill()
	var left string
	for end := time.Now().Add(session.CommandLimit); !strings.Contains(left, "sleep"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left behind: %q, want a sleep", left)
		}
		left = strings.Join(f.Alive(), " ") // it is still a shell before it has become a sleep
	}
}
