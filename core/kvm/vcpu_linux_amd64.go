package kvm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// VCPU is a virtual CPU. All methods but ImmediateExit belong to one goroutine, and Run to one thread: KVM is slow, or
// refuses, if it changes. None may be called after Close.
type VCPU struct {
	fd, id int
	run    []byte // kvm_run, and the data of port accesses behind it
}

// ID is the number that the CPU was made with.
func (v *VCPU) ID() int { return v.id }

// Run lets the guest execute until an exit, which Reason and its kind's method tell. EINTR: a signal came, or ImmediateExit
// was set; EAGAIN: the CPU was waiting for INIT and may go on. Neither is a failure.
func (v *VCPU) Run() error {
	_, err := ioctl(v.fd, reqRun, 0)
	return err
}

// ImmediateExit makes Run return EINTR at once, also a later one, until it is set to false. Any goroutine. A Run that is in
// the guest already needs a signal to its thread as well.
func (v *VCPU) ImmediateExit(on bool) { storeImmediateExit(v.run, on) }

// ClockStopped tells the guest that it was stopped for a while, lest it complain of a lockup. An error if it does not use
// KVM's clock.
func (v *VCPU) ClockStopped() error {
	_, err := ioctl(v.fd, reqClockCtrl, 0)
	return os.NewSyscallError("ioctl(KVM_KVMCLOCK_CTRL)", err)
}

// Close closes the virtual CPU. Idempotent.
func (v *VCPU) Close() error {
	if v.run != nil {
		if err := unix.Munmap(v.run); err != nil {
			return os.NewSyscallError("munmap", err)
		}
		v.run = nil
	}
	return closeFD(&v.fd)
}

// call makes a request of the virtual CPU.
func call[T any](v *VCPU, name string, req uintptr, arg *T) error {
	if _, err := ioctlStruct(v.fd, req, arg); err != nil {
		return fmt.Errorf("virtual CPU %d: %w", v.id, os.NewSyscallError("ioctl("+name+")", err))
	}
	return nil
}
