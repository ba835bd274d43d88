package kvm_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/tests/session"
)

func TestLinuxTenDisks(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newLinux(t)
			args := []string{"--bus", bus, "--cpus", "2", "--console", "stdio"}
			for i := range 10 {
				args = append(args, "--block", disk(t, v, fmt.Sprintf("d%d", i), session.Pattern(uint64(100+i), 256<<10)))
			}
			v.Boot(args...)
			sums := v.Must("sha256sum /dev/vd?")
			for i := range 10 {
				want := fmt.Sprintf("%x  /dev/vd%c", sha256.Sum256(session.Pattern(uint64(100+i), 256<<10)), 'a'+i)
				if !strings.Contains(sums, want) {
					t.Errorf("disk %d: want %s, the guest reads\n%s", i, want, sums)
				}
			}
			v.Must("for d in a b c d e f g h i j; do (echo disk-$d | dd of=/dev/vd$d conv=notrunc,fsync 2>/dev/null) & done; wait")
			v.PowerOff()
			for i := range 10 {
				if b, want := read(t, v.Path(fmt.Sprintf("d%d", i))), fmt.Sprintf("disk-%c\n", 'a'+i); !bytes.HasPrefix(b, []byte(want)) {
					t.Errorf("image %d begins with %q, want %q", i, b[:8], want)
				}
			}
		})
	}
}

// Memory beyond 4 GiB. Linux takes pages from there first, so what disk and console read and write lies there too.
func TestLinuxMemoryBeyond4GiB(t *testing.T) {
	t.Parallel()
	v := newLinux(t)
	content := session.Pattern(9, diskBytes)
	image := disk(t, v, "disk.img", content)
	v.Boot("--memory", "4G", "--block", image, "--console", "stdio")
	total, err := strconv.Atoi(v.Must("awk '/^MemTotal/{print $2}' /proc/meminfo"))
	if err != nil || total < 3800<<10 {
		t.Errorf("the guest has %d KiB of memory (%v), want nearly 4 GiB", total, err)
	}
	if got := v.Must("awk '/zone +Normal/{z=1} z && /spanned/{print $2; exit}' /proc/zoneinfo"); got == "0" || got == "" {
		t.Errorf("the guest has no memory from 4 GiB on: zone Normal spans %q pages", got)
	}
	checkDisk(t, v, content)
	v.PowerOff()
	if err := equal(read(t, image), content); err != nil {
		t.Errorf("the image is not what the guest wrote: %v", err)
	}
}

// Linux's requests do not wake the launcher either.
func TestLinuxLoadDoesNotWakeTheLauncher(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newLinux(t)
			v.Boot("--bus", bus, "--block", disk(t, v, "disk.img", session.Pattern(9, diskBytes)), "--console", "stdio")
			v.Must("true")
			before := describe(t, v)
			v.Must("dd if=/dev/vda of=/dev/null bs=4k iflag=direct")
			after := describe(t, v)
			requests, woken := after.served()-before.served(), after.woken(t)-before.woken(t)
			t.Logf("%d requests woke the launcher %d times", requests, woken)
			if requests < diskBytes/4096 {
				t.Errorf("the guest made %d requests, want one for each 4 KiB of the disk", requests)
			}
			// What is left are timers and the like.
			if woken > requests/20 {
				t.Errorf("%d requests woke the launcher %d times: before %v, after %v", requests, woken, before.Counters, after.Counters)
			}
			v.PowerOff()
		})
	}
}

// A paused guest does not answer; afterwards it goes on as if nothing had been.
func TestLinuxPauseAndResume(t *testing.T) {
	t.Parallel()
	v := newLinux(t)
	v.Boot("--cpus", "2", "--block", disk(t, v, "disk.img", session.Pattern(9, mebi)), "--console", "stdio")
	name := describe(t, v).Name
	command := func(args ...string) {
		t.Helper()
		if out, err := v.Virtplug(args...).CombinedOutput(); err != nil {
			t.Fatalf("virtplug %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	for range 3 {
		v.Type("dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2>/dev/null; echo EN''DED\r")
		command("pause", name)
		paused := describe(t, v)
		if paused.State != "paused" {
			t.Errorf("state %s, want paused", paused.State)
		}
		// Nothing runs in the guest: no exits, however long it takes to ask twice.
		if again := describe(t, v); again.Counters["exits"] != paused.Counters["exits"] {
			t.Errorf("a paused guest has had %d exits, then %d", paused.Counters["exits"], again.Counters["exits"])
		}
		command("resume", name)
		v.Expect("ENDED\r\n", session.CommandLimit)
	}
	command("pause", name)
	command("stop", name)
	v.Ended(0)
}
