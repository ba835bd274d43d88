package devicetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// tapHeader is the size of the header before each packet of a tap, in bytes (ATTRIBUTE_TYPE_TAP).
const tapHeader = 12

// taps opens the interface name of attribute a, once for each queue pair, and returns its real name. Bridge, addresses and MTU
// stay as they are: they are the launcher's business, and no plugin sees them.
func taps(schema *pluginv1.Schema, a *pluginv1.Attribute, name string, members map[string]any) ([]*os.File, string, error) {
	pairs, multi := 1, uint16(0)
	for _, o := range schema.GetAttributes() {
		if o.GetName() != a.GetTap().GetQueuePairs() {
			continue
		}
		raw := []byte(o.GetDefaultJson())
		if v, given := members[o.GetName()]; given {
			raw, _ = json.Marshal(v) // it came from JSON
		}
		if err := json.Unmarshal(raw, &pairs); err != nil {
			return nil, "", fmt.Errorf("setting %s: want a number of queue pairs", o.GetName())
		}
	}
	if pairs > 1 {
		multi = unix.IFF_MULTI_QUEUE
	}
	var files []*os.File
	for range pairs {
		f, actual, err := openTap(name, multi)
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, f.Close())
			}
			return nil, "", err
		}
		files, name = append(files, f), actual
	}
	return files, name, nil
}

func openTap(name string, flags uint16) (f *os.File, realName string, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, tapHeader)
	}
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1)
	}
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("interface %s: %w", name, err), os.NewSyscallError("close", unix.Close(fd)))
	}
	return os.NewFile(uintptr(fd), ifr.Name()), ifr.Name(), nil
}
