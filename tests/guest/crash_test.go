package guest_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kill ends the only instance of a plugin and waits until another serves.
func (v *vm) killPlugin(name string) {
	v.t.Helper()
	old := v.family.plugin(name)
	if len(old) == 0 {
		v.t.Fatalf("no process of plugin %s", name)
	}
	if err := unix.Kill(old[0], unix.SIGKILL); err != nil {
		v.t.Fatal(err)
	}
	deadline := time.Now().Add(endLimit)
	for {
		if now := v.family.plugin(name); slices.ContainsFunc(now, func(p int) bool { return !slices.Contains(old, p) }) {
			return
		}
		if time.Now().After(deadline) {
			v.t.Fatalf("plugin %s was not started again within %v", name, endLimit)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// The block plugin is killed again and again while the guest writes: the guest sees no error and no wrong byte.
func TestGuestSeesNoErrorWhenTheBlockPluginIsKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, settings string }{
		{"event index and indirect", ""},
		{"neither", ",ring.indirect=false,ring.event_idx=false"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := prepare(t)
			image := v.image("disk.img", 64<<20)
			boot(t, v, "--block", image+c.settings, "--console", "stdio")
			v.typeIn("echo WRI''TING; (for i in 0 3 6 9 12 15; do dd if=/test/data of=/dev/vda bs=64k seek=$((i*16)) conv=notrunc,fsync || echo FAI''LED; done) 2>/dev/null; echo WRIT''TEN$?.\r")
			v.expect("WRITING\r\n", commandLimit)
			for range 5 {
				v.killPlugin("block")
				time.Sleep(20 * time.Millisecond)
			}
			if out := v.expect("WRITTEN0.", 2*commandLimit); strings.Contains(out, "FAILED") {
				t.Errorf("the guest saw errors: %s", out)
			}
			sum := fmt.Sprintf("%x", sha256.Sum256(bytes.Repeat(pattern(1, 3<<20), 6)))
			if got := v.must("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M count=18 2>/dev/null | sha256sum"); !strings.HasPrefix(got, sum) {
				t.Errorf("the guest reads %s, want %s", got, sum)
			}
			if got := v.must("dmesg | grep -ci 'i/o error' || true"); got != "0" {
				t.Errorf("the guest's kernel log has %s I/O errors", got)
			}
			v.powerOff()
		})
	}
}

// Without traffic: the next request after a kill is served.
func TestGuestGoesOnWhenAnIdlePluginIsKilled(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	boot(t, v, "--block", v.image("d", mebi), "--console", "stdio")
	v.killPlugin("block")
	v.must("dd if=/test/data of=/dev/vda bs=4k count=8 conv=fsync")
	v.killPlugin("console")
	v.must("echo still here")
	v.powerOff()
}
