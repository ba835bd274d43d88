package kvm

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/core/boot/acpi"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/kvm"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/memory"
)

const (
	// minMemory is arbitrary: a page-table and a tiny program; a Linux kernel says itself what it needs (boot.ErrNoRoom).
	minMemory = 2 << 20
	// maxMemory is arbitrary, far above what one process is given; what the processor can address is checked too.
	maxMemory = 1 << 46
	// maxCPUs is what 8 bits of APIC identifier tell apart; the last one means all of them.
	maxCPUs = 255
)

// cmdline is what the machine itself needs on a kernel's command line: early messages on the serial port; a reset at once after
// a panic, by which the machine knows of it; and resets by ACPI's register, since Linux would ask an EFI firmware where ACPI is
// hardware-reduced.
const cmdline = "console=ttyS0 panic=-1 reboot=acpi"

// resetCode is what a PC's firmware has at F000:FFF0, where guests jump that want a reset of it: mov $resetPort, %dx;
// mov $resetValue, %al; out %al, %dx; hlt.
var resetCode = [resetCodeSize]byte{0xba, resetPort & 0xff, resetPort >> 8, 0xb0, resetValue, 0xee, 0xf4}

const resetCodeSize = 16

// plan is a guest that was found possible, with its files open.
type plan struct {
	system     *kvm.System
	kernel     *boot.Kernel
	kernelFile *os.File
	kernelSize int64
	initrd     *os.File // nil: none
	initrdSize int64
	ram        []boot.Range
	cpus       int
	bus        string
	cmdline    string
}

// plan finds out whether this host can run g, and how. The caller closes it.
func (m *Machine) plan(g machine.Guest) (_ *plan, err error) {
	p := &plan{cpus: max(g.VCPUs, 1), bus: g.Bus, cmdline: strings.TrimSpace(cmdline + " " + g.Cmdline)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("kvm: %w", err), p.close())
		}
	}()
	if p.system, err = openSystem(m.opts.Path); err != nil {
		return nil, err
	}
	if limit := min(p.system.Check(kvm.CapMaxVCPUs), maxCPUs); g.VCPUs < 0 || p.cpus > limit {
		return nil, fmt.Errorf("%d virtual CPUs: KVM takes 1 to %d: ask for fewer", g.VCPUs, limit)
	}
	switch p.bus {
	case "":
		p.bus = machine.BusMMIO
	case machine.BusMMIO, machine.BusLguest:
	default:
		return nil, fmt.Errorf("bus %q: want %s or %s", p.bus, machine.BusMMIO, machine.BusLguest)
	}
	if g.MemoryBytes < minMemory || g.MemoryBytes > maxMemory {
		return nil, fmt.Errorf("memory of %d bytes: want %d MiB to %d GiB", g.MemoryBytes, minMemory>>20, maxMemory>>30)
	}
	if err := memory.CheckSize(g.MemoryBytes); err != nil {
		return nil, err
	}
	p.ram = ramRanges(g.MemoryBytes)
	if err := p.checkAddresses(); err != nil {
		return nil, err
	}
	if err := p.openFiles(g); err != nil {
		return nil, err
	}
	if err := p.kernel.Fits(p.request()); err != nil {
		return nil, err
	}
	if p.ordinary() {
		return p, probe(p.system, m.opts.Path)
	}
	return p, nil
}

// checkAddresses tells whether the processor has addresses for all of memory, and for what a bus puts above it.
func (p *plan) checkAddresses() error {
	const busMost = 1 << 30 // far more than any bus takes
	leaves, err := p.system.SupportedCPUID()
	if err != nil {
		return err
	}
	for _, e := range leaves {
		width := e.Eax & 0xff
		if e.Function == leafSizes && width < 64 && uint64(ramEnd(p.ram))+busMost > 1<<width {
			return fmt.Errorf("memory up to address %v: the processor's addresses have %d bits: ask for less", ramEnd(p.ram), width)
		}
	}
	return nil
}

// ordinary tells whether the kernel may be Linux or the like; smaller programs need not be what probe looks for.
func (p *plan) ordinary() bool {
	const small = 4 << 20 // bytes; a vmlinux has several times as many
	return p.kernel.Format == boot.BzImage || p.kernel.Format == boot.ELFPVH && p.kernelSize > small
}

// Probe tells whether this host can run an ordinary Linux kernel, whatever the guest; the error says what to do.
func (m *Machine) Probe() error {
	s, err := openSystem(m.opts.Path)
	if err == nil {
		err = errors.Join(probe(s, m.opts.Path), s.Close())
	}
	if err != nil {
		return fmt.Errorf("kvm: %w", err)
	}
	return nil
}

