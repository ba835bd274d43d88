package kvm

import (
	"fmt"
)

// Regs reads the general registers.
func (v *VCPU) Regs() (Regs, error) {
	var r Regs
	err := call(v, "KVM_GET_REGS", reqGetRegs, &r)
	return r, err
}

// SetRegs sets the general registers.
func (v *VCPU) SetRegs(r Regs) error { return call(v, "KVM_SET_REGS", reqSetRegs, &r) }

// Sregs reads the special registers.
func (v *VCPU) Sregs() (Sregs, error) {
	var s Sregs
	err := call(v, "KVM_GET_SREGS", reqGetSregs, &s)
	return s, err
}

// SetSregs sets the special registers.
func (v *VCPU) SetSregs(s Sregs) error { return call(v, "KVM_SET_SREGS", reqSetSregs, &s) }

// FPU reads the floating-point state.
func (v *VCPU) FPU() (FPU, error) {
	var f FPU
	err := call(v, "KVM_GET_FPU", reqGetFPU, &f)
	return f, err
}

// SetFPU sets the floating-point state.
func (v *VCPU) SetFPU(f FPU) error { return call(v, "KVM_SET_FPU", reqSetFPU, &f) }

// LAPIC reads the registers of the local APIC; each is a 32-bit word at a multiple of 16.
func (v *VCPU) LAPIC() (LAPIC, error) {
	var l LAPIC
	err := call(v, "KVM_GET_LAPIC", reqGetLAPIC, &l)
	return l, err
}

// SetLAPIC sets the registers of the local APIC.
func (v *VCPU) SetLAPIC(l LAPIC) error { return call(v, "KVM_SET_LAPIC", reqSetLAPIC, &l) }

// Register reads the register at offset, a multiple of 16 below 0x400.
func (l *LAPIC) Register(offset int) uint32 {
	var n uint32
	for i := range 4 {
		n |= uint32(uint8(l.Regs[offset+i])) << (8 * i) //nolint:gosec // the kernel's type for a byte is signed
	}
	return n
}

// SetRegister changes the register at offset.
func (l *LAPIC) SetRegister(offset int, n uint32) {
	for i := range 4 {
		l.Regs[offset+i] = int8(n >> (8 * i)) //nolint:gosec // the kernel's type for a byte is signed
	}
}

// MPState is what the CPU is doing with respect to the others, one of the MPState constants.
func (v *VCPU) MPState() (uint32, error) {
	var s mpState
	err := call(v, "KVM_GET_MP_STATE", reqGetMPState, &s)
	return s.State, err
}

// SetMPState sets what MPState reads.
func (v *VCPU) SetMPState(s uint32) error {
	return call(v, "KVM_SET_MP_STATE", reqSetMPState, &mpState{State: s})
}

// SetCPUID sets what the CPUID instruction answers; before the first Run.
func (v *VCPU) SetCPUID(entries []CPUIDEntry) error {
	if len(entries) > maxCPUID {
		return fmt.Errorf("virtual CPU %d: %d CPUID leaves: at most %d", v.id, len(entries), maxCPUID)
	}
	var t cpuidTable
	t.head.Nent = uint32(copy(t.entries[:], entries)) //nolint:gosec // at most maxCPUID
	return call(v, "KVM_SET_CPUID2", reqSetCPUID2, &t)
}

// maxMSRs bounds one request; arbitrary, more than anybody sets at once.
const maxMSRs = 32

type msrTable struct {
	head    msrsHead
	entries [maxMSRs]MSR
}

// MSRs reads the model-specific registers that the entries' Index names.
func (v *VCPU) MSRs(entries []MSR) error { return v.msrs("KVM_GET_MSRS", reqGetMSRs, entries) }

// SetMSRs sets model-specific registers. The error names the first one that KVM refuses.
func (v *VCPU) SetMSRs(entries []MSR) error { return v.msrs("KVM_SET_MSRS", reqSetMSRs, entries) }

func (v *VCPU) msrs(name string, req uintptr, entries []MSR) error {
	var t msrTable
	if len(entries) > maxMSRs {
		return fmt.Errorf("virtual CPU %d: %s: %d registers: at most %d", v.id, name, len(entries), maxMSRs)
	}
	t.head.Nmsrs = uint32(copy(t.entries[:], entries)) //nolint:gosec // at most maxMSRs
	n, err := ioctlStruct(v.fd, req, &t)
	switch {
	case err != nil:
		return fmt.Errorf("virtual CPU %d: ioctl(%s): %w", v.id, name, err)
	case n < len(entries):
		return fmt.Errorf("virtual CPU %d: ioctl(%s): register %#x refused", v.id, name, entries[n].Index)
	}
	copy(entries, t.entries[:])
	return nil
}

// Translate finds the guest-physical address of a linear one by the guest's present page tables; ok: it is mapped.
func (v *VCPU) Translate(linear uint64) (physical uint64, ok bool) {
	t := translation{Linear_address: linear}
	if err := call(v, "KVM_TRANSLATE", reqTranslate, &t); err != nil {
		return 0, false
	}
	return t.Physical_address, t.Valid != 0
}
