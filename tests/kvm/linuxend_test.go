package kvm_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/virtplug/virtplug/tests/kvm/parts"
	"github.com/virtplug/virtplug/tests/session"
)

// greeting is what our RAM disk shows once a boot, before the first prompt.
const greeting = "Linux in a virtual machine"

// Linux restarts: it comes up again, with the same plugin processes, and finds what it wrote.
func TestLinuxReboots(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newLinux(t)
			content := session.Pattern(5, 2*mebi)
			image := disk(t, v, "disk.img", content)
			v.Boot("--bus", bus, "--block", image, "--console", "stdio")
			before := append(v.Plugin("block"), v.Plugin("console")...)
			v.Must("dd if=/test/data of=/dev/vda bs=64k conv=notrunc,fsync")
			copy(content, session.Pattern(parts.DataSeed, parts.DataBytes))
			v.Must("echo first >/run/boot")
			v.Type("reboot\r")
			v.Expect(greeting, session.BootLimit)
			v.Expect(session.Prompt, session.BootLimit)
			if out, status := v.Shell("cat /run/boot"); status == "0" {
				t.Errorf("the guest has not restarted: %s", out)
			}
			checkBus(t, v, bus, 2)
			if got := v.Must("cmp -n 1048576 /dev/vda /test/data && echo same"); got != "same" {
				t.Errorf("after the restart: %s", got)
			}
			if after := append(v.Plugin("block"), v.Plugin("console")...); len(before) != 2 || !slices.Equal(before, after) {
				t.Errorf("plugin processes were %v, are %v: want two, the same", before, after)
			}
			v.PowerOff()
			if err := equal(read(t, image), content); err != nil {
				t.Errorf("the image is not what the guest wrote: %v", err)
			}
		})
	}
}

// A panic of the guest's kernel ends the run with its exit status, and is told.
func TestLinuxPanic(t *testing.T) {
	t.Parallel()
	v := newLinux(t)
	v.Boot("--console", "stdio")
	v.Type("echo c >/proc/sysrq-trigger\r")
	v.Ended(3)
	if said := v.Stderr.String(); !strings.Contains(said, "Kernel panic") || !strings.Contains(said, "sysrq") {
		t.Errorf("standard error does not tell the panic:\n%s", said)
	}
}

// SIGTERM while the guest writes: its power button is pressed, it writes back and ends; what was synced is there.
func TestLinuxEndsByItsPowerButton(t *testing.T) {
	t.Parallel()
	v := newLinux(t)
	image := v.Image("disk.img", 4*mebi)
	v.Boot("--block", image, "--console", "stdio")
	v.Must("dd if=/test/data of=/dev/vda bs=64k conv=notrunc,fsync")
	v.Type("while :; do dd if=/test/data of=/dev/vda bs=64k seek=32 conv=notrunc 2>/dev/null; done\r")
	v.Signal(syscall.SIGTERM)
	v.Ended(130)
	if err := equal(read(t, image)[:parts.DataBytes], session.Pattern(parts.DataSeed, parts.DataBytes)); err != nil {
		t.Errorf("what was synced is not in the image: %v", err)
	}
	if log := string(read(t, v.Path("kernel"))); !strings.Contains(log, "reboot: Power down") {
		t.Errorf("the guest was switched off; it did not end by itself:\n%s", session.Tail([]byte(log), 2000))
	}
}

// The block plugin is killed while the guest writes: the guest sees no error and no wrong byte.
func TestLinuxSeesNoErrorWhenPluginsAreKilled(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newLinux(t)
			image := v.Image("disk.img", 16*mebi)
			v.Boot("--bus", bus, "--cpus", "2", "--block", image, "--console", "stdio")
			v.Type("echo WRI''TING; (for i in 0 1 2 3 4 5 6 7; do dd if=/test/data of=/dev/vda bs=64k seek=$((i*16)) conv=notrunc,fsync || echo FAI''LED; done) 2>/dev/null; echo WRIT''TEN$?.\r")
			v.Expect("WRITING\r\n", session.CommandLimit)
			for range 3 {
				v.KillPlugin("block")
			}
			if out := v.Expect("WRITTEN0.", session.CommandLimit); strings.Contains(out, "FAILED") {
				t.Errorf("the guest saw errors: %s", out)
			}
			v.KillPlugin("console")
			v.Must("echo 3 >/proc/sys/vm/drop_caches; for i in 0 1 2 3 4 5 6 7; do dd if=/dev/vda bs=64k skip=$((i*16)) count=16 2>/dev/null | cmp - /test/data || exit 1; done")
			if got := v.Must("dmesg | grep -ci 'i/o error' || true"); got != "0" {
				t.Errorf("the guest's kernel log has %s I/O errors", got)
			}
			v.PowerOff()
			data, b := session.Pattern(parts.DataSeed, parts.DataBytes), read(t, image)
			for i := range 8 {
				if err := equal(b[i*parts.DataBytes:][:parts.DataBytes], data); err != nil {
					t.Errorf("mebibyte %d of the image is not what the guest wrote: %v", i, err)
				}
			}
		})
	}
}
