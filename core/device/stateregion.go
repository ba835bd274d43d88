package device

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// stateRegionBytes is the size of a state region (docs/plugin-protocol.md, "Device state"): two slots of 32 KiB.
const stateRegionBytes = 64 << 10

// StateRegion is where a device's plugin instances keep what the driver told them, for the next one
// (docs/plugin-protocol.md, "Device state"). It lives as long as the device, whatever becomes of the plugin.
type StateRegion struct{ f *os.File }

// NewStateRegion makes an empty region: a memfd whose size nobody can change any more.
func NewStateRegion() (*StateRegion, error) {
	f, err := sealedMemfd("virtplug-state", stateRegionBytes, nil)
	if err != nil {
		return nil, fmt.Errorf("state region: %w", err)
	}
	return &StateRegion{f}, nil
}

// FD is what pluginrpc.Settings.State takes. It is the region's.
func (r *StateRegion) FD() int { return int(r.f.Fd()) }

// Clear makes the region hold nothing. No instance may be writing to it.
func (r *StateRegion) Clear() error {
	var zero [8]byte
	for _, at := range []int64{0, stateRegionBytes / 2} { // the sequence of each slot
		if _, err := r.f.WriteAt(zero[:], at); err != nil {
			return fmt.Errorf("clear state region: %w", err)
		}
	}
	return nil
}

// Close gives the region up; instances keep what they have mapped. Idempotent.
func (r *StateRegion) Close() error {
	if err := r.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close state region: %w", err)
	}
	return nil
}

// sealedMemfd makes a memfd of size bytes that begins with head. Its size is sealed, so that who maps it cannot be made to fault.
func sealedMemfd(name string, size int64, head []byte) (*os.File, error) {
	n, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(n), name)
	if err = f.Truncate(size); err == nil && len(head) > 0 {
		_, err = f.WriteAt(head, 0)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(n), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
		err = os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
