package main

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/vecio"
)

// tapDrops bounds what one Receive drops, so that a flood of frames that fit nowhere does not keep it from its end. Arbitrary.
const tapDrops = 64

// tapPort is one queue of a tap.
type tapPort struct {
	tap    *tap
	fd     int // non-blocking
	waiter *waiter
	// detached: the kernel gives no frames to this queue (IFF_DETACH_QUEUE).
	detached atomic.Bool

	out  vecio.IO // Send's
	flat [1][]byte
	in   vecio.IO // Receive's

	// Frames that were dropped: to an interface that is down; to one without room; that the kernel refused; longer than their
	// room; that could not be read.
	down, full, refused, long, failed atomic.Uint64
}

// attach attaches the queue to the interface or detaches it.
func (p *tapPort) attach(on bool) error {
	if len(p.tap.ports) > 1 && !p.tap.gone.Load() {
		ifr, err := unix.NewIfreq("")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_DETACH_QUEUE)
		if on {
			ifr.SetUint16(unix.IFF_ATTACH_QUEUE)
		}
		// EINVAL: it is so already; a former instance may have left it either way.
		err = unix.IoctlIfreq(p.fd, unix.TUNSETQUEUE, ifr)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBADFD) {
			return err
		}
	}
	p.detached.Store(!on)
	p.Wake()
	return nil
}

// Send implements port. It never waits.
func (p *tapPort) Send(_ context.Context, frames []frame) (dropped int, err error) {
	for i := range frames {
		f := &frames[i]
		err := p.out.WritePacket(p.fd, f.hdr[:], f.bufs)
		if errors.Is(err, vecio.ErrTooMany) {
			err = p.out.WritePacket(p.fd, f.hdr[:], p.flatten(f))
		}
		if err != nil {
			f.dropped = true
			dropped++
			p.count(err)
		}
	}
	return dropped, nil
}

// flatten copies a frame of more buffers than the kernel takes into one.
func (p *tapPort) flatten(f *frame) [][]byte {
	p.flat[0] = slices.Concat(f.bufs...)
	return p.flat[:]
}

// count counts a frame that could not be sent, by reason.
func (p *tapPort) count(err error) {
	e := unix.Errno(0)
	errors.As(err, &e)
	switch {
	case e == unix.EBADFD:
		p.tap.lost()
		p.down.Add(1)
	case e == unix.EIO, e == unix.ENOLINK, e == unix.ENETDOWN: // ENOLINK: a macvtap that is deleted
		p.down.Add(1)
	case errors.Is(err, vecio.ErrWouldBlock), e == unix.ENOBUFS, e == unix.ENOMEM:
		p.full.Add(1)
	default: // EINVAL: shorter than an Ethernet header, or a virtio_net_hdr that the kernel does not like
		p.refused.Add(1)
	}
}

// Receive implements port.
func (p *tapPort) Receive(frames []frame) (int, error) {
	if p.detached.Load() || p.tap.gone.Load() {
		return 0, nil
	}
	n := 0
	for drops := 0; n < len(frames) && drops < tapDrops; {
		f := &frames[n]
		got, err := p.in.ReadPacket(p.fd, f.hdr[:], f.bufs[:min(len(f.bufs), vecio.MaxPacketBuffers)])
		switch {
		case err == nil && got >= len(f.hdr):
			f.n = got - len(f.hdr)
			n++
		case errors.Is(err, vecio.ErrWouldBlock):
			return n, nil
		case errors.Is(err, vecio.ErrTooLong):
			p.long.Add(1)
			drops++
		case errors.Is(err, unix.EFAULT): // guest memory whose file is shorter now; the frame is gone
			p.failed.Add(1)
			drops++
		default: // EBADFD: deleted; nothing else is known
			p.tap.lost()
			return n, nil
		}
	}
	return n, nil
}

// Wait implements port.
func (p *tapPort) Wait(ctx context.Context) error {
	fd := p.fd
	if p.detached.Load() || p.tap.gone.Load() {
		fd = -1
	}
	got, err := p.waiter.wait(ctx, fd, unix.POLLIN, -1)
	if got&(unix.POLLERR|unix.POLLNVAL) != 0 { // it has no interface any more, and would say so at every poll
		p.tap.lost()
	}
	return err
}

// Wake implements port.
func (p *tapPort) Wake() { p.waiter.wake() }
