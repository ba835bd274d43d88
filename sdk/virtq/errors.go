package virtq

import (
	"errors"
	"fmt"
)

// What a driver can do wrong. A *DriverError wraps one of them.
var (
	ErrAvailIndex = errors.New("available index is further ahead than the queue is long")
	ErrHead       = errors.New("head is not in the descriptor table")
	ErrHeadBusy   = errors.New("head is in use already")
	ErrNext       = errors.New("next is not in the descriptor table")
	ErrLoop       = errors.New("chain is longer than its table: a loop")
	ErrOrder      = errors.New("device-readable descriptor after a device-writable one")
	ErrRange      = errors.New("buffer is outside guest memory")
	ErrEmpty      = errors.New("buffer has no bytes")
	ErrTooLong    = errors.New("chain is too long")
	ErrIndirect   = errors.New("indirect descriptor breaks the rules")
	ErrMemory     = errors.New("guest memory could not be accessed")
	ErrUsedIndex  = errors.New("used index does not fit the in-flight region")
)

// DriverError says that the driver broke a rule of the specification. The queue that returned it is broken: it serves
// nothing until reset, and the device sets DEVICE_NEEDS_RESET (VIRTIO 1.2, 2.1.2).
type DriverError struct {
	// Op is what was being done: "pop".
	Op string
	// Queue is the queue's number, Head the chain's head if there was one.
	Queue int
	Head  uint16
	// Section is where the specification forbids it.
	Section string
	// Err is one of the errors above, possibly wrapped with detail.
	Err error
}

// Error gives "op: queue N, head H: cause (VIRTIO 1.2, section)".
func (e *DriverError) Error() string {
	return fmt.Sprintf("%s: queue %d, head %d: %v (VIRTIO 1.2, %s)", e.Op, e.Queue, e.Head, e.Err, e.Section)
}

// Unwrap gives the cause.
func (e *DriverError) Unwrap() error { return e.Err }
