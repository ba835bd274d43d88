package tap

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// headerSize is the virtio_net_hdr that every packet has before it, with num_buffers (VIRTIO 1.2, 5.1.6.1).
const headerSize = 12

const tunDevice = "/dev/net/tun"

// Tap is an opened interface. Its methods are called by one goroutine at a time.
type Tap struct {
	// Name is the interface's real name.
	Name string
	// Index is the kernel's number of it.
	Index int
	// MTU in bytes.
	MTU int
	// Made tells that it did not exist before.
	Made bool
	// Queues are its descriptors, non-blocking, close-on-exec, with headers of 12 bytes, little-endian. They are the Tap's.
	Queues []int

	undo       []func() error // first to last
	headerWas  int            // the header's size before; 0: not known
	persistent bool           // it was there before without a descriptor
}

// Open opens the interface that c names or makes it, makes it as c says, and brings it up. On error everything is as before.
// Errors are *Error or a join of these; they say what to do.
func Open(c Config) (*Tap, error) {
	c.Queues = max(c.Queues, 1)
	if err := c.Check(); err != nil {
		return nil, err
	}
	t := &Tap{}
	p := &plan{}
	var err error
	if isPath(c.Name) {
		err = t.openMacvtap(c)
	} else if p, err = look(c); err == nil {
		t.Made, t.persistent = p.existing == nil, p.tun != nil && p.tun.Mode != 0 && !p.tun.NonPersist
		err = t.openQueues(c, p)
	}
	if err == nil {
		err = t.configure(c, p)
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Close takes from the interface what Open gave it, and closes the descriptors. An interface that Open made goes when the
// last copy of them is closed. Idempotent.
func (t *Tap) Close() error {
	var errs []error
	for _, f := range slices.Backward(t.undo) {
		if err := f(); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("interface %s: %w", t.Name, err))
		}
	}
	if len(t.Queues) > 0 {
		errs = append(errs, t.restore(t.Queues[0]))
	}
	for _, fd := range t.Queues {
		errs = append(errs, os.NewSyscallError("close", unix.Close(fd)))
	}
	t.undo, t.Queues = nil, nil
	return errors.Join(errs...)
}

// restore makes by a descriptor of the interface what it was, for whoever opens it next. A plugin could change this by its own.
func (t *Tap) restore(fd int) error {
	set := func(what string, err error) error {
		if err == nil || errors.Is(err, unix.EBADFD) { // the interface is gone
			return nil
		}
		return fmt.Errorf("interface %s: put back as it was: %w", t.Name, os.NewSyscallError(what, err))
	}
	if t.Made {
		return set("TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0))
	}
	var errs []error
	if t.persistent {
		errs = append(errs, set("TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)))
	}
	errs = append(errs, set("TUNSETOFFLOAD", unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)))
	if t.headerWas != 0 {
		errs = append(errs, set("TUNSETVNETHDRSZ", unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, t.headerWas)))
	}
	return errors.Join(errs...)
}

// gone tells that there is no such interface or address any more.
func gone(err error) bool {
	return isNotFound(err) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL)
}

func openTun() (int, error) {
	fd, err := openDevice(tunDevice)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, wrong(FieldName, "open %s: %w: load the kernel's driver, `modprobe tun`; a container must be given the device", tunDevice, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return -1, wrong(FieldName, "open %s: %w: let this user open it, `chmod 0666 %[1]s`", tunDevice, err)
	}
	return -1, wrong(FieldName, "open %s: %w", tunDevice, err)
}

func openDevice(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// openQueues opens the descriptors and attaches each to the interface; the first makes it if need be.
func (t *Tap) openQueues(c Config, p *plan) error {
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if c.Queues > 1 || p.tun != nil && p.tun.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	name := c.Name
	for range c.Queues {
		fd, err := openTun()
		if err != nil {
			return err
		}
		t.Queues = append(t.Queues, fd)
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return wrong(FieldName, "interface name %q: %w", name, err)
		}
		ifr.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return attachError(c, p, err)
		}
		if name = ifr.Name(); t.Name == "" {
			t.Name = name
			t.headerWas, _ = unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
		}
		if err := prepare(fd); err != nil {
			return wrong(FieldName, "interface %s: %w", name, err)
		}
	}
	return nil
}

// prepare sets the header's layout.
func prepare(fd int) error {
	err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, headerSize)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1)
	}
	if err != nil {
		return fmt.Errorf("set its packets' header: %w: a newer kernel is needed", err)
	}
	return nil
}

// attachError explains why TUNSETIFF failed.
func attachError(c Config, p *plan, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return notAllowed(c, p.tun, err)
	case errors.Is(err, unix.EBUSY):
		return taken(c.Name, err)
	case errors.Is(err, unix.EINVAL) && p.existing != nil && c.Queues > 1:
		return singleQueue(c)
	case errors.Is(err, unix.E2BIG):
		return wrong(FieldQueues, "interface %s: %w: it has no room for %d more queues", c.Name, err, c.Queues)
	case errors.Is(err, unix.ENFILE):
		return wrong(FieldName, "interface %s: %w: no number is free", c.Name, err)
	}
	return wrong(FieldName, "interface %s: attach to it: %w", c.Name, err)
}

func taken(name string, err error) error {
	return wrong(FieldName, "interface %s: %w: it is open already: stop the program that has it, or choose another name", name, err)
}

// notAllowed says how an unprivileged user gets an interface. t is the existing one, or nil.
func notAllowed(c Config, t *netlink.Tuntap, err error) error {
	switch {
	case t == nil:
		what := ""
		if strings.Contains(c.Name, "%d") {
			what = fmt.Sprintf(", and name that one, %q", strings.Replace(c.Name, "%d", "0", 1))
		}
		return wrong(FieldName, "interface %s: make it: %w: that needs CAP_NET_ADMIN; let an administrator make one for you, `%s`%s", c.Name, err, addCommand(c.Name, c.Queues), what)
	case t.Owner != 0:
		owner := strconv.FormatUint(uint64(t.Owner), 10)
		if u, lookupErr := user.LookupId(owner); lookupErr == nil {
			owner = u.Username
		}
		return wrong(FieldName, "interface %s: %w: it belongs to user %s: let an administrator make one for you, `%s`", c.Name, err, owner, addCommand("NAME", c.Queues))
	}
	return wrong(FieldName, "interface %s: %w: it belongs to another user: let an administrator make one for you, `%s`", c.Name, err, addCommand("NAME", c.Queues))
}
