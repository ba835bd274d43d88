package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/tests/session"
)

// Ring feature bits as they stand in /sys/bus/virtio/devices/*/features, a character each (VIRTIO 1.2, section 6).
const (
	bitIndirect = 28
	bitEventIdx = 29
	bitMQ       = 12 // VIRTIO_BLK_F_MQ
)

// host runs a program of the host.
func host(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput() //nolint:gosec // G204: a program that this test names
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// fileIn reads a file out of an ext4 image, without mounting it.
func fileIn(t *testing.T, image, name string) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "out")
	host(t, "/sbin/debugfs", "-R", "dump "+name+" "+to, image)
	b, err := os.ReadFile(to) //nolint:gosec // G304: a file of this test
	if err != nil {
		t.Fatalf("%s is not in %s: %v", name, image, err)
	}
	return b
}

// features reads a disk's negotiated feature bits in the guest.
func features(t *testing.T, v *session.VM, disk string) string {
	t.Helper()
	f := v.Must("cat /sys/block/" + disk + "/device/features")
	if len(f) != 64 {
		t.Fatalf("features of %s: %q", disk, f)
	}
	return f
}

// A guest makes a file system, writes, switches off; the host finds the same bytes. With each way to use the rings.
func TestGuestFilesOnDiskAreTheBytesWritten(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, settings     string
		indirect, eventIdx byte
		queues             int
	}{
		{"as it comes", "", '1', '1', 1},
		{"four queues", ",queues=4", '1', '1', 4},
		{"no indirect descriptors", ",ring.indirect=false", '0', '1', 1},
		{"no event index", ",ring.event_idx=false", '1', '0', 1},
		{"neither", ",ring.indirect=false,ring.event_idx=false", '0', '0', 1},
		{"write-through", ",cache=writethrough", '1', '1', 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := prepare(t)
			image := v.Image("disk.img", 64<<20)
			v.Boot("--block", image+c.settings, "--console", "stdio")
			f := features(t, v, "vda")
			if f[bitIndirect] != c.indirect || f[bitEventIdx] != c.eventIdx {
				t.Errorf("indirect %c, event index %c, want %c, %c", f[bitIndirect], f[bitEventIdx], c.indirect, c.eventIdx)
			}
			if c.queues > 1 {
				if f[bitMQ] != '1' {
					t.Error("several queues were not negotiated (VIRTIO_BLK_F_MQ)")
				}
				// The driver takes as many as it has CPUs; User-Mode Linux has one.
				t.Logf("queues in use: %s, CPUs: %s", v.Must("ls /sys/block/vda/mq | wc -l"), v.Must("grep -c processor /proc/cpuinfo"))
			}
			v.Must("/sbin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt && mkdir /mnt/d && cp /test/data /mnt/a && cp /test/data /mnt/d/b && sync")
			sum := fmt.Sprintf("%x", sha256.Sum256(session.Pattern(1, 3<<20)))
			// Read back from the disk, not from the guest's cache.
			got := v.Must("echo 3 > /proc/sys/vm/drop_caches; sha256sum /mnt/a /mnt/d/b")
			if strings.Count(got, sum) != 2 {
				t.Errorf("the guest reads %s, want twice %s", got, sum)
			}
			v.Must("rm /mnt/a && fstrim /mnt && cp /test/data /mnt/c && umount /mnt")
			v.PowerOff()

			host(t, "/sbin/e2fsck", "-fn", image)
			want := session.Pattern(1, 3<<20)
			for _, name := range []string{"/d/b", "/c"} {
				if !bytes.Equal(fileIn(t, image, name), want) {
					t.Errorf("%s in the image is not what the guest wrote", name)
				}
			}
		})
	}
}

// poweroff without umount: what was synced is there.
func TestGuestSyncedFileSurvivesPowerOff(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	image := v.Image("disk.img", 32<<20)
	v.Boot("--block", image, "--console", "stdio")
	v.Must("/sbin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt && cp /test/data /mnt/a && sync")
	v.PowerOff()
	host(t, "/sbin/e2fsck", "-fn", image)
	if !bytes.Equal(fileIn(t, image, "/a"), session.Pattern(1, 3<<20)) {
		t.Error("the file in the image is not what the guest wrote")
	}
}

