package kvm_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/kvm"
)

// open opens KVM, or skips.
func open(t *testing.T) *kvm.System {
	t.Helper()
	s, err := kvm.Open(kvm.Device)
	if err != nil {
		t.Skipf("SKIPPED: %v: load the kvm modules and be in the group kvm", err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := s.Close(); err != nil {
				t.Error("Close is not idempotent:", err)
			}
		}
	})
	return s
}

// machine is a VM with a page of memory at codeAt, that holds code, and a CPU that begins there in real mode.
func machine(t *testing.T, code []byte) (*kvm.VM, *kvm.VCPU) {
	t.Helper()
	const codeAt, size = 0x1000, 0x2000
	s := open(t)
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vm.Close() })
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	copy(mem, code)
	if err := errors.Join(vm.SetIdentityMapAddr(0xfffbc000), vm.SetTSSAddr(0xfffbd000), vm.CreateIRQChip(), vm.CreatePIT2(),
		vm.SetUserMemoryRegion(1, codeAt, mem, false)); err != nil {
		t.Fatal(err)
	}
	c, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	sregs, err := c.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	sregs.Cs.Base, sregs.Cs.Selector = 0, 0
	if err := errors.Join(c.SetSregs(sregs), c.SetRegs(kvm.Regs{Rip: codeAt, Rflags: 2})); err != nil {
		t.Fatal(err)
	}
	return vm, c
}

// run runs until an exit.
func run(t *testing.T, c *kvm.VCPU) {
	t.Helper()
	for {
		err := c.Run()
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
}

func TestOpenTellsWhyItCannot(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{file + "/none": nil, filepath.Dir(file) + "/none": kvm.ErrMissing, file: kvm.ErrVersion, "/dev/null": kvm.ErrVersion} {
		if s, err := kvm.Open(path); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, %v: want %v", path, s, err, want)
		}
	}
}

func TestCapabilitiesAreAsked(t *testing.T) {
	t.Parallel()
	s := open(t)
	if s.Check(kvm.CapUserMemory) == 0 || s.Check(kvm.CapIRQChip) == 0 {
		t.Error("KVM without memory or interrupts?")
	}
	if n := s.Check(kvm.Cap(1 << 20)); n != 0 {
		t.Errorf("a capability that there is not: %d", n)
	}
	leaves, err := s.SupportedCPUID()
	if err != nil || len(leaves) < 4 {
		t.Errorf("%d CPUID leaves, %v", len(leaves), err)
	}
}

