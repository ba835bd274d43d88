package kvm

import (
	"fmt"
	"strings"

	"github.com/virtplug/virtplug/core/kvm"
	"github.com/virtplug/virtplug/core/machine"
)

// crash ends the guest because v cannot go on.
func (r *run) crash(v *vcpu, what string) {
	r.finish(machine.Crashed, what+"\n"+r.registers(v.cpu))
}

// crashText says what an exit means that ends the guest.
func crashText(c *kvm.VCPU, reason kvm.ExitReason) string {
	who := fmt.Sprintf("virtual CPU %d: ", c.ID())
	switch reason { //nolint:exhaustive // the others have no more to tell
	case kvm.ExitShutdown:
		return who + "triple fault: an exception while another one was delivered, and no handler for it"
	case kvm.ExitInternalError:
		return who + c.Internal().String()
	case kvm.ExitFailEntry:
		hw, cpu := c.FailEntry()
		return who + fmt.Sprintf("the processor refused to enter the guest: reason %#x, on host CPU %d", hw, cpu)
	case kvm.ExitHLT:
		return who + "halted, and nothing can wake it"
	case kvm.ExitUnknown:
		return who + fmt.Sprintf("an exit that KVM does not know: reason %#x", c.Unknown())
	default:
		return who + "unexpected exit: " + reason.String()
	}
}

// codeBytes is how many bytes at RIP are shown; an instruction has at most 15.
const codeBytes = 16

// Where a processor begins after a reset.
const (
	resetRIP  = 0xfff0
	resetBase = 0xffff_0000
)

// registers describes where a virtual CPU is, for people.
func (r *run) registers(c *kvm.VCPU) string {
	regs, err := c.Regs()
	if err != nil {
		return err.Error()
	}
	s, err := c.Sregs()
	if err != nil {
		return err.Error()
	}
	if regs.Rip == resetRIP && s.Cs.Base == resetBase && s.Cr0&cr0PE == 0 {
		return "registers not known: the processor was reset meanwhile, as those of AMD are by a triple fault"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "rip %016x rflags %08x cs %04x base %x cr0 %08x cr2 %x cr3 %x cr4 %08x efer %x\n",
		regs.Rip, regs.Rflags, s.Cs.Selector, s.Cs.Base, s.Cr0, s.Cr2, s.Cr3, s.Cr4, s.Efer)
	fmt.Fprintf(&b, "rax %016x rbx %016x rcx %016x rdx %016x\n", regs.Rax, regs.Rbx, regs.Rcx, regs.Rdx)
	fmt.Fprintf(&b, "rsi %016x rdi %016x rbp %016x rsp %016x\n", regs.Rsi, regs.Rdi, regs.Rbp, regs.Rsp)
	fmt.Fprintf(&b, "r8  %016x r9  %016x r10 %016x r11 %016x\n", regs.R8, regs.R9, regs.R10, regs.R11)
	fmt.Fprintf(&b, "r12 %016x r13 %016x r14 %016x r15 %016x\n", regs.R12, regs.R13, regs.R14, regs.R15)
	if code := r.bytesAt(c, s.Cs.Base+regs.Rip); code != nil {
		fmt.Fprintf(&b, "code % x", code)
	} else {
		b.WriteString("code not readable")
	}
	return b.String()
}

// bytesAt reads guest memory by linear address, as much as is in one page; nil: nothing is there.
func (r *run) bytesAt(c *kvm.VCPU, linear uint64) []byte {
	at, ok := c.Translate(linear)
	if !ok {
		return nil
	}
	var out []byte
	for _, m := range r.mem.Regions() {
		if off := at - uint64(m.Start); off < uint64(len(m.Data)) {
			n := min(codeBytes, pageSize-at%pageSize, uint64(len(m.Data))-off)
			out = append(out, m.Data[off:off+n]...)
		}
	}
	return out
}

const pageSize = 4096
