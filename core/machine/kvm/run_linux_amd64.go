package kvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/kvm"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/machine/kernellog"
	"github.com/virtplug/virtplug/core/memory"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// run is one guest from its beginning to its end.
type run struct {
	m     *Machine
	guest machine.Guest
	log   hclog.Logger
	plan  *plan

	vm    *kvm.VM
	ram   *memory.RAM
	mem   *guestmem.Memory
	slots uint32 // memory slots in use
	bus   bus
	cpus  []*vcpu
	gate  *gate
	uart  *uart
	sink  *sink
	out   *kernellog.Log
	count counters // what no virtual CPU counts

	ended context.CancelFunc // ends the guest's life, and what waits for a device

	mu   sync.Mutex
	over bool // exit is why
	exit machine.Exit
}

// Check implements machine.Machine.
func (m *Machine) Check(g machine.Guest) error {
	p, err := m.plan(g)
	if err != nil {
		return err
	}
	return p.close()
}

// Run implements machine.Machine.
func (m *Machine) Run(ctx context.Context, g machine.Guest, devices []*device.Device) (exit machine.Exit, err error) {
	p, err := m.plan(g)
	if err != nil {
		return exit, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if ctx.Err() != nil {
		return machine.Exit{Reason: machine.Stopped, Detail: context.Cause(ctx).Error()}, nil
	}
	r := &run{m: m, guest: g, log: m.opts.Log, plan: p, bus: p.newBus(devices), out: kernellog.New(g.Console)}
	life, ended := context.WithCancel(context.WithoutCancel(ctx))
	r.ended = ended
	err = r.build(life)
	if err == nil {
		r.live(ctx, life)
	}
	ended()
	r.gate.stop()
	if terr := r.tearDown(context.WithoutCancel(ctx)); terr != nil {
		// The guest ran, and how it ended is known: what cannot be tidied up is for the log.
		r.log.Error("guest not taken down cleanly", "error", terr)
	}
	if err != nil {
		return exit, err
	}
	return r.explain(), nil
}

// build makes everything, up to a guest that is about to execute its first instruction.
func (r *run) build(life context.Context) error {
	r.gate = newGate(nil)
	r.sink = newSink(r.out)
	r.uart = newUART(func(b byte) {
		r.count.add(countSerial)
		r.sink.put(b)
	}, r.serialLine)
	extra, err := r.bus.memory()
	if err != nil {
		return fmt.Errorf("kvm: %w", err)
	}
	ranges := r.plan.ram
	if extra.Size > 0 {
		ranges = append(slices.Clone(ranges), extra)
	}
	if err := r.makeVM(spans(ranges)); err != nil {
		return fmt.Errorf("kvm: %w", err)
	}
	if err := r.bus.attach(life, r); err != nil {
		return fmt.Errorf("kvm: %w", err)
	}
	entry, err := r.load(extra)
	if err != nil {
		return err
	}
	if err := r.bus.begin(r, &entry); err != nil {
		return fmt.Errorf("kvm: %w", err)
	}
	if err := r.makeCPUs(entry); err != nil {
		return fmt.Errorf("kvm: %w", err)
	}
	r.gate = newGate(r.cpus)
	return nil
}

// makeVM makes memory, and the VM with its interrupt controllers.
func (r *run) makeVM(s []memory.Span) (err error) {
	if r.ram, err = memory.New("guest", s...); err != nil {
		return err
	}
	if r.mem, err = r.ram.Map(); err != nil {
		return err
	}
	for _, m := range r.mem.Regions() {
		// Fewer translations to miss, where the host lets shared memory have huge pages; elsewhere it changes nothing.
		_ = unix.Madvise(m.Data, unix.MADV_HUGEPAGE)
	}
	if r.vm, err = r.plan.system.CreateVM(); err != nil {
		return err
	}
	// Before anything else of the VM.
	if err := errors.Join(r.vm.SetIdentityMapAddr(identityMap), r.vm.SetTSSAddr(tss)); err != nil {
		return err
	}
	if err := r.vm.CreateIRQChip(); err != nil {
		return err
	}
	return r.vm.CreatePIT2()
}

// mapMemory makes memory the guest's.
func (r *run) mapMemory() error {
	for _, m := range r.mem.Regions() {
		if err := r.vm.SetUserMemoryRegion(r.nextSlot(), uint64(m.Start), m.Data, false); err != nil {
			return err
		}
	}
	return nil
}

// nextSlot is the number of a memory slot that is not in use, from 1.
func (r *run) nextSlot() uint32 {
	r.slots++
	return r.slots
}

// serialLine is the serial port's interrupt.
func (r *run) serialLine(high bool) {
	if err := r.vm.IRQLine(serialGSI, high); err != nil {
		r.log.Error("serial port's interrupt not raised", "error", err)
	}
}

// live lets the guest run until it has ended. When ctx ends the guest is asked to, and then made to.
func (r *run) live(ctx, life context.Context) {
	var threads sync.WaitGroup
	for _, v := range r.cpus {
		threads.Go(func() { r.runCPU(v) })
	}
	if r.guest.Started != nil {
		r.guest.Started(&running{r})
	}
	made := false
	select {
	case <-life.Done():
	case <-ctx.Done():
		r.askToEnd(life)
		made = r.stop(context.Cause(ctx).Error())
	}
	r.sink.release()
	threads.Wait()
	if made && r.log.IsDebug() { // a guest that hangs is stopped too
		for _, v := range r.cpus {
			r.log.Debug("guest stopped", "cpu", v.cpu.ID(), "at", r.registers(v.cpu))
		}
	}
}

// stop ends the guest, unless it has ended by itself since it was asked to, and makes cause the reason.
func (r *run) stop(cause string) (made bool) {
	r.finish(machine.Stopped, "")
	r.mu.Lock()
	defer r.mu.Unlock()
	made = r.exit.Reason == machine.Stopped
	if !made {
		cause += "; " + r.exit.Detail
	}
	r.exit = machine.Exit{Reason: machine.Stopped, Detail: cause}
	return made
}

// askToEnd presses the power button and gives the guest time to switch itself off.
func (r *run) askToEnd(life context.Context) {
	if !r.pressButton() {
		return
	}
	t := time.NewTimer(r.m.opts.Grace)
	defer t.Stop()
	select {
	case <-life.Done():
	case <-t.C:
		r.log.Debug("guest did not switch itself off when its power button was pressed", "after", r.m.opts.Grace)
	}
}

// finish ends the guest; the first reason counts. It does not wait, so that a virtual CPU may call it.
func (r *run) finish(reason machine.Reason, detail string) {
	r.mu.Lock()
	first := !r.over
	if first {
		r.over, r.exit = true, machine.Exit{Reason: reason, Detail: detail}
	}
	r.mu.Unlock()
	if first {
		r.gate.stop()
		r.ended()
	}
}

// tearDown takes back everything, also of what was built in part. All threads have ended.
func (r *run) tearDown(ctx context.Context) error {
	r.sink.close()
	r.out.Close()
	var errs []error
	for _, v := range r.cpus {
		v.mu.Lock()
		errs = append(errs, v.cpu.Close())
		v.mu.Unlock()
	}
	errs = append(errs, r.bus.detach(ctx))
	if r.vm != nil {
		errs = append(errs, r.vm.Close())
	}
	if r.mem != nil {
		errs = append(errs, r.mem.Close())
	}
	if r.ram != nil {
		errs = append(errs, r.ram.Close())
	}
	return errors.Join(errs...)
}

// detailLines is how many lines of output explain a crash.
const detailLines = 10

// explain is the exit, with what the kernel said last. A reset after a panic is a panic: the command line asks for it.
func (r *run) explain() machine.Exit {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.out.Lines()
	panicked := kernellog.Last(lines, kernellog.PanicMark)
	switch e := &r.exit; e.Reason {
	case machine.Reboot, machine.Panic:
		if panicked != "" {
			return machine.Exit{Reason: machine.Panic, Detail: panicked}
		}
		if l := kernellog.Last(lines, kernellog.EndMark); l != "" && e.Reason == machine.Reboot {
			e.Detail = l
		}
	case machine.PowerOff:
		if l := kernellog.Last(lines, kernellog.EndMark); l != "" {
			e.Detail = l
		}
	case machine.Crashed:
		e.Detail = strings.Join(append([]string{e.Detail}, lines[max(0, len(lines)-detailLines):]...), "\n")
	case machine.Stopped:
	}
	return r.exit
}

// running implements machine.Running.
type running struct{ r *run }

func (g *running) Pause() error {
	g.r.gate.pause()
	return nil
}

func (g *running) Resume() error {
	g.r.gate.resume()
	return nil
}

// LguestPage is a copy of the lguest bus's device page, while the guest runs.
func (g *running) LguestPage() ([]byte, error) {
	b, ok := g.r.bus.(*lguestBus)
	if !ok {
		return nil, fmt.Errorf("kvm: device page: %w: the guest's bus is not lguest's", machine.ErrUnsupported)
	}
	return b.bus.Page()
}

func (g *running) Counters() map[string]uint64 {
	all := []*counters{&g.r.count}
	for _, v := range g.r.cpus {
		all = append(all, &v.count)
	}
	return sum(all...)
}
