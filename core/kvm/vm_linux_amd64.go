package kvm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// VM is a virtual machine. Its methods may be called from any goroutine until Close. KVM itself keeps a VM until its virtual
// CPUs are closed too.
type VM struct {
	fd       int
	mmapSize int
}

// SetUserMemoryRegion makes memory slot slot: the bytes of mem, a mapping that must outlive the VM, are at guest-physical
// address gpa. Both are multiples of a page. An empty mem removes the slot. readonly: the guest's writes become exits
// (CapReadonlyMem).
func (vm *VM) SetUserMemoryRegion(slot uint32, gpa uint64, mem []byte, readonly bool) error {
	r := userMemoryRegion{Slot: slot, Guest_phys_addr: gpa, Memory_size: uint64(len(mem))}
	if len(mem) > 0 {
		r.Userspace_addr = AddressOf(mem)
	}
	if readonly {
		r.Flags = memReadonly
	}
	if _, err := retry(func() (int, error) { return ioctlStruct(vm.fd, reqSetUserMemoryRegion, &r) }); err != nil {
		return fmt.Errorf("memory slot %d: %#x+%#x: %w", slot, gpa, len(mem), os.NewSyscallError("ioctl(KVM_SET_USER_MEMORY_REGION)", err))
	}
	return nil
}

// SetTSSAddr places three pages that Intel's processors need for real mode; nothing of the guest may be there, below 4 GiB.
func (vm *VM) SetTSSAddr(gpa uint32) error {
	_, err := ioctl(vm.fd, reqSetTSSAddr, uintptr(gpa))
	return os.NewSyscallError("ioctl(KVM_SET_TSS_ADDR)", err)
}

// SetIdentityMapAddr places one page of the same kind.
func (vm *VM) SetIdentityMapAddr(gpa uint64) error {
	_, err := ioctlStruct(vm.fd, reqSetIdentityMapAddr, &gpa)
	return os.NewSyscallError("ioctl(KVM_SET_IDENTITY_MAP_ADDR)", err)
}

// CreateIRQChip makes the interrupt controllers: PIC, I/O APIC, and a local APIC for each virtual CPU made later.
func (vm *VM) CreateIRQChip() error {
	_, err := ioctl(vm.fd, reqCreateIRQChip, 0)
	return os.NewSyscallError("ioctl(KVM_CREATE_IRQCHIP)", err)
}

// CreatePIT2 makes the interval timer, with a speaker port that nobody hears. It needs the interrupt controllers.
func (vm *VM) CreatePIT2() error {
	c := pitConfig{Flags: pitSpeakerDummy}
	_, err := ioctlStruct(vm.fd, reqCreatePIT2, &c)
	return os.NewSyscallError("ioctl(KVM_CREATE_PIT2)", err)
}

// IRQLine sets interrupt line gsi to a level.
func (vm *VM) IRQLine(gsi uint32, high bool) error {
	l := irqLevel{Irq: gsi}
	if high {
		l.Level = 1
	}
	_, err := ioctlStruct(vm.fd, reqIRQLine, &l)
	return os.NewSyscallError("ioctl(KVM_IRQ_LINE)", err)
}

// IRQFD makes each count written to the eventfd fd an edge of line gsi, until UnassignIRQFD or the end of the VM. KVM keeps
// the eventfd alive; the descriptor stays the caller's. An eventfd has one line; a line may have many eventfds.
func (vm *VM) IRQFD(fd int, gsi uint32) error { return vm.irqfd(fd, gsi, 0) }

// UnassignIRQFD undoes IRQFD.
func (vm *VM) UnassignIRQFD(fd int, gsi uint32) error { return vm.irqfd(fd, gsi, irqfdFlagDeassign) }

func (vm *VM) irqfd(fd int, gsi, flags uint32) error {
	_, err := ioctlStruct(vm.fd, reqIRQFD, &irqfd{Fd: uint32(fd), Gsi: gsi, Flags: flags}) //nolint:gosec // a descriptor
	if err != nil {
		return fmt.Errorf("interrupt line %d: %w", gsi, os.NewSyscallError("ioctl(KVM_IRQFD)", err))
	}
	return nil
}

// Doorbell is a write by the guest that KVM turns into a count on an eventfd, without an exit.
type Doorbell struct {
	// PIO: Addr is a port; otherwise a guest-physical address.
	PIO  bool
	Addr uint64
	// Len is the size of the write in bytes: 1, 2, 4 or 8.
	Len uint32
	// Match: only writes of Value count.
	Match bool
	Value uint64
}

// IOEventFD makes each write that d describes a count on the eventfd fd, until UnassignIOEventFD or the end of the VM. KVM
// keeps the eventfd alive; the descriptor stays the caller's. EEXIST if two of them would take the same write.
func (vm *VM) IOEventFD(fd int, d Doorbell) error { return vm.ioeventfd(fd, d, 0) }

// UnassignIOEventFD undoes IOEventFD: d must be the same.
func (vm *VM) UnassignIOEventFD(fd int, d Doorbell) error {
	return vm.ioeventfd(fd, d, ioeventfdFlagDeassign)
}

func (vm *VM) ioeventfd(fd int, d Doorbell, flags uint32) error {
	io := ioeventfd{Addr: d.Addr, Len: d.Len, Flags: flags, Fd: int32(fd)} //nolint:gosec // a descriptor
	if d.PIO {
		io.Flags |= ioeventfdFlagPIO
	}
	if d.Match {
		io.Flags |= ioeventfdFlagDatamatch
		io.Datamatch = d.Value
	}
	if _, err := ioctlStruct(vm.fd, reqIOEventFD, &io); err != nil {
		return fmt.Errorf("doorbell %#x: %w", d.Addr, os.NewSyscallError("ioctl(KVM_IOEVENTFD)", err))
	}
	return nil
}

// IOAPIC are the redirection entries of the I/O APIC (its data sheet, 3.2.4); ok: KVM told them. Some emulations of KVM do not.
func (vm *VM) IOAPIC() (entries [IOAPICPins]uint64, ok bool) {
	s := ioapicState{Chip_id: irqchipIOAPIC}
	_, err := ioctlStruct(vm.fd, reqGetIRQChip, &s)
	return s.Redirtbl, err == nil && s.Base_address != 0
}

// CreateVCPU makes virtual CPU id, which is its APIC id too. With interrupt controllers made, number 0 is ready to run and
// the others wait for INIT and SIPI.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := retry(func() (int, error) { return ioctl(vm.fd, reqCreateVCPU, uintptr(id)) })
	if err != nil {
		return nil, fmt.Errorf("virtual CPU %d: %w", id, os.NewSyscallError("ioctl(KVM_CREATE_VCPU)", err))
	}
	unix.CloseOnExec(fd)
	v := &VCPU{fd: fd, id: id}
	if v.run, err = unix.Mmap(fd, 0, vm.mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, errors.Join(fmt.Errorf("virtual CPU %d: %w", id, os.NewSyscallError("mmap", err)), v.Close())
	}
	return v, nil
}

// Close closes the VM: no method may be called any more. Idempotent.
func (vm *VM) Close() error { return closeFD(&vm.fd) }
