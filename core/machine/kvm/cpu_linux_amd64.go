package kvm

import (
	"fmt"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/core/kvm"
)

// makeCPUs makes the virtual CPUs. The first begins at entry; the others wait for INIT and SIPI, in the kernel.
func (r *run) makeCPUs(entry boot.Entry) error {
	supported, err := r.plan.system.SupportedCPUID()
	if err != nil {
		return err
	}
	deadline := r.plan.system.Check(kvm.CapTSCDeadlineTimer) != 0
	n := r.plan.cpus
	for id := range n {
		c, err := r.vm.CreateVCPU(id)
		if err != nil {
			return err
		}
		r.cpus = append(r.cpus, &vcpu{cpu: c})
		if err := c.SetCPUID(cpuidOf(supported, uint32(id), uint32(n), deadline)); err != nil { //nolint:gosec // G115: small
			return err
		}
		if err := setMSRs(c, supported); err != nil {
			return err
		}
		if id == 0 {
			if err := enter(c, entry); err != nil {
				return err
			}
		}
	}
	return nil
}

// Model-specific registers (Intel SDM volume 4).
const (
	msrMiscEnable  = 0x1a0
	miscFastString = 1 << 0
	msrMTRRDefault = 0x2ff
	mtrrEnable     = 1 << 11
	mtrrWriteBack  = 6
)

// setMSRs sets what firmware would have: memory is cached (Linux leaves PAT alone otherwise), and string instructions are fast.
func setMSRs(c *kvm.VCPU, supported []kvm.CPUIDEntry) error {
	for _, e := range supported {
		if e.Function == leafFeatures && e.Edx&(1<<12) != 0 { // MTRR
			if err := c.SetMSRs([]kvm.MSR{{Index: msrMTRRDefault, Data: mtrrEnable | mtrrWriteBack}}); err != nil {
				return err
			}
		}
	}
	misc := []kvm.MSR{{Index: msrMiscEnable}}
	if err := c.MSRs(misc); err != nil {
		return nil //nolint:nilerr // not a processor that has it
	}
	misc[0].Data |= miscFastString
	return c.SetMSRs(misc)
}

// Bits of the control registers.
const (
	cr0PE     = 1 << 0
	cr0ET     = 1 << 4
	cr0PG     = 1 << 31
	cr4PAE    = 1 << 5
	eferLME   = 1 << 8
	eferLMA   = 1 << 10
	rflagsOne = 1 << 1 // always set
)

// Local APIC registers: what a PC's firmware leaves in them (Intel MultiProcessor Specification 1.4, 3.6.2.2, "virtual wire").
const (
	lapicLINT0   = 0x350
	lapicLINT1   = 0x360
	lintExternal = 7 << 8
	lintNMI      = 4 << 8
)

// enter puts the first virtual CPU where the kernel begins.
func enter(c *kvm.VCPU, e boot.Entry) error {
	s, err := c.Sregs()
	if err != nil {
		return err
	}
	switch e.Mode {
	case boot.Long64:
		longMode(&s, e.CR3)
	case boot.Protected32:
		protectedMode(&s)
	default:
		return fmt.Errorf("kernel entry: %v: not known", e.Mode)
	}
	s.Gdt = kvm.DTable{Base: uint64(e.GDT), Limit: e.GDTLimit}
	if err := c.SetSregs(s); err != nil {
		return err
	}
	if err := c.SetRegs(kvm.Regs{Rip: e.RIP, Rsp: e.RSP, Rsi: e.RSI, Rbx: e.RBX, Rflags: rflagsOne}); err != nil {
		return err
	}
	l, err := c.LAPIC()
	if err != nil {
		return err
	}
	l.SetRegister(lapicLINT0, lintExternal)
	l.SetRegister(lapicLINT1, lintNMI)
	return c.SetLAPIC(l)
}

// protectedMode is 32-bit protected mode without paging.
func protectedMode(s *kvm.Sregs) {
	code, data := flat(boot.SelectorCode, 0xb), flat(boot.SelectorData, 0x3)
	s.Cs, s.Ds, s.Es, s.Fs, s.Gs, s.Ss = code, data, data, data, data, data
	s.Tr = kvm.Segment{Limit: 0x67, Selector: boot.SelectorTask, Type: 0xb, Present: 1}
	s.Ldt = kvm.Segment{Unusable: 1}
	s.Idt = kvm.DTable{}
	s.Cr0, s.Cr3, s.Cr4, s.Efer = cr0PE|cr0ET, 0, 0, 0
}

// longMode is 64-bit mode.
func longMode(s *kvm.Sregs, cr3 uint64) {
	protectedMode(s)
	s.Cs.L, s.Cs.Db = 1, 0
	s.Cr0, s.Cr3, s.Cr4, s.Efer = cr0PE|cr0ET|cr0PG, cr3, cr4PAE, eferLME|eferLMA
}

// flat is a segment of all 4 GiB.
func flat(selector uint16, kind uint8) kvm.Segment {
	return kvm.Segment{Limit: 0xffff_ffff, Selector: selector, Type: kind, Present: 1, S: 1, Db: 1, G: 1}
}
