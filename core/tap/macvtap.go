package tap

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// openMacvtap opens the character device of a macvtap interface once for each queue: the kernel attaches each to it.
func (t *Tap) openMacvtap(c Config) error {
	for range c.Queues {
		fd, err := openMacvtap(c.Name)
		if err != nil {
			return err
		}
		t.Queues = append(t.Queues, fd)
		ifr, _ := unix.NewIfreq("") // the kernel looks at the flags only; an empty name fits
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		if err == nil {
			err = prepare(fd)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
		}
		if err != nil {
			return wrong(FieldName, "%s: %w: want the device of a macvtap interface", c.Name, err)
		}
		t.Name = ifr.Name()
	}
	return nil
}

func openMacvtap(path string) (int, error) {
	if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeCharDevice == 0 { // opening other things does something
		return -1, wrong(FieldName, "%s: want the device of a macvtap interface", path)
	}
	fd, err := openDevice(path)
	switch {
	case err == nil:
		ifr, _ := unix.NewIfreq("") // it fits
		if err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err == nil {
			return fd, nil
		}
		_ = unix.Close(fd) // it is no macvtap, not even /dev/net/tun, which would make interfaces of any name
		return -1, wrong(FieldName, "%s: %w: want the device of a macvtap interface", path, err)
	case errors.Is(err, unix.ENOENT):
		return -1, wrong(FieldName, "open %s: %w: make a macvtap interface, `ip link add link eth0 name macvtap0 type macvtap mode bridge`; the number is in /sys/class/net/macvtap0/ifindex", path, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return -1, wrong(FieldName, "open %s: %w: let this user open it, `chown USER %[1]s`", path, err)
	case errors.Is(err, unix.EBUSY):
		return -1, wrong(FieldName, "open %s: %w: all its queues are in use", path, err)
	}
	return -1, wrong(FieldName, "open %s: %w", path, err)
}
