package kvm

import (
	"encoding/binary"
	"fmt"
)

// ExitReason is why Run returned, one of the Exit constants.
type ExitReason uint32

// String names what people ask about.
func (r ExitReason) String() string {
	switch r {
	case ExitUnknown:
		return "unknown"
	case ExitException:
		return "exception"
	case ExitIO:
		return "port access"
	case ExitDebug:
		return "debug"
	case ExitHLT:
		return "halt"
	case ExitMMIO:
		return "memory access"
	case ExitIRQWindowOpen:
		return "interrupt window"
	case ExitShutdown:
		return "shutdown"
	case ExitFailEntry:
		return "entry failed"
	case ExitIntr:
		return "interrupted"
	case ExitInternalError:
		return "internal error"
	case ExitSystemEvent:
		return "system event"
	}
	return fmt.Sprintf("exit-%d", uint32(r))
}

// u32 and u64 read kvm_run, which the kernel wrote during Run, in this thread.
func (v *VCPU) u32(off int) uint32 { return binary.LittleEndian.Uint32(v.run[off:]) }
func (v *VCPU) u64(off int) uint64 { return binary.LittleEndian.Uint64(v.run[off:]) }

// Reason is why Run returned without an error.
func (v *VCPU) Reason() ExitReason { return ExitReason(v.u32(offExitReason)) }

// PortAccess is an exit's access to a port.
type PortAccess struct {
	Port uint16
	// Size is that of one access in bytes: 1, 2 or 4.
	Size int
	Out  bool
	// Data are the bytes of one access or, for a string instruction, of several, one after another. What is written there
	// is what an input yields. It is valid until the next Run.
	Data []byte
}

// IO is what the guest wants, for ExitIO. Data is empty if KVM gave something that makes no sense.
func (v *VCPU) IO() PortAccess {
	a := PortAccess{
		Port: binary.LittleEndian.Uint16(v.run[offIOPort:]),
		Size: int(v.run[offIOSize]),
		Out:  v.run[offIODirection] == exitIOOut,
	}
	off, n := v.u64(offIODataOffset), uint64(v.run[offIOSize])*uint64(v.u32(offIOCount))
	if size := uint64(len(v.run)); a.Size > 0 && off <= size && n <= size-off {
		a.Data = v.run[off : off+n : off+n]
	}
	return a
}

// MemoryAccess is an exit's access to an address where no memory is, or memory that may not be written.
type MemoryAccess struct {
	Addr  uint64
	Write bool
	// Data are the 1 to 8 bytes of the access. What is written there is what a read yields. It is valid until the next Run.
	Data []byte
}

// MMIO is what the guest wants, for ExitMMIO.
func (v *VCPU) MMIO() MemoryAccess {
	n := min(int(v.u32(offMMIOLen)), sizeMMIOData)
	return MemoryAccess{
		Addr: v.u64(offMMIOAddr), Write: v.run[offMMIOWrite] != 0,
		Data: v.run[offMMIOData : offMMIOData+n : offMMIOData+n],
	}
}

// InternalError is what KVM could not do.
type InternalError struct {
	// Suberror is one of the InternalError constants.
	Suberror uint32
	// Data are details that depend on Suberror and the kernel.
	Data []uint64
	// Instruction are the bytes of the instruction that could not be emulated, where KVM tells.
	Instruction []byte
}

// String says it in words.
func (e InternalError) String() string {
	var s string
	switch e.Suberror {
	case InternalErrorEmulation:
		s = "an instruction could not be emulated"
	case InternalErrorSimulEx:
		s = "exceptions at the same time"
	case InternalErrorDeliveryEvent:
		s = "an event could not be delivered"
	case InternalErrorUnexpectedExitReason:
		s = "an exit of the processor that KVM does not know"
	default:
		s = "of an unknown kind"
	}
	s = fmt.Sprintf("KVM internal error %d: %s", e.Suberror, s)
	switch {
	case len(e.Instruction) > 0:
		s += fmt.Sprintf(" (instruction bytes % x)", e.Instruction)
	case len(e.Data) > 0:
		s += fmt.Sprintf(" (data %#x)", e.Data)
	}
	return s
}

// Internal is what went wrong, for ExitInternalError.
func (v *VCPU) Internal() InternalError {
	e := InternalError{Suberror: v.u32(offSuberror)}
	for i := range min(int(v.u32(offNData)), maxInternalData) {
		e.Data = append(e.Data, v.u64(offData+8*i))
	}
	// Then the first word of data is flags, and the next ones hold the bytes of the instruction.
	if e.Suberror == InternalErrorEmulation && len(e.Data) >= 3 && e.Data[0]&internalErrorFlagInsnBytes != 0 {
		n := min(int(v.run[offInsnSize]), maxInsnBytes)
		e.Instruction = append([]byte(nil), v.run[offInsnBytes:offInsnBytes+n]...)
	}
	return e
}

// FailEntry is the processor's reason why the guest could not be entered, for ExitFailEntry, and on which host CPU.
func (v *VCPU) FailEntry() (reason uint64, cpu uint32) {
	return v.u64(offFailReason), v.u32(offFailCPU)
}

// Unknown is the processor's reason of an exit that KVM does not know, for ExitUnknown.
func (v *VCPU) Unknown() uint64 { return v.u64(offHWReason) }

// SystemEvent is one of the SystemEvent constants, for ExitSystemEvent.
func (v *VCPU) SystemEvent() uint32 { return v.u32(offEventType) }