// needs are what this machine cannot do without.
var needs = []struct {
	c    kvm.Cap
	name string
}{
	{kvm.CapUserMemory, "KVM_CAP_USER_MEMORY"}, {kvm.CapIRQChip, "KVM_CAP_IRQCHIP"}, {kvm.CapPIT2, "KVM_CAP_PIT2"},
	{kvm.CapIRQFD, "KVM_CAP_IRQFD"}, {kvm.CapIOEventFD, "KVM_CAP_IOEVENTFD"}, {kvm.CapImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"},
}

// openSystem opens KVM, or says what to do.
func openSystem(path string) (*kvm.System, error) {
	s, err := kvm.Open(path)
	switch {
	case errors.Is(err, kvm.ErrMissing):
		return nil, fmt.Errorf("%w: load the kernel's modules (modprobe kvm-intel or kvm-amd); if that fails, switch virtualisation on in the firmware's settings, "+
			"or, in a virtual machine, nested virtualisation in its host; or use machine uml", err)
	case errors.Is(err, kvm.ErrPermission):
		return nil, fmt.Errorf("%w: add yourself to the group kvm (sudo usermod -aG kvm $USER, then log in again), or use machine uml", err)
	case err != nil:
		return nil, err
	}
	for _, n := range needs {
		if s.Check(n.c) == 0 {
			return nil, errors.Join(fmt.Errorf("%s: it lacks %s: use a newer kernel, or machine uml", path, n.name), s.Close())
		}
	}
	return s, nil
}

// openFiles opens and inspects what is to be booted.
func (p *plan) openFiles(g machine.Guest) (err error) {
	path := g.Kernel
	if path == "" {
		if path, err = DefaultKernel(); err != nil {
			return err
		}
	}
	if p.kernelFile, p.kernelSize, err = openRegular("kernel", path); err != nil {
		return err
	}
	if p.kernel, err = boot.Inspect(p.kernelFile, p.kernelSize); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if g.Initrd == "" {
		return nil
	}
	if p.initrd, p.initrdSize, err = openRegular("initrd", g.Initrd); err != nil {
		return err
	}
	if uint64(p.initrdSize) >= g.MemoryBytes { //nolint:gosec // G115: not negative
		return fmt.Errorf("initrd %s: %d bytes do not fit into %d bytes of memory: give the guest more", g.Initrd, p.initrdSize, g.MemoryBytes)
	}
	return nil
}

func openRegular(what, path string) (*os.File, int64, error) {
	f, err := os.Open(path) //nolint:gosec // G304: the user's own choice
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", what, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("%s: %w", what, err), f.Close())
	}
	return f, st.Size(), nil
}

func (p *plan) close() error {
	var errs []error
	for _, f := range []*os.File{p.initrd, p.kernelFile} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if p.system != nil {
		errs = append(errs, p.system.Close())
	}
	return errors.Join(errs...)
}

func (p *plan) newBus(devices []*device.Device) bus {
	if p.bus == machine.BusLguest {
		return &lguestBus{devices: devices, at: ramEnd(p.ram)}
	}
	return &mmioBus{devices: devices}
}

// load places the ACPI tables and the kernel in guest memory. extra is the bus's memory.
func (r *run) load(extra boot.Range) (boot.Entry, error) {
	c := acpi.Config{
		CPUs: r.plan.cpus, LocalAPIC: lapicAddr, IOAPIC: ioapicAddr,
		SleepControl: sleepPort, SleepStatus: sleepPort + 1, Reset: resetPort, ResetValue: resetValue,
		PanicPort: panicPort, SerialPort: serialPort, SerialGSI: serialGSI, ButtonGSI: buttonGSI,
	}
	r.bus.describe(&c)
	tables, rsdp, err := acpi.Build(tablesStart, tablesEnd-tablesStart-resetCodeSize, c)
	if err != nil {
		return boot.Entry{}, err
	}
	place, err := r.mem.Slice(tablesStart, tablesEnd-tablesStart)
	if err != nil {
		return boot.Entry{}, err
	}
	copy(place, tables)
	copy(place[len(place)-resetCodeSize:], resetCode[:])
	req := r.plan.request()
	req.Memory, req.RSDP = r.mem, rsdp
	if extra.Size > 0 {
		req.Reserved = []boot.Range{extra}
	}
	return r.plan.kernel.Load(req)
}

// request says where the kernel goes, as far as it is known before there is memory.
func (p *plan) request() boot.Request {
	req := boot.Request{
		RAM: p.ram, ACPI: boot.Range{Start: tablesStart, Size: tablesEnd - tablesStart},
		InitrdSize: p.initrdSize, Cmdline: p.cmdline,
	}
	if p.initrd != nil {
		req.Initrd = p.initrd
	}
	return req
}
