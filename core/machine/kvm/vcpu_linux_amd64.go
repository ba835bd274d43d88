package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/kvm"
)

// vcpu is one virtual CPU with its thread.
type vcpu struct {
	cpu   *kvm.VCPU
	count counters

	// inside: the thread is in the guest, or about to enter it.
	inside atomic.Bool
	// wasPaused: the guest is to be told at the next entry.
	wasPaused bool

	// mu guards tid, and cpu against its end.
	mu  sync.Mutex
	tid int // 0: no thread
}

// kick makes a virtual CPU that is inside come out. Any goroutine.
func (v *vcpu) kick() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tid == 0 {
		return
	}
	v.cpu.ImmediateExit(true) // if it is about to enter
	// If it is inside: any signal will do. Go's runtime takes this one for its own, and does nothing about it.
	_ = unix.Tgkill(unix.Getpid(), v.tid, unix.SIGURG)
}

// gate lets virtual CPUs into the guest, or keeps them out.
type gate struct {
	cpus []*vcpu
	// closed: who is about to enter must ask. Set before the virtual CPUs are kicked.
	closed atomic.Bool

	mu              sync.Mutex
	changed         *sync.Cond
	paused, stopped bool
}

func newGate(cpus []*vcpu) *gate {
	g := &gate{cpus: cpus}
	g.changed = sync.NewCond(&g.mu)
	return g
}

// enter waits until v may enter the guest; false: never again.
func (g *gate) enter(v *vcpu) bool {
	for {
		v.cpu.ImmediateExit(false)
		v.inside.Store(true)
		if !g.closed.Load() { // whoever closes the gate from here on kicks
			return true
		}
		v.inside.Store(false)
		g.mu.Lock()
		g.changed.Broadcast() // it may have been seen inside
		for g.paused && !g.stopped {
			v.wasPaused = true
			g.changed.Wait()
		}
		stopped := g.stopped
		g.mu.Unlock()
		if stopped {
			return false
		}
	}
}

// leave tells that v has come out.
func (g *gate) leave(v *vcpu) {
	v.inside.Store(false)
	if g.closed.Load() {
		g.mu.Lock()
		g.changed.Broadcast()
		g.mu.Unlock()
	}
}

// pause keeps all out, and returns when none is inside. One that waits for a device is out.
func (g *gate) pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = true
	g.closed.Store(true)
	for _, v := range g.cpus {
		if !v.inside.Load() {
			continue
		}
		v.kick()
		for v.inside.Load() && g.paused && !g.stopped {
			g.changed.Wait()
		}
	}
}

// resume lets them in again.
func (g *gate) resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = false
	g.closed.Store(g.stopped)
	g.changed.Broadcast()
}

// stop keeps all out for ever. It does not wait.
func (g *gate) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	g.closed.Store(true)
	g.changed.Broadcast()
	for _, v := range g.cpus {
		v.kick()
	}
}

// runCPU lets v execute until the guest ends.
func (r *run) runCPU(v *vcpu) {
	runtime.LockOSThread() // and never unlocked: the thread, which KVM knows, ends with the goroutine
	v.mu.Lock()
	v.tid = unix.Gettid()
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		v.tid = 0
		v.mu.Unlock()
	}()
	for r.gate.enter(v) {
		if v.wasPaused {
			v.wasPaused = false
			_ = v.cpu.ClockStopped() // a guest without this clock needs no word
		}
		err := v.cpu.Run()
		r.gate.leave(v)
		v.count.add(countExits)
		switch {
		case err == nil:
			r.handle(v)
		case errors.Is(err, unix.EINTR):
			v.count.add(countInterrupted)
		case errors.Is(err, unix.EAGAIN):
			v.count.add(countOther) // it got its INIT or SIPI
		default:
			r.crash(v, fmt.Sprintf("virtual CPU %d: %v", v.cpu.ID(), err))
		}
	}
}

// handle does what the guest wants.
func (r *run) handle(v *vcpu) {
	switch reason := v.cpu.Reason(); reason { //nolint:exhaustive // the others are crashes
	case kvm.ExitIO:
		v.count.add(countIO)
		r.port(v, v.cpu.IO())
	case kvm.ExitMMIO:
		v.count.add(countMMIO)
		r.memory(v.cpu.MMIO())
	case kvm.ExitIRQWindowOpen:
		v.count.add(countIRQWindow)
	case kvm.ExitIntr:
		v.count.add(countInterrupted)
	case kvm.ExitSystemEvent:
		v.count.add(countOther)
		r.systemEvent(v)
	default:
		v.count.add(countOther)
		r.crash(v, crashText(v.cpu, reason))
	}
}
