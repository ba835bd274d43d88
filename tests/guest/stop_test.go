package guest_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/session"
)

// A signal at any moment ends everything: no process, no file, no terminal mode is left, and the exit status says so.
func TestGuestRunIsStoppedAtEveryStage(t *testing.T) {
	t.Parallel()
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		for _, after := range []time.Duration{0, 10 * time.Millisecond, 30 * time.Millisecond, 60 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond} {
			t.Run(fmt.Sprintf("%v after %v", sig, after), func(t *testing.T) {
				t.Parallel()
				v := prepare(t)
				v.Launch("--block", v.Image("d", mebi), "--console", "stdio")
				time.Sleep(after)
				v.Signal(sig)
				select {
				case <-v.Exited:
				case <-time.After(session.EndLimit):
					t.Fatalf("not ended within %v", session.EndLimit)
				}
				// Before the program has set up its handlers the signal itself ends it.
				code, died := v.Cmd.ProcessState.ExitCode(), v.Cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() //nolint:forcetypeassert // on Linux
				if code != 130 && !died {
					t.Errorf("exit status %v, want 130", v.Cmd.ProcessState)
				}
				v.NothingLeft()
			})
		}
	}
}

// The guest is busy writing and a SIGTERM comes: it is asked to write back first, and the file system is sound.
func TestGuestIsStoppedWhileItWrites(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	image := v.Image("disk.img", 64<<20)
	v.Boot("--block", image, "--console", "stdio")
	v.Must("/sbin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt && cp /test/data /mnt/a && sync")
	v.Type("while :; do cp /test/data /mnt/b; rm /mnt/b; done\r")
	time.Sleep(300 * time.Millisecond)
	v.Signal(syscall.SIGTERM)
	v.Ended(130)
	host(t, "/sbin/e2fsck", "-fn", image)
	if !bytes.Equal(fileIn(t, image, "/a"), session.Pattern(1, 3<<20)) {
		t.Error("a file that was synced before is not there")
	}
}

// SIGKILL cannot be caught: the plugins and the guest end all the same, and the next run removes what is left.
func TestGuestEndsWhenTheLauncherIsKilled(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	image := v.Image("d", mebi)
	v.Boot("--block", image, "--console", "stdio")
	v.Family.Look()
	v.Signal(syscall.SIGKILL)
	<-v.Exited
	v.Family.Stop()
	deadline := time.Now().Add(session.EndLimit)
	for len(v.Family.Alive()) > 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if left := v.Family.Alive(); len(left) > 0 {
		t.Errorf("processes live on: %s", strings.Join(left, ", "))
	}
	for v.TerminalChanged() != nil && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if err := v.TerminalChanged(); err != nil {
		t.Error(err)
	}

	again := prepare(t)
	again.Run, again.Tmp = v.Run, v.Tmp
	again.Boot("--block", image, "--console", "stdio")
	again.PowerOff()
}
