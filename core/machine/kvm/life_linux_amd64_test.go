package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// counted is the number at flagAt in a guest's memory.
func counted(t *testing.T, g *running) uint32 {
	t.Helper()
	b, err := g.r.mem.Slice(flagAt, 4)
	if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b)
}

// count is a loop without end that counts at flagAt; countAP the same in real mode, for startAP.
func count() []byte { return join(movRCX(flagAt), []byte{0xff, 0x01, 0xeb, 0xfc}) }

// attempt is a trial that runs on.
type attempt struct {
	guest  *running
	cancel context.CancelCauseFunc
	exit   chan machine.Exit
}

func (tr trial) start(t *testing.T) attempt {
	t.Helper()
	needKVM(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	a := attempt{cancel: cancel, exit: make(chan machine.Exit, 1)}
	started := make(chan *running, 1)
	tr.ctx, tr.started = ctx, func(r *running) { started <- r }
	go func() {
		e, _ := tr.try(t)
		a.exit <- e
	}()
	a.guest = <-started
	return a
}

func (a attempt) wait(t *testing.T) machine.Exit {
	t.Helper()
	select {
	case e := <-a.exit:
		return e
	case <-time.After(patience):
		t.Fatal("the guest does not end")
		return machine.Exit{}
	}
}

// wantStill tells whether the count stands still.
func wantStill(t *testing.T, g *running) {
	t.Helper()
	was := counted(t, g)
	for range 100 {
		runtime.Gosched()
		time.Sleep(100 * time.Microsecond) // the time in which it would count
	}
	if is := counted(t, g); is != was {
		t.Errorf("a virtual CPU executes although it is paused: %d became %d", was, is)
	}
}

func TestPauseStopsTheVirtualCPUsAndResumeGoesOn(t *testing.T) {
	t.Parallel()
	a := trial{code: count()}.start(t)
	for range 10 {
		was := counted(t, a.guest)
		poll(t, "the guest executes", func() bool { return counted(t, a.guest) != was })
		for range 2 {
			if err := a.guest.Pause(); err != nil {
				t.Error(err)
			}
			if a.guest.r.cpus[0].inside.Load() {
				t.Fatal("Pause has returned, and a virtual CPU is in the guest")
			}
		}
		wantStill(t, a.guest)
		for range 2 {
			if err := a.guest.Resume(); err != nil {
				t.Error(err)
			}
		}
	}
	for range 100 { // a paused guest can be stopped, too
		if err := errors.Join(a.guest.Resume(), a.guest.Pause()); err != nil {
			t.Error(err)
		}
	}
	a.cancel(errors.New("enough"))
	wantExit(t, a.wait(t), machine.Stopped, "enough")
	if err := errors.Join(a.guest.Pause(), a.guest.Resume()); err != nil {
		t.Errorf("after the end: %v", err)
	}
	if n := a.guest.Counters()["exits"]; n == 0 {
		t.Error("no exits counted")
	}
}

func TestTheSecondCPUStartsByINITAndSIPI(t *testing.T) {
	t.Parallel()
	ap := join(
		[]byte{0x66}, movEAX(1), []byte{0x0f, 0xa2, 0x66, 0xc1, 0xeb, 0x18, 0x80, 0xc3, '0', 0x88, 0xd8}, // CPUID: its APIC id
		[]byte{0xba}, []byte{0xf8, 0x03, 0xee}, // out %al, serial
		[]byte{0xba, 0x00, 0x06, 0xb0, 5<<2 | 1<<5, 0xee}, // off
		forever(),
	)
	e, out := trial{code: join(startAP(ap), forever()), cpus: 2}.try(t)
	wantExit(t, e, machine.PowerOff, "")
	if out != "1" {
		t.Errorf("printed %q: want APIC id 1", out)
	}
}

func TestAJumpToTheFirmwareIsAReset(t *testing.T) {
	t.Parallel()
	e, _ := trial{code: join(startAP([]byte{0xea, 0xf0, 0xff, 0x00, 0xf0}), forever()), cpus: 2}.try(t)
	wantExit(t, e, machine.Reboot, "")
}

func TestADeviceThatBlocksDoesNotHoldUpOtherCPUsNorTheEnd(t *testing.T) {
	t.Parallel()
	d, in := newDevice(t, virtio.FVersion1)
	in.block, in.blocked = make(chan struct{}), make(chan struct{})
	// "mov $0x2000, %ax; mov %ax, %ds"… 0x200000 is out of reach of real mode: the count is at 0x60000.
	const at = 0x6_0000
	ap := []byte{0xb8, 0x00, 0x60, 0x8e, 0xd8, 0xff, 0x06, 0x00, 0x00, 0xeb, 0xfa}
	a := trial{code: join(startAP(ap), store(windowsStart+mmio.RegStatus, 0), forever()), cpus: 2, devices: []*device.Device{d}}.start(t)
	read := func() uint16 {
		b, err := a.guest.r.mem.Slice(at, 2)
		if err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint16(b)
	}
	<-in.blocked
	was := read()
	poll(t, "the other CPU executes", func() bool { return read() != was })
	if err := a.guest.Pause(); err != nil {
		t.Error(err)
	}
	was = read()
	time.Sleep(10 * time.Millisecond) // the time in which it would count
	if read() != was {
		t.Error("the other CPU executes although it is paused")
	}
	if err := a.guest.Resume(); err != nil {
		t.Error(err)
	}
	a.cancel(errors.New("enough"))
	poll(t, "all threads end", func() bool {
		for _, v := range a.guest.r.cpus {
			v.mu.Lock()
			tid := v.tid
			v.mu.Unlock()
			if tid != 0 {
				return false
			}
		}
		return true
	})
	close(in.block)
	wantExit(t, a.wait(t), machine.Stopped, "enough")
}

func TestThePowerButtonIsPressedWhenTheContextEnds(t *testing.T) {
	t.Parallel()
	loop := join(listen(buttonGSI), say("ready\n"), []byte{0xfb, 0xf4, 0xeb, 0xfc}) // sti; hlt; again
	for name, c := range map[string]struct {
		handler []byte
		grace   time.Duration
		detail  string
	}{
		"and heard":   {powerOff(), patience, "enough; the guest switched itself off"},
		"and ignored": {nil, 50 * time.Millisecond, "enough"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := trial{code: loop, more: interrupts(c.handler), grace: c.grace}.start(t)
			poll(t, "ready", func() bool { return strings.Contains(a.guest.r.out.Last("ready"), "ready") })
			a.cancel(errors.New("enough"))
			e := a.wait(t)
			wantExit(t, e, machine.Stopped, c.detail)
			if e.Detail != c.detail {
				t.Errorf("detail %q: want %q", e.Detail, c.detail)
			}
		})
	}
}

