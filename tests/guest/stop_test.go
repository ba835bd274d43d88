package guest_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A signal at any moment ends everything: no process, no file, no terminal mode is left, and the exit status says so.
func TestGuestRunIsStoppedAtEveryStage(t *testing.T) {
	t.Parallel()
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		for _, after := range []time.Duration{0, 10 * time.Millisecond, 30 * time.Millisecond, 60 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond} {
			t.Run(fmt.Sprintf("%v after %v", sig, after), func(t *testing.T) {
				t.Parallel()
				v := prepare(t)
				v.launch("--block", v.image("d", mebi), "--console", "stdio")
				time.Sleep(after)
				v.signal(sig)
				select {
				case <-v.exited:
				case <-time.After(endLimit):
					t.Fatalf("not ended within %v", endLimit)
				}
				// Before the program has set up its handlers the signal itself ends it.
				code, died := v.cmd.ProcessState.ExitCode(), v.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() //nolint:forcetypeassert // on Linux
				if code != 130 && !died {
					t.Errorf("exit status %v, want 130", v.cmd.ProcessState)
				}
				v.nothingLeft()
			})
		}
	}
}

// The guest is busy writing and a SIGTERM comes: it is asked to write back first, and the file system is sound.
func TestGuestIsStoppedWhileItWrites(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	image := v.image("disk.img", 64<<20)
	boot(t, v, "--block", image, "--console", "stdio")
	v.must("/sbin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt && cp /test/data /mnt/a && sync")
	v.typeIn("while :; do cp /test/data /mnt/b; rm /mnt/b; done\r")
	time.Sleep(300 * time.Millisecond)
	v.signal(syscall.SIGTERM)
	v.ended(130)
	host(t, "/sbin/e2fsck", "-fn", image)
	if !bytes.Equal(fileIn(t, image, "/a"), pattern(1, 3<<20)) {
		t.Error("a file that was synced before is not there")
	}
}

// SIGKILL cannot be caught: the plugins and the guest end all the same, and the next run removes what is left.
func TestGuestEndsWhenTheLauncherIsKilled(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	image := v.image("d", mebi)
	boot(t, v, "--block", image, "--console", "stdio")
	v.family.look()
	v.signal(syscall.SIGKILL)
	<-v.exited
	v.family.stop()
	deadline := time.Now().Add(endLimit)
	for len(v.family.alive()) > 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if left := v.family.alive(); len(left) > 0 {
		t.Errorf("processes live on: %s", strings.Join(left, ", "))
	}
	for v.termios() != v.before && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if after := v.termios(); after != v.before {
		t.Errorf("terminal mode is\n%+v, was\n%+v", after, v.before)
	}

	again := prepare(t)
	again.run, again.tmp = v.run, v.tmp
	boot(t, again, "--block", image, "--console", "stdio")
	again.powerOff()
}
