package kvm_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/tests/kvm/parts"
	"github.com/virtplug/virtplug/tests/session"
)

// diskBytes is the size of disks that Linux guests check as a whole.
const diskBytes = 8 * mebi

// Disk and console in both directions, over both buses, with one virtual CPU and two. All bytes are compared on the host.
func TestLinuxDiskAndConsole(t *testing.T) {
	t.Parallel()
	for _, bus := range []string{"mmio", "lguest"} {
		for _, cpus := range []string{"1", "2"} {
			t.Run(bus+", "+cpus+" CPUs", func(t *testing.T) {
				t.Parallel()
				v := newLinux(t)
				content := session.Pattern(7, diskBytes)
				image := disk(t, v, "disk.img", content)
				v.Boot("--bus", bus, "--cpus", cpus, "--block", image, "--console", "stdio")
				if got := v.Must("grep -c ^processor /proc/cpuinfo"); got != cpus {
					t.Errorf("the guest has %s CPUs, want %s", got, cpus)
				}
				checkBus(t, v, bus, 2)
				checkDisk(t, v, content)
				checkConsole(t, v)
				v.PowerOff()
				if err := equal(read(t, image), content); err != nil {
					t.Errorf("the image is not what the guest wrote: %v", err)
				}
			})
		}
	}
}

// checkBus checks on which bus the guest has found its devices.
func checkBus(t *testing.T, v *session.VM, bus string, devices int) {
	t.Helper()
	want := map[string]string{"mmio": "virtio-mmio", "lguest": "lguest_bus"}[bus]
	got := v.Must(`for d in /sys/bus/virtio/devices/*; do p=$(readlink -f $d/..); basename $(readlink -f $p/driver); done`)
	if strings.Count(got, want) != devices || len(strings.Fields(got)) != devices {
		t.Errorf("the drivers of the devices' parents are %q, want %d times %s", got, devices, want)
	}
	// Legacy virtio has 32 feature bits, and so not VIRTIO_F_VERSION_1, bit 32.
	version1 := map[string]byte{"mmio": '1', "lguest": '0'}[bus]
	for f := range strings.FieldsSeq(v.Must("cat /sys/bus/virtio/devices/*/features")) {
		if len(f) != 64 || f[32] != version1 {
			t.Errorf("features %s: VIRTIO_F_VERSION_1 is not %c", f, version1)
		}
	}
}

// checkDisk lets the guest read all of /dev/vda, which holds content, and write a part of it, by the page cache and around it;
// content is changed likewise.
func checkDisk(t *testing.T, v *session.VM, content []byte) {
	t.Helper()
	if got, want := v.Must("sha256sum </dev/vda"), fmt.Sprintf("%x", sha256.Sum256(content)); !strings.HasPrefix(got, want) {
		t.Errorf("the guest reads %s, want %s", got, want)
	}
	v.Must("dd if=/test/data of=/dev/vda bs=64k seek=16 conv=notrunc,fsync")
	copy(content[16*64<<10:], session.Pattern(parts.DataSeed, parts.DataBytes))
	v.Must("dd if=/test/data of=/dev/vda bs=4k seek=1024 count=64 oflag=direct conv=notrunc,fsync")
	copy(content[1024*4<<10:], session.Pattern(parts.DataSeed, parts.DataBytes)[:64*4<<10])
	if got, want := v.Must("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda"), fmt.Sprintf("%x", sha256.Sum256(content)); !strings.HasPrefix(got, want) {
		t.Errorf("after writing the guest reads %s, want %s", got, want)
	}
}

// consoleBytes is how much goes each way over the console; in an emulator of a terminal and a machine it takes a while.
const consoleBytes = 256 << 10

// checkConsole sends bytes through the terminal to the guest, and from there.
func checkConsole(t *testing.T, v *session.VM) {
	t.Helper()
	data := session.Pattern(3, consoleBytes)
	v.Type(fmt.Sprintf("stty raw -echo; echo REA''DY; head -c %d | sha256sum; stty sane; echo DO''NE\r", consoleBytes))
	v.Expect("READY\n", session.CommandLimit)
	sent := make(chan error, 1)
	go func() {
		_, err := v.Write(session.Escaped(data))
		sent <- err
	}()
	got := strings.TrimSpace(v.Expect("DONE", session.CommandLimit))
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(got, want) {
		t.Errorf("the guest has read %q from its console, want %s", got, want)
	}
	if err := <-sent; err != nil {
		t.Errorf("write to the terminal: %v", err)
	}
	v.Type(fmt.Sprintf("stty raw -echo; echo STA''RT; head -c %d /test/data; stty sane\r", consoleBytes))
	v.Expect("START\n", session.CommandLimit)
	if !bytes.Equal(v.Bytes(consoleBytes, session.CommandLimit), session.Pattern(parts.DataSeed, parts.DataBytes)[:consoleBytes]) {
		t.Error("what the guest wrote to its console is not what came")
	}
	v.Must("true")
}
