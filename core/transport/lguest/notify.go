package lguest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/eventfd"
)

// ring is one virtqueue of a device on the bus.
type ring struct {
	slot   *slot
	index  int
	irq    uint32
	layout Layout
	memory []byte // aliases guest memory: the ring's bytes
	base   uint16 // next entry of the available ring that the device takes

	// kick and call are eventfds for the life of the bus: the device has duplicates. A second one for a later start, as the
	// original had it, would never be signalled, since the host's first entry for an address wins.
	kick, call int
	// stop is an eventfd that ends the goroutines of this ring; it is never read.
	stop int
	// registered: the host signals kick by itself.
	registered bool
	// listening: the goroutine hear takes kicks, since the device is not started; change tells it that this has changed, and is
	// -1 before there is one. Guarded by slot.mu.
	listening bool
	change    int
}

// open makes the notifications and gives the device its own. The caller calls close whatever happens.
func (r *ring) open(ctx context.Context) (err error) {
	// The kick descriptor blocks: a plugin's wait then is one system call. The call descriptor does not, since here is who waits.
	if r.kick, err = newEventfd(0); err != nil {
		return err
	}
	if r.call, err = newEventfd(unix.EFD_NONBLOCK); err != nil {
		return err
	}
	if r.stop, err = newEventfd(unix.EFD_NONBLOCK); err != nil {
		return err
	}
	kick, err := duplicate(r.kick, "kick")
	if err != nil {
		return err
	}
	if err := r.slot.dev.SetKick(ctx, r.index, kick); err != nil {
		return err
	}
	call, err := duplicate(r.call, "call")
	if err != nil {
		return err
	}
	return r.slot.dev.SetCall(ctx, r.index, call)
}

func newEventfd(flags int) (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|flags)
	if err != nil {
		return -1, os.NewSyscallError("eventfd", err)
	}
	return fd, nil
}

func duplicate(fd int, name string) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
	}
	return os.NewFile(uintptr(n), name), nil
}

// start serves the ring from its base on. slot.mu is held.
func (r *ring) start(ctx context.Context) error {
	d := r.slot.dev
	if err := d.SetQueue(r.index, r.layout.Size, r.layout.Desc, r.layout.Avail, r.layout.Used); err != nil {
		return err
	}
	if err := d.SetQueueBase(r.index, r.base); err != nil {
		return err
	}
	if !r.registered {
		// Once for the life of the bus, and not before the first start: a guest before Linux 3.1 starts the device by a kick.
		if err := r.slot.bus.opts.Requests.EventFD(r.layout.Desc, r.kick); err != nil {
			r.slot.log.Warn("kicks pass through the launcher", "ring", r.index, "error", err)
		} else {
			r.registered = true
		}
	}
	r.deaf() // before the device takes kicks: two readers would take them from each other
	return d.StartQueue(ctx, r.index)
}

// signal is a kick that reached the launcher.
func (r *ring) signal() { device.Signal(r.kick) }

// take takes what an eventfd has counted and tells whether it was anything. It does not block even if the descriptor does and
// a plugin takes the count at the same time.
func take(fd int) bool {
	var b [8]byte
	for {
		n, err := unix.Preadv2(fd, [][]byte{b[:]}, -1, unix.RWF_NOWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) { // before Linux 5.8: an eventfd has no such thing
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // G115: a descriptor
			if k, err := unix.Poll(p, 0); err != nil || k != 1 {
				return false
			}
			n, err = unix.Read(fd, b[:])
			return err == nil && n == 8
		}
		return err == nil && n == 8
	}
}

// wait waits until one of fds can be read or the ring ends; false: it ends.
func (r *ring) wait(fds ...int) bool {
	p := []unix.PollFd{{Fd: int32(r.stop), Events: unix.POLLIN}} //nolint:gosec // G115: a descriptor
	for _, fd := range fds {
		p = append(p, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}) //nolint:gosec // G115: a descriptor
	}
	for {
		if _, err := unix.Poll(p, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			r.slot.log.Error("wait for notifications", "ring", r.index, "error", os.NewSyscallError("poll", err))
			return false
		}
		return p[0].Revents == 0
	}
}

// relay raises the ring's interrupt whenever its call eventfd is signalled, for a host that cannot do that by itself.
func (r *ring) relay() {
	r.slot.bus.workers.Go(func() {
		for r.wait(r.call) {
			if !take(r.call) {
				runtime.Gosched() // somebody else took it: a plugin should not, but may
				continue
			}
			if err := r.slot.bus.opts.Requests.IRQ(r.irq); err != nil {
				r.slot.bus.quiet.error("raise interrupt", "device", r.slot.dev.Name(), "ring", r.index, "error", err)
			}
		}
	})
}

// listen hears the kicks of a device that was started before and is not now: the host signals them to its eventfds, and a
// guest before Linux 3.1 starts the device so. slot.mu is held.
func (s *slot) listen() {
	for _, r := range s.rings {
		if !r.registered || r.listening {
			continue
		}
		r.listening = true
		if r.change < 0 {
			fd, err := newEventfd(unix.EFD_NONBLOCK)
			if err != nil {
				s.log.Error("listen for kicks", "ring", r.index, "error", err)
				return
			}
			r.change = fd
			s.bus.workers.Go(r.hear)
			continue
		}
		_ = eventfd.Signal(r.change) // it cannot be full
	}
}

// deaf ends listen: from now on kicks are the plugin's. slot.mu is held.
func (r *ring) deaf() {
	if r.listening {
		r.listening = false
		_ = eventfd.Signal(r.change) // it cannot be full
	}
}

// hear is the goroutine behind listen. It looks at the kick descriptor without taking anything from it, unless the device does
// not run.
func (r *ring) hear() {
	b, s := r.slot.bus, r.slot
	for {
		s.mu.Lock()
		fds := []int{r.change, r.kick}
		if !r.listening {
			fds = fds[:1]
		}
		s.mu.Unlock()
		if !r.wait(fds...) {
			return
		}
		take(fds[0])
		b.life.RLock()
		s.mu.Lock()
		kicked := !b.closed && r.listening && take(r.kick)
		s.mu.Unlock()
		if kicked {
			s.kicked(context.Background(), r)
		}
		b.life.RUnlock()
	}
}

// end ends the ring's goroutines. Any number of times.
func (r *ring) end() {
	if r.stop >= 0 {
		_ = eventfd.Signal(r.stop) // it cannot be full
	}
}

// close frees the descriptors. The goroutines have ended.
func (r *ring) close() error {
	var errs []error
	for _, fd := range []*int{&r.kick, &r.call, &r.stop, &r.change} {
		if *fd >= 0 {
			errs = append(errs, os.NewSyscallError("close", unix.Close(*fd)))
			*fd = -1
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("ring %d: %w", r.index, err)
	}
	return nil
}