func TestGuestCannotWriteAReadOnlyDisk(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	image := v.Image("disk.img", 16<<20)
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "f"), session.Pattern(2, 100000), 0o600); err != nil {
		t.Fatal(err)
	}
	host(t, "/sbin/mke2fs", "-q", "-t", "ext4", "-d", files, image)
	before := sumOf(t, image)
	v.Boot("--block", image+",read_only=true", "--console", "stdio")
	if got := v.Must("cat /sys/block/vda/ro"); got != "1" {
		t.Errorf("/sys/block/vda/ro is %q", got)
	}
	v.Must("mount -o ro /dev/vda /mnt")
	if got, want := v.Must("sha256sum /mnt/f"), fmt.Sprintf("%x", sha256.Sum256(session.Pattern(2, 100000))); !strings.HasPrefix(got, want) {
		t.Errorf("the guest reads %s, want %s", got, want)
	}
	if out, status := v.Shell("umount /mnt; dd if=/test/data of=/dev/vda bs=4096 count=1 conv=fsync"); status == "0" {
		t.Errorf("writing a read-only disk succeeded: %s", out)
	}
	v.PowerOff()
	if sumOf(t, image) != before {
		t.Error("the image of a read-only disk has changed")
	}
}

func sumOf(t *testing.T, name string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(name) //nolint:gosec // G304: a file of this test
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

// The host's file system is full: the guest gets an I/O error, the log names the image, everything else goes on.
func TestGuestSeesAnErrorWhenTheHostsDiskIsFull(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	small := v.Path("small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", small).CombinedOutput(); err != nil { //nolint:gosec // G204: a directory of this test
		t.Skipf("MISSING: mounting a tmpfs needs root: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "umount", "-l", small).CombinedOutput(); err != nil { //nolint:gosec // G204: a directory of this test
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	image := v.Image("small/disk.img", 16<<20)
	v.Boot("--block", image, "--block", v.Image("other.img", 8<<20), "--console", "stdio")
	out, status := v.Shell("dd if=/dev/zero bs=64k count=128 2>/dev/null | tr '\\0' x | dd of=/dev/vda bs=64k conv=fsync")
	if status == "0" || !strings.Contains(out, "Input/output error") {
		t.Errorf("writing more than the host has room for: status %s, %s", status, out)
	}
	// The console and the other disk are well, and so is what fits.
	v.Must("dd if=/test/data of=/dev/vdb bs=64k conv=fsync")
	v.Must("dd if=/dev/vda of=/dev/null bs=64k count=16")
	v.PowerOff()
	if log := v.Stderr.String(); !strings.Contains(log, image) || !strings.Contains(log, "no space left on device") {
		t.Errorf("the log names neither the image nor the reason:\n%s", log)
	}
}

func TestGuestWithTenDisksAndTwoConsoles(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	args := []string{"--console", "stdio", "--device", "console,socket=" + v.Path("c1")}
	for i := range 10 {
		image := v.Image(fmt.Sprintf("d%d", i), 1<<20)
		if err := os.WriteFile(image, session.Pattern(uint64(100+i), 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--block", image)
	}
	v.Boot(args...)
	sums := v.Must("sha256sum /dev/vd?")
	for i := range 10 {
		want := fmt.Sprintf("%x  /dev/vd%c", sha256.Sum256(session.Pattern(uint64(100+i), 1<<20)), 'a'+i)
		if !strings.Contains(sums, want) {
			t.Errorf("disk %d: want %s, the guest reads\n%s", i, want, sums)
		}
	}
	v.Must("for d in a b c d e f g h i j; do (echo disk-$d | dd of=/dev/vd$d conv=notrunc,fsync 2>/dev/null) & done; wait")
	other := dialConsole(t, v.Path("c1"))
	other.say(t, "echo on $(tty) with $((6*7))\r")
	other.hear(t, "on /dev/hvc1 with 42")
	v.PowerOff()
	for i := range 10 {
		b, err := os.ReadFile(v.Path(fmt.Sprintf("d%d", i)))
		if want := fmt.Sprintf("disk-%c\n", 'a'+i); err != nil || !bytes.HasPrefix(b, []byte(want)) {
			t.Errorf("image %d begins with %q (%v), want %q", i, b[:min(8, len(b))], err, want)
		}
	}
	if _, err := os.Lstat(v.Path("c1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the console's socket is left behind (%v)", err)
	}
}
