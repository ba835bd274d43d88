package uml

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine"
)

// bootLimit is generous: a boot takes 1.5 s on an idle machine.
const bootLimit = 2 * time.Minute

const blkModule = "drivers/block/virtio_blk.ko"

// syncBuffer is a buffer that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await polls until the console shows want.
func (s *syncBuffer) await(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(bootLimit); !strings.Contains(s.String(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("guest never said %q:\n%s", want, s.String())
		}
	}
}

func runDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vp") //nolint:usetesting // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// boot runs a guest to its end.
func boot(t *testing.T, initrd string, devices ...*device.Device) (machine.Exit, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	var out syncBuffer
	var log bytes.Buffer
	m := New(Options{Log: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Debug, Mutex: &sync.Mutex{}})})
	exit, err := m.Run(ctx, machine.Guest{
		Name: t.Name(), MemoryBytes: 128 << 20, Initrd: initrd, RunDir: runDir(t), Console: &out,
	}, devices)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("exit %+v\nlog:\n%s\nguest:\n%s", exit, &log, &out)
		}
	})
	return exit, out.String()
}

func TestUMLReadsAndWritesABlockDevice(t *testing.T) {
	t.Parallel()
	requireUML(t)
	d, blk := newBlk(t, "vda", 8<<20, 1)
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // reproducible test data
	for i := range blk.disk[:4<<20] {
		blk.disk[i] = byte(r.Uint32()) //nolint:gosec // random anyway
	}
	sum := sha256.Sum256(blk.disk[:4<<20])
	exit, out := boot(t, initramfs(t, `
echo SUM $(dd if=/dev/vda bs=64k count=64 2>/dev/null | sha256sum)
dd if=/dev/vda of=/dev/vda bs=4k count=1024 seek=1024 conv=fsync 2>/dev/null
echo SIZE $(cat /sys/block/vda/size)
poweroff -f
`, blkModule), d)
	if exit.Reason != machine.PowerOff {
		t.Errorf("exit %+v: want power off", exit)
	}
	if want := "SUM " + hex.EncodeToString(sum[:]); !strings.Contains(out, want) {
		t.Errorf("guest read other bytes: want %s", want)
	}
	if !strings.Contains(out, "SIZE 16384") {
		t.Error("guest saw another size than 16384 sectors")
	}
	if !bytes.Equal(blk.disk[:4<<20], blk.disk[4<<20:]) {
		t.Error("what the guest wrote is not on the disk")
	}
}

func TestUMLTenDisksWithFourQueuesEach(t *testing.T) {
	t.Parallel()
	requireUML(t)
	var devices []*device.Device
	for i := range 12 {
		n := 1
		if i < 2 {
			n = 4
		}
		d, blk := newBlk(t, fmt.Sprintf("vd%c", 'a'+i), 1<<20, n)
		copy(blk.disk, fmt.Sprintf("disk-%02d\n", i))
		devices = append(devices, d)
	}
	exit, out := boot(t, initramfs(t, `
for d in a b c d e f g h i j k l; do head -c 8 /dev/vd$d; done
poweroff -f
`, blkModule), devices...)
	if exit.Reason != machine.PowerOff {
		t.Errorf("exit %+v: want power off", exit)
	}
	for i := range devices {
		if want := fmt.Sprintf("disk-%02d", i); !strings.Contains(out, want) {
			t.Errorf("guest did not read %s", want)
		}
	}
}

func TestUMLDriverCanBeReloaded(t *testing.T) {
	t.Parallel()
	requireUML(t)
	d, blk := newBlk(t, "vda", 1<<20, 1)
	copy(blk.disk, "hello-disk\n")
	exit, out := boot(t, initramfs(t, `
for i in 1 2 3; do echo "$i $(head -c 10 /dev/vda)"; rmmod virtio_blk; insmod /lib/virtio_blk.ko; done
echo "4 $(dd if=/dev/vda bs=10 count=1 2>/dev/null)"
poweroff -f
`, blkModule), d)
	if exit.Reason != machine.PowerOff {
		t.Errorf("exit %+v: want power off", exit)
	}
	for i := 1; i <= 4; i++ {
		if !strings.Contains(out, fmt.Sprintf("%d hello-disk", i)) {
			t.Errorf("no read after load %d of the driver", i)
		}
	}
}
