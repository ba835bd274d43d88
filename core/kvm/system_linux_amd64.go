package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Device is where KVM is found.
const Device = "/dev/kvm"

// Errors of Open.
var (
	// ErrMissing: there is no such device, or nothing behind it.
	ErrMissing = errors.New("KVM is not there")
	// ErrPermission: this user may not use it.
	ErrPermission = errors.New("KVM may not be used")
	// ErrVersion: it speaks another version of the interface, or is not KVM.
	ErrVersion = errors.New("not the KVM interface that we know")
)

// Cap is something that KVM may be able to do, one of the Cap constants.
type Cap uintptr

// System is an open /dev/kvm. Its methods may be called from any goroutine until Close.
type System struct {
	fd       int
	mmapSize int
}

// Open opens path, which is Device as a rule. ErrMissing, ErrPermission or ErrVersion tell why it cannot.
func Open(path string) (*System, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("open %s: %w: %w", path, ErrMissing, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open %s: %w: %w", path, ErrPermission, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s := &System{fd: fd}
	version, err := ioctl(fd, reqGetAPIVersion, 0)
	if err != nil || version != APIVersion {
		return nil, errors.Join(fmt.Errorf("open %s: %w: version %d, want %d", path, ErrVersion, version, APIVersion), s.Close())
	}
	if s.mmapSize, err = ioctl(fd, reqGetVCPUMmapSize, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, os.NewSyscallError("ioctl(KVM_GET_VCPU_MMAP_SIZE)", err)), s.Close())
	}
	return s, nil
}

// Check is what KVM says about c: 0 if it cannot, another number otherwise, whose meaning depends on c.
func (s *System) Check(c Cap) int {
	n, err := ioctl(s.fd, reqCheckExtension, uintptr(c))
	if err != nil {
		return 0
	}
	return n
}

// maxCPUID is how many leaves we can take; arbitrary, hosts have about 50, and Linux knows at most 256.
const maxCPUID = 256

type cpuidTable struct {
	head    cpuidHead
	entries [maxCPUID]CPUIDEntry
}

// SupportedCPUID are the leaves that a virtual CPU of this host can have.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	var t cpuidTable
	t.head.Nent = maxCPUID
	if _, err := ioctlStruct(s.fd, reqGetSupportedCPUID, &t); err != nil {
		return nil, os.NewSyscallError("ioctl(KVM_GET_SUPPORTED_CPUID)", err)
	}
	return t.entries[:min(t.head.Nent, maxCPUID)], nil
}

// CreateVM makes a virtual machine with nothing in it. It outlives s.
func (s *System) CreateVM() (*VM, error) {
	fd, err := retry(func() (int, error) { return ioctl(s.fd, reqCreateVM, 0) })
	if err != nil {
		return nil, os.NewSyscallError("ioctl(KVM_CREATE_VM)", err)
	}
	unix.CloseOnExec(fd)
	return &VM{fd: fd, mmapSize: s.mmapSize}, nil
}

// Close closes the device. Idempotent.
func (s *System) Close() error { return closeFD(&s.fd) }

// closeFD closes *fd once.
func closeFD(fd *int) error {
	n := *fd
	if n < 0 {
		return nil
	}
	*fd = -1
	return os.NewSyscallError("close", unix.Close(n))
}

// retry repeats a request that a signal interrupted; Go sends itself many.
func retry(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
