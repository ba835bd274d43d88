package kvm

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/core/boot/acpi"
	"github.com/virtplug/virtplug/sdk/eventfd"
)

// bus is how the driver finds and reaches its devices.
type bus interface {
	// memory is what the bus needs of guest-physical memory besides RAM; Size 0: nothing. Devices see it as RAM. An error if the
	// devices cannot be on this bus.
	memory() (boot.Range, error)
	// attach gives the devices guest memory and notifications, and readies them for a driver. ctx is the guest's life: when
	// it ends, what waits for a device returns. After an error too, detach is called.
	attach(ctx context.Context, r *run) error
	// begin makes memory the guest's; entry is where it begins.
	begin(r *run, entry *boot.Entry) error
	// describe adds the bus to the ACPI tables.
	describe(c *acpi.Config)
	// port is an access of a virtual CPU to a port that is none of the machine's; false: none of the bus's either.
	port(v *vcpu, port uint16, out bool, p []byte) bool
	// access is an access to memory that is not there, or may only be read; false: none of the bus's.
	access(addr uint64, write bool, p []byte) bool
	// detach resets the devices and takes back what attach gave. No virtual CPU runs any more.
	detach(ctx context.Context) error
}

// files are descriptors that end together.
type files []*os.File

// eventfd makes one that ends with f.
func (f *files) eventfd() (*os.File, error) {
	e, err := eventfd.New()
	if err == nil {
		*f = append(*f, e)
	}
	return e, err
}

func (f *files) close() {
	for _, e := range *f {
		_ = e.Close()
	}
	*f = nil
}

// dup is another descriptor of f's.
func dup(f *os.File) (*os.File, error) {
	n, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
	}
	return os.NewFile(uintptr(n), f.Name()), nil
}

// fd is f's descriptor. Eventfds that we make block anyway, so that Fd changes nothing.
func fd(f *os.File) int { return int(f.Fd()) }
