package device_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestLifeOfADevice(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	if r.Name() != "vda" || r.ID() != virtio.IDBlock || r.QueueCount() != 2 || r.QueueSizeMax(1) != 16 || r.Features() != features {
		t.Errorf("%s %v %d %d %v", r.Name(), r.ID(), r.QueueCount(), r.QueueSizeMax(1), r.Features())
	}
	r.setUsed(t, 7)
	r.setUp(t)
	if err := r.SetQueueBase(0, 9); err != nil {
		t.Fatal(err)
	}
	if err := r.StartQueue(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if n := count(r.kick); n != 1 {
		t.Errorf("kick counts %d after the start: want 1", n)
	}
	next, err := r.StopQueue(t.Context(), 0)
	if err != nil || next != 42 || r.QueueBase(0) != 42 || r.QueueRunning(0) {
		t.Errorf("stop: %d, %v, base %d", next, err, r.QueueBase(0))
	}
	if next, err = r.StopQueue(t.Context(), 0); err != nil || next != 42 {
		t.Errorf("second stop: %d, %v", next, err)
	}
	if err := r.Reset(t.Context()); err != nil {
		t.Error(err)
	}
	f := r.instance(0)
	wantCalls(t, f, "features {29,32}", "memory 1", "start 0 next=9 recover=false", "stop 0", "reset")
	equal(t, "in-flight region", f.flight[0], freshFlight(7))
	if q := f.starts[0]; q.Size != qsize || q.DescArea != descAt || q.DriverArea != availAt || q.DeviceArea != usedAt {
		t.Errorf("start: %+v", q)
	}
	isBad(t, "start after reset", r.StartQueue(t.Context(), 0))
}

func TestInflightRegionIsSealed(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.startQueue(t)
	seals, err := unix.FcntlInt(uintptr(r.instance(0).starts[0].Inflight), unix.F_GET_SEALS, 0)
	if want := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL; err != nil || seals != want {
		t.Errorf("seals %#x, %v: want %#x", seals, err, want)
	}
}

func TestMissingNotifiersAreStoodInFor(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.setUp(t)
	if err := errors.Join(r.SetKick(t.Context(), 0, nil), r.SetCall(t.Context(), 0, nil), r.StartQueue(t.Context(), 0)); err != nil {
		t.Fatal(err)
	}
	q := r.instance(0).starts[0]
	if count(q.Kick) != 1 {
		t.Error("the stand-in kick was not rung")
	}
	if _, err := unix.FcntlInt(uintptr(q.Call), unix.F_GETFD, 0); err != nil {
		t.Error("call:", err)
	}
}

func TestRequestsOfTheMachineAreValidated(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	ctx := t.Context()
	r.setUp(t)
	region := func(gpa guestmem.GPA, size uint64, off int64) []device.MemoryRegion {
		return []device.MemoryRegion{{GPA: gpa, Size: size, Offset: off, File: r.mem}}
	}
	for what, err := range map[string]error{
		"feature not offered": r.SetFeatures(ctx, features|virtio.FRingPacked),
		"queue index":         r.SetQueue(2, 8, 0, 0, 0),
		"negative index":      r.SetQueueBase(-1, 0),
		"size 0":              r.SetQueue(0, 0, descAt, availAt, usedAt),
		"size 12":             r.SetQueue(0, 12, descAt, availAt, usedAt),
		"size over 32768":     r.SetQueue(0, 65535, descAt, availAt, usedAt),
		"descriptor align":    r.SetQueue(0, 8, descAt+8, availAt, usedAt),
		"available align":     r.SetQueue(0, 8, descAt, availAt+1, usedAt),
		"used align":          r.SetQueue(0, 8, descAt, availAt, usedAt+2),
		"no regions":          r.SetMemory(ctx, nil),
		"253 regions":         r.SetMemory(ctx, make([]device.MemoryRegion, 253)),
		"no file":             r.SetMemory(ctx, []device.MemoryRegion{{Size: 4096}}),
		"empty region":        r.SetMemory(ctx, region(0, 0, 0)),
		"odd size":            r.SetMemory(ctx, region(0, 4097, 0)),
		"odd address":         r.SetMemory(ctx, region(1, 4096, 0)),
		"odd offset":          r.SetMemory(ctx, region(0, 4096, 1)),
		"negative offset":     r.SetMemory(ctx, region(0, 4096, -4096)),
		"past the file's end": r.SetMemory(ctx, region(0, memSize, 4096)),
		"wraps":               r.SetMemory(ctx, region(^guestmem.GPA(4095), 8192, 0)),
		"overlap":             r.SetMemory(ctx, append(region(0x2000, 0x2000, 0), region(0x1000, 0x2000, 0)...)),
		"unset queue":         r.StartQueue(ctx, 1),
		"start index":         r.StartQueue(ctx, 99),
		"kick index":          r.SetKick(ctx, 99, nil),
		"write at the end":    r.WriteConfig(ctx, 4, []byte{1}),
		"write across":        r.WriteConfig(ctx, 3, []byte{1, 2}),
		"write before":        r.WriteConfig(ctx, -1, []byte{1}),
		"open again":          r.Open(ctx),
	} {
		isBad(t, what, err)
	}
	if _, err := r.StopQueue(ctx, 99); !errors.Is(err, device.ErrBadRequest) {
		t.Error("stop index:", err)
	}
	if err := r.SetQueue(0, qsize, descAt, availAt, memBase+memSize-4); err != nil {
		t.Fatal(err)
	}
	if err := r.StartQueue(ctx, 0); !errors.Is(err, device.ErrBadRequest) || !errors.Is(err, guestmem.ErrRange) {
		t.Error("used ring across the end of memory:", err)
	}
	if err := errors.Join(r.SetQueue(0, qsize, descAt, availAt, usedAt), r.StartQueue(ctx, 0)); err != nil {
		t.Fatal(err)
	}
	isBad(t, "start twice", r.StartQueue(ctx, 0))
	isBad(t, "addresses while running", r.SetQueue(0, qsize, descAt, availAt, usedAt))
	isBad(t, "base while running", r.SetQueueBase(0, 1))
	isBad(t, "features while running", r.SetFeatures(ctx, virtio.FVersion1))
	isBad(t, "memory without the queue", r.SetMemory(ctx, region(0x1000000, memSize, 0)))
	if err := r.SetFeatures(ctx, features); err != nil {
		t.Error("the same features while running:", err)
	}
}

func TestPluginsOfferIsValidated(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]pluginrpc.Offer{
		"queue size 0":    {QueueSizes: []uint16{0}},
		"queue size 3":    {QueueSizes: []uint16{3}},
		"too many queues": {QueueSizes: make([]uint16, 5000)},
		"config too long": {Config: make([]byte, 5000)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &host{t: t, offer: o}
			d := device.New(device.Options{Name: "x", Start: h.start})
			if err := d.Open(t.Context()); err == nil {
				t.Error("accepted")
			}
			if !h.instance(0).closed {
				t.Error("the instance was left running")
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRefusalsReachTheMachine(t *testing.T) {
	t.Parallel()
	no := errors.New("no")
	r := newRig(t, nil)
	f := r.instance(0)
	r.setUp(t)
	f.failOn("start", no)
	if err := r.StartQueue(t.Context(), 0); !errors.Is(err, no) || r.QueueRunning(0) {
		t.Errorf("start: %v, running %t", err, r.QueueRunning(0))
	}
	f.failOn("start", nil)
	f.failOn("write 1 09", no)
	if err := r.WriteConfig(t.Context(), 1, []byte{9}); !errors.Is(err, no) || r.ConfigSpace()[1] != 2 {
		t.Errorf("write: %v, %v", err, r.ConfigSpace())
	}
	if err := r.StartQueue(t.Context(), 0); err != nil {
		t.Error("after a refusal:", err)
	}
	if r.State() != device.StateReady {
		t.Error("state", r.State())
	}
}

func TestMemoryChangesUnderRunningQueues(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.startQueue(t)
	f := r.instance(0)
	more := append(r.regions(), device.MemoryRegion{GPA: 0x1000000, Size: 4096, File: r.mem})
	if err := r.SetMemory(t.Context(), more); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	f.failOn("memory 1", no)
	if err := r.SetMemory(t.Context(), r.regions()); !errors.Is(err, no) {
		t.Error("refused table:", err)
	}
	wantCalls(t, f, "features {29,32}", "memory 1", "start 0 next=0 recover=false",
		"stop 0", "memory 2", "start 0 next=42 recover=false",
		"stop 0", "memory 1", "memory 2", "start 0 next=42 recover=false")
	if !r.QueueRunning(0) || r.State() != device.StateReady {
		t.Error("running", r.QueueRunning(0), r.State())
	}
}

func TestNotifierChangesUnderARunningQueue(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.startQueue(t)
	_, call := eventfd(t)
	if err := r.SetCall(t.Context(), 0, call); err != nil {
		t.Fatal(err)
	}
	f := r.instance(0)
	wantCalls(t, f, "features {29,32}", "memory 1", "start 0 next=0 recover=false", "stop 0", "start 0 next=42 recover=false")
	if f.starts[1].Call == f.starts[0].Call {
		t.Error("the old descriptor was passed again")
	}
}

func TestConfigurationSpace(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	told := make(chan []byte, 1)
	r.OnConfigChange(func(c []byte) { told <- c })
	f := r.instance(0)
	f.events <- pluginrpc.ConfigChanged{Config: []byte{1, 2, 3}} // another size: refused
	f.events <- pluginrpc.ConfigChanged{Config: []byte{1, 2, 3, 4}}
	f.events <- pluginrpc.ConfigChanged{Config: []byte{9, 8, 7, 6}}
	equal(t, "told", <-told, []byte{9, 8, 7, 6})
	p := make([]byte, 8)
	if n := r.ReadConfigAt(p, 2); n != 2 || p[0] != 7 {
		t.Errorf("read at 2: %d %v", n, p)
	}
	if r.ReadConfigAt(p, 4) != 0 || r.ReadConfigAt(p, -1) != 0 {
		t.Error("read outside")
	}
}

func TestSubscribersGetNoticesAndStates(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	f := r.instance(0)
	early, cancel := r.Subscribe()
	<-early // the present state
	f.events <- pluginrpc.Notice{Message: "console is /dev/pts/4"}
	if e := <-early; e.Kind != device.EventNotice || e.Notice.Message == "" || e.Device != "vda" {
		t.Errorf("early: %+v", e)
	}
	cancel()
	cancel()
	late, cancel := r.Subscribe()
	defer cancel()
	if e := <-late; e.Kind != device.EventNotice {
		t.Errorf("late: %+v", e)
	}
	if e := <-late; e.Kind != device.EventState || e.State != device.StateReady {
		t.Errorf("late: %+v", e)
	}
}

func TestNeedsResetIsToldOnceAndEndsWithReset(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	told := make(chan struct{}, 8)
	r.OnNeedsReset(func() { told <- struct{}{} })
	r.SetStatus(virtio.StatusDriverOK)
	f := r.instance(0)
	for range 3 {
		f.events <- pluginrpc.DeviceError{Message: "bad ring", NeedsReset: true}
	}
	<-told
	eventually(t, "all events read", func() bool { return len(f.events) == 0 })
	if s := r.Status(); s != virtio.StatusDriverOK|virtio.StatusNeedsReset {
		t.Errorf("status %#x", s)
	}
	if err := r.Reset(t.Context()); err != nil {
		t.Error(err)
	}
	if r.Status() != 0 || r.NeedsReset() || len(told) != 0 {
		t.Errorf("after reset: %#x, told %d times more", r.Status(), len(told))
	}
}

func TestCloseReleasesEverything(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.startQueue(t)
	events, _ := r.Subscribe()
	f := r.instance(0)
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if !f.closed || r.State() != device.StateClosed {
		t.Error("closed", f.closed, r.State())
	}
	for range events {
	}
	for _, err := range []error{r.StartQueue(t.Context(), 0), r.SetFeatures(t.Context(), 0), r.SetQueue(0, 8, 0, 0, 0), r.Open(t.Context())} {
		if !errors.Is(err, device.ErrClosed) {
			t.Error("after Close:", err)
		}
	}
	_, kick := eventfd(t)
	if err := r.SetKick(t.Context(), 0, kick); !errors.Is(err, device.ErrClosed) {
		t.Error(err)
	}
	if err := kick.Close(); !errors.Is(err, os.ErrClosed) {
		t.Error("SetKick did not take the descriptor on error")
	}
}

func TestCloseEndsAStartThatHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.set(func() { r.gate = make(chan struct{}) })
	r.instance(0).crash()
	r.await(t, device.StateRestarting)
	done := make(chan error)
	go func() { done <- r.Close() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Close hangs")
	}
}
