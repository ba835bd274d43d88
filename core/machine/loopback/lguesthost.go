package loopback

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/transport/lguest"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
)

// lguestHost is the host's kernel of a machine with the lguest bus: what drivers/lguest was to its Launcher.
type lguestHost struct {
	mu          sync.Mutex
	initialized bool
	pfnLimit    uint64
	// kicks is scanned from its start and never shrinks, as the original's: the first entry for an address wins.
	kicks []kickEntry
	lines map[uint32]*line
}

type kickEntry struct {
	address guestmem.GPA
	fd      int
}

// line is one interrupt line: who waits sees it raised once, however often it was.
type line struct {
	fd   int // raises it
	wait *eventfd.Waiter
}

// Initialize implements lguest.Requests.
func (h *lguestHost) Initialize(_, pfnLimit, _ uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.initialized {
		return fmt.Errorf("initialize: %w", unix.EBUSY)
	}
	h.initialized, h.pfnLimit = true, pfnLimit
	return nil
}

// EventFD implements lguest.Requests.
func (h *lguestHost) EventFD(address guestmem.GPA, fd int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.initialized || address == 0 {
		return fmt.Errorf("eventfd: %w", unix.EINVAL)
	}
	own, err := duplicate(fd)
	if err != nil {
		return err
	}
	h.kicks = append(h.kicks, kickEntry{address, own})
	return nil
}

// IRQ implements lguest.Requests.
func (h *lguestHost) IRQ(irq uint32) error {
	l, err := h.line(irq, -1)
	if err != nil {
		return err
	}
	return eventfd.Signal(l.fd)
}

// directHost is a lguestHost that raises interrupts by itself.
type directHost struct{ *lguestHost }

// IRQFD implements lguest.IRQFD.
func (h directHost) IRQFD(irq uint32, fd int) error {
	_, err := h.line(irq, fd)
	return err
}

// line is interrupt line irq. The first call for it makes it: signals of fd raise it, or if that is -1, those of an eventfd of
// its own.
func (h *lguestHost) line(irq uint32, fd int) (*line, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.initialized || irq > lguest.MaxRings {
		return nil, fmt.Errorf("irq %d: %w", irq, unix.EINVAL)
	}
	if l := h.lines[irq]; l != nil {
		return l, nil
	}
	var own int
	var err error
	if fd >= 0 {
		own, err = duplicate(fd)
	} else if own, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		err = os.NewSyscallError("eventfd", err)
	}
	if err != nil {
		return nil, err
	}
	l := &line{fd: own}
	if l.wait, err = eventfd.NewWaiter(own); err != nil {
		return nil, errors.Join(err, unix.Close(own))
	}
	if h.lines == nil {
		h.lines = map[uint32]*line{}
	}
	h.lines[irq] = l
	return l, nil
}

// signalled is a NOTIFY that an eventfd is registered for; false: there is none.
func (h *lguestHost) signalled(address guestmem.GPA) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.kicks {
		if k.address == address {
			return eventfd.Signal(k.fd) == nil
		}
	}
	return false
}

// close frees the descriptors; nobody waits any more.
func (h *lguestHost) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, k := range h.kicks {
		errs = append(errs, unix.Close(k.fd))
	}
	for _, l := range h.lines {
		errs = append(errs, l.wait.Close())
	}
	h.kicks, h.lines = nil, nil
	return errors.Join(errs...)
}

func duplicate(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return n, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
}