func TestAGuestWithoutAButtonIsStoppedAtOnce(t *testing.T) {
	t.Parallel()
	a := trial{code: count(), grace: 5 * time.Second}.start(t)
	_, known := a.guest.r.vm.IOAPIC()
	before := time.Now()
	a.cancel(errors.New("enough"))
	wantExit(t, a.wait(t), machine.Stopped, "enough")
	if took := time.Since(before); known && took > 4*time.Second {
		t.Errorf("stopped after %v, although nobody listens to the button", took)
	}
}

func TestNothingIsLeftOfAGuest(t *testing.T) { //nolint:paralleltest // it counts what the process has
	needKVM(t)
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it closes files that were forgotten
	d, _ := newDevice(t, virtio.FVersion1)
	code := join(mmioDriver(), listen(lineGSI(0)), store(windowsStart+mmio.RegQueueNotify, 0), await(1), say("once\n"), outb(resetPort, 6), forever())
	left := func() (fds, goroutines, maps int) {
		dir, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		m, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		text := string(m)
		return len(dir), runtime.NumGoroutine(), strings.Count(text, "memfd:") + strings.Count(text, "kvm")
	}
	once := func() {
		e, out := trial{code: code, cpus: 3, more: interrupts(), devices: []*device.Device{d}}.try(t)
		wantExit(t, e, machine.Reboot, "")
		if out != "once\n" {
			t.Errorf("printed %q", out)
		}
	}
	once() // what is made once and kept, by Go's runtime for one
	fds, goroutines, maps := left()
	for range 20 {
		once()
	}
	poll(t, "what it was before", func() bool {
		f, g, m := left()
		return f <= fds && g <= goroutines && m <= maps
	})
}
