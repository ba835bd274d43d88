package sdk

import (
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// Size is a number of bytes; in a configuration 4096, "512M" or "10GiB".
type Size uint64

// File is a file that the launcher opened for the device. The zero File means that the configuration names none.
type File struct {
	// Path is as in the configuration: for messages only, the device may be unable to reach it.
	Path string
	*os.File
}

// Listener is a listening unix stream socket that the launcher made for the device and will remove.
type Listener struct {
	// Path is as in the configuration.
	Path string
	*net.UnixListener
}

// Tap is a tap interface of the host that the launcher opened or made, with IFF_NO_PI and IFF_VNET_HDR. The zero Tap means that the
// configuration names none.
type Tap struct {
	// Name is the interface's name.
	Name string
	// Queues are its descriptors, one for each queue pair, non-blocking. Each packet has a virtio_net_hdr of 12 bytes before it.
	Queues []*os.File
}

// SettingError makes the error for a wrong setting; the launcher shows it at the setting's line. attribute is its path:
// "path", "port.0.socket"; empty: the configuration as a whole. The format may use %w.
func SettingError(attribute, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &pluginrpc.SettingError{Attribute: attribute, Message: err.Error(), Err: err}
}

// sizeUnits are the suffixes, smallest first.
const sizeUnits = "KMGTPE"

// ParseSize reads "4096", "512M", "512MiB": units of 1024.
func ParseSize(s string) (Size, error) {
	digits := strings.TrimRight(s, "KMGTPEiB")
	shift, unit := 0, s[len(digits):]
	if unit != "" {
		i := strings.Index(sizeUnits, unit[:1])
		if i < 0 || unit[1:] != "" && unit[1:] != "iB" {
			return 0, fmt.Errorf("size %q: want a number of bytes such as 4096, 512M or 10GiB", s)
		}
		shift = 10 * (i + 1)
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("size %q: want a number of bytes such as 4096, 512M or 10GiB, below 8EiB", s)
	}
	return Size(n << shift), nil
}

// String is the size in the largest unit that divides it: "512MiB".
func (s Size) String() string {
	unit := ""
	for _, u := range sizeUnits {
		if s == 0 || s%1024 != 0 {
			break
		}
		s, unit = s/1024, string(u)+"iB"
	}
	return strconv.FormatUint(uint64(s), 10) + unit
}
