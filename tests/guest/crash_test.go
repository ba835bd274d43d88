package guest_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/session"
)

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
			image := v.Image("disk.img", 64<<20)
			v.Boot("--block", image+c.settings, "--console", "stdio")
			v.Type("echo WRI''TING; (for i in 0 3 6 9 12 15; do dd if=/test/data of=/dev/vda bs=64k seek=$((i*16)) conv=notrunc,fsync || echo FAI''LED; done) 2>/dev/null; echo WRIT''TEN$?.\r")
			v.Expect("WRITING\r\n", session.CommandLimit)
			for range 5 {
				v.KillPlugin("block")
				time.Sleep(20 * time.Millisecond)
			}
			if out := v.Expect("WRITTEN0.", 2*session.CommandLimit); strings.Contains(out, "FAILED") {
				t.Errorf("the guest saw errors: %s", out)
			}
			sum := fmt.Sprintf("%x", sha256.Sum256(bytes.Repeat(session.Pattern(1, 3<<20), 6)))
			if got := v.Must("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M count=18 2>/dev/null | sha256sum"); !strings.HasPrefix(got, sum) {
				t.Errorf("the guest reads %s, want %s", got, sum)
			}
			if got := v.Must("dmesg | grep -ci 'i/o error' || true"); got != "0" {
				t.Errorf("the guest's kernel log has %s I/O errors", got)
			}
			v.PowerOff()
		})
	}
}

// Without traffic: the next request after a kill is served.
func TestGuestGoesOnWhenAnIdlePluginIsKilled(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	v.Boot("--block", v.Image("d", mebi), "--console", "stdio")
	v.KillPlugin("block")
	v.Must("dd if=/test/data of=/dev/vda bs=4k count=8 conv=fsync")
	v.KillPlugin("console")
	v.Must("echo still here")
	v.PowerOff()
}
