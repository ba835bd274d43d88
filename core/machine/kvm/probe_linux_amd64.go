package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/core/kvm"
)

// ErrEmulated tells that this KVM runs small programs but no ordinary kernel.
var ErrEmulated = errors.New("KVM emulates instructions in software and cannot run an ordinary Linux kernel")

// The probe's memory: page tables, GDT and IDT are in pages of their own, then code and a handler.
const (
	probePML4, probePDPT, probePD = 0x1000, 0x2000, 0x3000
	probeGDT, probeIDT            = 0x4000, 0x5000
	probeCode, probeHandler       = 0x6000, 0x6800
	probeData, probeStack         = 0x7000, 0x8000
	probeSize                     = 0x8000
	probePort                     = 0x510
	probeDone                     = 0x2a
	probeBreakpoint               = 3 // vector of INT3
	// probePatience is for a host that is very busy; the probe takes a millisecond.
	probePatience = 2 * time.Second
)

// probeProgram is what ordinary kernels do all the time and software emulations do not: a breakpoint, to patch code, and an
// atomic exchange of 16 bytes, in the page allocator.
var probeProgram = []byte{
	0xcc,                         // int3: the handler sets %bl
	0xbf, 0x00, 0x70, 0x00, 0x00, // mov $probeData, %edi
	0x31, 0xc0, 0x31, 0xd2, // xor %eax, %eax; xor %edx, %edx
	0x31, 0xc9, // xor %ecx, %ecx
	0xf0, 0x48, 0x0f, 0xc7, 0x0f, // lock cmpxchg16b (%rdi)
	0x66, 0xba, 0x10, 0x05, // mov $probePort, %dx
	0x88, 0xd8, // mov %bl, %al
	0xee,       // out %al, %dx
	0xeb, 0xfe, // jmp .
}

var probeHandlerProgram = []byte{
	0xb3, probeDone, // mov $probeDone, %bl
	0x48, 0xcf, // iretq
}

// probe tells whether an ordinary kernel can run here, by running a few of its instructions. nil, or ErrEmulated with what to do.
func probe(s *kvm.System, path string) (err error) {
	mem, err := unix.Mmap(-1, 0, probeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("%s: probe: mmap: %w", path, err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	vm, err := s.CreateVM()
	if err != nil {
		return fmt.Errorf("%s: probe: %w", path, err)
	}
	defer func() { _ = vm.Close() }()
	if err := errors.Join(vm.SetIdentityMapAddr(identityMap), vm.SetTSSAddr(tss), vm.SetUserMemoryRegion(0, 0, mem, false)); err != nil {
		return fmt.Errorf("%s: probe: %w", path, err)
	}
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		return fmt.Errorf("%s: probe: %w", path, err)
	}
	defer func() { _ = cpu.Close() }()
	if err := probeSetUp(s, cpu, mem); err != nil {
		return fmt.Errorf("%s: probe: %w", path, err)
	}
	if what := probeRun(cpu); what != "" {
		return fmt.Errorf("%s: %w (%s): use machine uml", path, ErrEmulated, what)
	}
	return nil
}

// probeSetUp writes the probe's memory and puts the CPU at its beginning.
func probeSetUp(s *kvm.System, cpu *kvm.VCPU, mem []byte) error {
	put := func(at int, v uint64) { binary.LittleEndian.PutUint64(mem[at:], v) }
	put(probePML4, probePDPT|3)
	put(probePDPT, probePD|3)
	put(probePD, 0x83) // the first 2 MiB
	put(probeGDT+boot.SelectorCode, 0x00af_9b00_0000_ffff)
	put(probeGDT+boot.SelectorData, 0x00cf_9300_0000_ffff)
	put(probeIDT+16*probeBreakpoint, probeHandler|boot.SelectorCode<<16|0x8e00<<32)
	copy(mem[probeCode:], probeProgram)
	copy(mem[probeHandler:], probeHandlerProgram)
	supported, err := s.SupportedCPUID()
	if err != nil {
		return err
	}
	if err := cpu.SetCPUID(supported); err != nil {
		return err
	}
	sregs, err := cpu.Sregs()
	if err != nil {
		return err
	}
	longMode(&sregs, probePML4)
	sregs.Gdt = kvm.DTable{Base: probeGDT, Limit: boot.SelectorTask - 1}
	sregs.Idt = kvm.DTable{Base: probeIDT, Limit: 16*(probeBreakpoint+1) - 1}
	if err := cpu.SetSregs(sregs); err != nil {
		return err
	}
	return cpu.SetRegs(kvm.Regs{Rip: probeCode, Rsp: probeStack, Rflags: rflagsOne})
}

// probeRun says what went wrong; "": nothing.
func probeRun(cpu *kvm.VCPU) string {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v := &vcpu{cpu: cpu, tid: unix.Gettid()}
	t := time.AfterFunc(probePatience, v.kick)
	defer func() {
		t.Stop()
		v.mu.Lock() // the timer may be kicking
		defer v.mu.Unlock()
		v.tid = 0
	}()
	for end := time.Now().Add(probePatience); ; {
		switch err := cpu.Run(); {
		case errors.Is(err, unix.EINTR) && time.Now().Before(end):
			continue // Go's own signal
		case errors.Is(err, unix.EINTR):
			return fmt.Sprintf("a probe did not end within %v", probePatience)
		case err != nil:
			return err.Error()
		}
		if a := cpu.IO(); cpu.Reason() == kvm.ExitIO && a.Out && a.Port == probePort && len(a.Data) == 1 && a.Data[0] == probeDone {
			return ""
		}
		if cpu.Reason() == kvm.ExitInternalError {
			return fmt.Sprintf("KVM internal error %d in a probe", cpu.Internal().Suberror)
		}
		return "a probe ended with " + cpu.Reason().String()
	}
}
