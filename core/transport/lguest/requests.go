package lguest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// Requests is the host as the launcher sees it: the three requests that lguest's Launcher made of /dev/lguest. The launcher's
// side of the bus uses nothing else.
//
// Bus makes the calls: Initialize once, then, in any order and from any goroutine, the others.
type Requests interface {
	// Initialize (LHREQ_INITIALIZE) says where guest memory is in this process (base is the address of guest-physical 0), how
	// many pages of it the guest may use, device page and rings included, and at which address the guest starts.
	Initialize(base, pfnLimit, start uint64) error
	// IRQ (LHREQ_IRQ) raises an interrupt, 1 to 31 (0 is the timer's). A host that implements IRQFD is not asked.
	IRQ(irq uint32) error
	// EventFD (LHREQ_EVENTFD) makes the guest's notifications of address, which is not 0, signal the eventfd fd, by 1 each, in
	// stead of reaching Bus.Notify. fd stays the bus's and is open as long as the bus is; it is registered once for an address.
	EventFD(address guestmem.GPA, fd int) error
}

// IRQFD is implemented by Requests whose host raises interrupts by itself when an eventfd is signalled, so that no used
// buffer notification passes through the launcher (KVM_IRQFD). It is called once for each interrupt, after Initialize.
type IRQFD interface {
	// IRQFD makes each signal of the eventfd fd raise interrupt irq. fd stays the bus's and is open as long as the bus is.
	IRQFD(irq uint32, fd int) error
}

// Op is the first word of a request.
type Op uint

// Requests: enum lguest_req of lguest_launcher.h.
const (
	OpInitialize Op = 0 // base, pfnlimit, start
	OpGetDMA     Op = 1 // no longer used
	OpIRQ        Op = 2 // irq
	OpBreak      Op = 3 // no longer used
	OpEventFD    Op = 4 // address, fd
)

// String is the name in lguest_launcher.h.
func (o Op) String() string {
	switch o {
	case OpInitialize:
		return "LHREQ_INITIALIZE"
	case OpGetDMA:
		return "LHREQ_GETDMA"
	case OpIRQ:
		return "LHREQ_IRQ"
	case OpBreak:
		return "LHREQ_BREAK"
	case OpEventFD:
		return "LHREQ_EVENTFD"
	}
	return fmt.Sprintf("LHREQ_%d", uint(o))
}

// words is how many words follow the first; ok is false for what is not a request, or no longer one.
func (o Op) words() (n int, ok bool) {
	switch o {
	case OpInitialize:
		return 3, true
	case OpIRQ:
		return 1, true
	case OpEventFD:
		return 2, true
	case OpGetDMA, OpBreak:
	}
	return 0, false
}

// irqLimit is LGUEST_IRQS: interrupts are numbered below it.
const irqLimit = 32

// Request is one request to the host. Which fields count depends on Op; the others are 0.
type Request struct {
	Op Op
	// Base, PFNLimit and Start are OpInitialize's.
	Base, PFNLimit, Start uint64
	// IRQ is OpIRQ's, below 32.
	IRQ uint32
	// Address, not 0, and FD, not negative, are OpEventFD's.
	Address guestmem.GPA
	FD      int
}

// ErrRequest is wrapped by the errors about requests that the host would not take: unused, unknown, of the wrong length, or
// with a value that is not allowed.
var ErrRequest = errors.New("bad request")

func (r Request) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%v: %w: %s", r.Op, ErrRequest, fmt.Sprintf(format, args...))
	}
	if _, ok := r.Op.words(); !ok {
		if r.Op == OpGetDMA || r.Op == OpBreak {
			return bad("no longer used")
		}
		return bad("no such request")
	}
	switch {
	case r.Op == OpIRQ && r.IRQ >= irqLimit:
		return bad("irq %d: at most %d", r.IRQ, irqLimit-1)
	case r.Op == OpEventFD && r.Address == 0:
		return bad("address 0 cannot be notified")
	case r.Op == OpEventFD && (r.FD < 0 || r.FD > math.MaxInt32):
		return bad("descriptor %d", r.FD)
	}
	return nil
}