func TestExitsAreDecodedWithoutAllocation(t *testing.T) { //nolint:paralleltest // it counts allocations
	_, c := machine(t, []byte{
		0xba, 0x34, 0x12, 0xb8, 0x78, 0x56, 0xef, // out %ax, $0x1234
		0xec,             // in %dx, %al
		0xa2, 0x00, 0x80, // mov %al, 0x8000
		0xa1, 0x00, 0x80, // mov 0x8000, %ax
		0xf4,
	})
	run(t, c)
	if a := c.IO(); c.Reason() != kvm.ExitIO || a.Port != 0x1234 || !a.Out || a.Size != 2 || !bytes.Equal(a.Data, []byte{0x78, 0x56}) {
		t.Fatalf("%v %+v", c.Reason(), a)
	}
	run(t, c)
	a := c.IO()
	if c.Reason() != kvm.ExitIO || a.Port != 0x1234 || a.Out || len(a.Data) != 1 {
		t.Fatalf("%v %+v", c.Reason(), a)
	}
	a.Data[0] = 0x42
	run(t, c)
	if m := c.MMIO(); c.Reason() != kvm.ExitMMIO || m.Addr != 0x8000 || !m.Write || !bytes.Equal(m.Data, []byte{0x42}) {
		t.Fatalf("%v %+v", c.Reason(), m)
	}
	run(t, c)
	m := c.MMIO()
	if c.Reason() != kvm.ExitMMIO || m.Write || len(m.Data) != 2 {
		t.Fatalf("%v %+v", c.Reason(), m)
	}
	if n := testing.AllocsPerRun(100, func() { _, _, _ = c.Reason(), c.IO(), c.MMIO() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	c.ImmediateExit(true)
	copy(m.Data, []byte{0xcd, 0xab})
	if err := c.Run(); !errors.Is(err, unix.EINTR) {
		t.Errorf("with ImmediateExit: %v", err)
	}
	if r, err := c.Regs(); err != nil || r.Rax&0xffff != 0xabcd {
		t.Errorf("the read gave %#x, %v", r.Rax, err)
	}
}

func TestADoorbellCountsAndDoesNotExit(t *testing.T) {
	t.Parallel()
	vm, c := machine(t, []byte{
		0xba, 0x10, 0x1f, 0x66, 0xb8, 7, 0, 0, 0, 0x66, 0xef, // out $7, $0x1f10
		0x66, 0xb8, 8, 0, 0, 0, 0x66, 0xef, // out $8
		0x66, 0xb8, 7, 0, 0, 0, 0x66, 0xef, // out $7
	})
	e, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(e) })
	d := kvm.Doorbell{PIO: true, Addr: 0x1f10, Len: 4, Match: true, Value: 7}
	if err := vm.IOEventFD(e, d); err != nil {
		t.Fatal(err)
	}
	if err := vm.IOEventFD(e, d); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same doorbell twice: %v", err)
	}
	run(t, c)
	if a := c.IO(); c.Reason() != kvm.ExitIO || a.Data[0] != 8 {
		t.Fatalf("exit of %v: want that of the other value", a)
	}
	b := make([]byte, 8)
	if _, err := unix.Read(e, b); err != nil || b[0] != 1 {
		t.Errorf("the eventfd counted %d, %v", b[0], err)
	}
	if err := vm.UnassignIOEventFD(e, d); err != nil {
		t.Fatal(err)
	}
	run(t, c)
	if a := c.IO(); c.Reason() != kvm.ExitIO || a.Data[0] != 7 {
		t.Errorf("exit of %v: want the write that nobody hears any more", a)
	}
	if err := errors.Join(vm.IRQFD(e, 5), vm.UnassignIRQFD(e, 5)); err != nil {
		t.Error(err)
	}
}

func TestStateIsReadAsItWasSet(t *testing.T) {
	t.Parallel()
	vm, c := machine(t, nil)
	l, err := c.LAPIC()
	if err != nil {
		t.Fatal(err)
	}
	l.SetRegister(0x350, 0x8700)
	if err := c.SetLAPIC(l); err != nil {
		t.Fatal(err)
	}
	if l, err = c.LAPIC(); err != nil || l.Register(0x350)&0x700 != 0x700 {
		t.Errorf("LINT0 %#x, %v", l.Register(0x350), err)
	}
	f, err := c.FPU()
	if err != nil {
		t.Fatal(err)
	}
	f.Fcw = 0x27f
	if err := c.SetFPU(f); err != nil {
		t.Fatal(err)
	}
	if f, err = c.FPU(); err != nil || f.Fcw != 0x27f {
		t.Errorf("FCW %#x, %v", f.Fcw, err)
	}
	if s, err := c.MPState(); err != nil || s != kvm.MPStateRunnable {
		t.Errorf("state %d, %v", s, err)
	}
	if err := c.SetMPState(kvm.MPStateRunnable); err != nil {
		t.Error(err)
	}
	if at, ok := c.Translate(0x1234); !ok || at != 0x1234 {
		t.Errorf("translated to %#x, %v", at, ok)
	}
	ap, err := vm.CreateVCPU(1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ap.Close() }()
	if s, err := ap.MPState(); err != nil || s != kvm.MPStateUninitialized {
		t.Errorf("state of the second CPU %d, %v", s, err)
	}
	if pins, ok := vm.IOAPIC(); ok && pins[5]&(1<<16) == 0 {
		t.Errorf("line 5 is not masked at first: %#x", pins[5])
	}
	if err := c.SetMSRs([]kvm.MSR{{Index: 0x7fff_1234}}); err == nil {
		t.Error("a register that there is not was set")
	}
	if err := c.SetCPUID(make([]kvm.CPUIDEntry, 1000)); err == nil {
		t.Error("1000 CPUID leaves were taken")
	}
}
