package pluginhost_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/pluginhost"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// ring is a driver's side of a queue of 8 in a memfd, as little as these tests need.
type ring struct {
	t    *testing.T
	mem  *os.File
	kick *os.File
	next uint16
}

const (
	base             = 0x100000
	descOff          = 0x0000
	availOff         = 0x1000
	usedOff          = 0x2000
	bufOff           = 0x3000
	ringSize         = 8
	ringMemory int64 = 1 << 16
)

func newRing(t *testing.T) *ring {
	t.Helper()
	n, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	r := &ring{t: t, mem: os.NewFile(uintptr(n), "guest")}
	t.Cleanup(func() { _ = r.mem.Close() })
	if err := r.mem.Truncate(ringMemory); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *ring) write(off int64, data any) {
	r.t.Helper()
	b, err := binary.Append(nil, binary.LittleEndian, data)
	if err == nil {
		_, err = r.mem.WriteAt(b, off)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// post makes one chain available: one device-writable buffer of 16 bytes.
func (r *ring) post() {
	r.t.Helper()
	slot := r.next % ringSize
	r.write(descOff+16*int64(slot), struct {
		Addr        uint64
		Len         uint32
		Flags, Next uint16
	}{base + bufOff, 16, 2, 0})
	r.write(availOff+4+2*int64(slot), slot)
	r.next++
	r.write(availOff+2, r.next)
	if _, err := unix.Write(int(r.kick.Fd()), binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *ring) used() uint16 {
	var b [2]byte
	_, _ = r.mem.ReadAt(b[:], usedOff+2)
	return binary.LittleEndian.Uint16(b[:])
}

// attach does what a machine does until queue 0 runs.
func (r *ring) attach(d *device.Device) {
	r.t.Helper()
	n, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		r.t.Fatal(err)
	}
	dup, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		r.t.Fatal(err)
	}
	r.kick = os.NewFile(uintptr(n), "kick")
	r.t.Cleanup(func() { _ = r.kick.Close() })
	ctx := r.t.Context()
	if err := errors.Join(
		d.SetFeatures(ctx, virtio.FVersion1),
		d.SetMemory(ctx, []device.MemoryRegion{{GPA: base, Size: uint64(ringMemory), File: r.mem}}),
		d.SetQueue(0, ringSize, base+descOff, base+availOff, base+usedOff),
		d.SetKick(ctx, 0, os.NewFile(uintptr(dup), "kick")),
		d.StartQueue(ctx, 0),
	); err != nil {
		r.t.Fatal(err)
	}
}

// A driver's chain that is in flight when the plugin is killed is completed by the next instance; the driver only waits.
func TestBrokerAndRealPluginSurviveKill(t *testing.T) {
	t.Parallel()
	flag := filepath.Join(t.TempDir(), "stall")
	s := spec(t, "good")
	s.Settings.ConfigJSON = []byte(`{"stall":"` + flag + `"}`)
	instances := make(chan *pluginhost.Instance, 8)
	d := device.New(device.Options{Name: "dev0", DeviceID: virtio.IDEntropy, Start: func(ctx context.Context) (device.Instance, error) {
		i, err := pluginhost.Start(ctx, s)
		if err != nil {
			return nil, err
		}
		instances <- i
		return i, nil
	}})
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := d.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := newRing(t)
	r.attach(d)
	r.post()
	eventually(t, "the first chain", func() bool { return r.used() == 1 })

	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.post()
	eventually(t, "the plugin to take the second chain", func() bool { _, err := os.Stat(flag); return err != nil })
	r.post()
	if r.used() != 1 {
		t.Error("the second chain was not held: nothing is tested")
	}
	first := <-instances
	if err := unix.Kill(first.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all three chains, by another instance", func() bool { return r.used() == 3 })
	if second := <-instances; second.PID() == first.PID() {
		t.Error("same process")
	}
	next, err := d.StopQueue(t.Context(), 0)
	if err != nil || next != 3 {
		t.Errorf("stop: %d, %v: want 3", next, err)
	}
	if err := d.Reset(t.Context()); err != nil {
		t.Error(err)
	}
	for off := int64(0); off < bufOff; off += 8 { // a driver that begins anew
		r.write(off, uint64(0))
	}
	r.next = 0
	r.attach(d)
	r.post()
	eventually(t, "a chain after the reset", func() bool { return r.used() == 1 })
	if d.State() != device.StateReady || d.NeedsReset() {
		t.Errorf("state %v, %v", d.State(), d.Cause())
	}
}

// launcherEnv makes the test binary a launcher that starts the plugin at that path and waits to be killed.
const launcherEnv = "PLUGINHOST_TEST_LAUNCHER"

func launcherMain(path string) int {
	i, err := pluginhost.Start(context.Background(), pluginhost.Spec{
		Program: pluginhost.Program{Name: "good", Path: path}, Settings: pluginrpc.Settings{DeviceName: "x", ConfigJSON: []byte("{}")},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(i.PID())
	time.Sleep(time.Hour)
	return 0
}

func TestPluginsDieWithAKilledLauncher(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	cmd := exec.CommandContext(t.Context(), self) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), launcherEnv+"="+plugin(t, "good").Path, "TMPDIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Fatal("the plugin does not run:", err)
	}
	// Stopped, it cannot notice by itself that its socket was closed: only the kernel can end it.
	if err := errors.Join(unix.Kill(pid, unix.SIGSTOP), cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	eventually(t, "the plugin's end", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}