// Append writes the request's words behind dst: unsigned longs of wordSize bytes (4 or 8) in this machine's byte order.
// ErrRequest if it is not one that DecodeRequest takes, or a value needs more than a word.
func (r Request) Append(dst []byte, wordSize int) ([]byte, error) {
	if err := r.check(); err != nil {
		return dst, err
	}
	words := []uint64{uint64(r.Op)}
	switch r.Op {
	case OpInitialize:
		words = append(words, r.Base, r.PFNLimit, r.Start)
	case OpIRQ:
		words = append(words, uint64(r.IRQ))
	case OpEventFD:
		words = append(words, uint64(r.Address), uint64(r.FD)) //nolint:gosec // G115: check
	case OpGetDMA, OpBreak:
	}
	out := dst
	for i, w := range words {
		switch {
		case wordSize == 8:
			out = binary.NativeEndian.AppendUint64(out, w)
		case wordSize == 4 && w <= math.MaxUint32:
			out = binary.NativeEndian.AppendUint32(out, uint32(w))
		case wordSize == 4:
			return dst, fmt.Errorf("%v: %w: word %d: %#x does not fit into 32 bits", r.Op, ErrRequest, i, w)
		default:
			return dst, fmt.Errorf("%v: %w: words of %d bytes: want 4 or 8", r.Op, ErrRequest, wordSize)
		}
	}
	return out, nil
}

// DecodeRequest reads a request of words of wordSize bytes (4 or 8). ErrRequest for unused and unknown requests, for too few
// or too many bytes, and for values that the host refuses.
func DecodeRequest(b []byte, wordSize int) (Request, error) {
	bad := func(op Op, format string, args ...any) (Request, error) {
		return Request{}, fmt.Errorf("%v: %w: %s", op, ErrRequest, fmt.Sprintf(format, args...))
	}
	if wordSize != 4 && wordSize != 8 {
		return Request{}, fmt.Errorf("%w: words of %d bytes: want 4 or 8", ErrRequest, wordSize)
	}
	if len(b) < wordSize {
		return Request{}, fmt.Errorf("%w: %d bytes: less than one word", ErrRequest, len(b))
	}
	word := func(i int) uint64 {
		if wordSize == 4 {
			return uint64(binary.NativeEndian.Uint32(b[4*i:]))
		}
		return binary.NativeEndian.Uint64(b[8*i:])
	}
	op := word(0)
	if op > uint64(OpEventFD) {
		return Request{}, fmt.Errorf("%w: first word %#x: no such request", ErrRequest, op)
	}
	r := Request{Op: Op(op)}
	n, ok := r.Op.words()
	if !ok {
		return Request{}, r.check()
	}
	if want := (n + 1) * wordSize; len(b) != want {
		return bad(r.Op, "%d bytes: want %d", len(b), want)
	}
	switch r.Op {
	case OpInitialize:
		r.Base, r.PFNLimit, r.Start = word(1), word(2), word(3)
	case OpIRQ:
		if word(1) >= irqLimit {
			return bad(r.Op, "irq %d: at most %d", word(1), irqLimit-1)
		}
		r.IRQ = uint32(word(1)) //nolint:gosec // G115: checked
	case OpEventFD:
		if word(2) > math.MaxInt32 {
			return bad(r.Op, "descriptor %#x", word(2))
		}
		r.Address, r.FD = guestmem.GPA(word(1)), int(word(2)) //nolint:gosec // G115: checked
	case OpGetDMA, OpBreak:
	}
	if err := r.check(); err != nil {
		return Request{}, err
	}
	return r, nil
}

// Do carries the request out.
func (r Request) Do(to Requests) error {
	if err := r.check(); err != nil {
		return err
	}
	switch r.Op {
	case OpInitialize:
		return to.Initialize(r.Base, r.PFNLimit, r.Start)
	case OpIRQ:
		return to.IRQ(r.IRQ)
	case OpEventFD:
		return to.EventFD(r.Address, r.FD)
	case OpGetDMA, OpBreak:
	}
	return nil
}
