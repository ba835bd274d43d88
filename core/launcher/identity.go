package launcher

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strconv"
	"strings"
)

// machineIDPaths are where a host keeps the number that was made when it was installed (machine-id(5)).
var machineIDPaths = [...]string{"/etc/machine-id", "/var/lib/dbus/machine-id"}

// Identity is a device's pluginrpc.Settings.Identity: the same whenever this user runs a VM of that name with a device of that name
// on this host. It is made of the host's machine-id(5) (of its name, if it has none), the user's number, the VM's name and the
// device's name, hashed, so that it tells none of them. Two VMs that were given one name and run at the same time have the same ones,
// and so have hosts that were copied with their machine-id. A VM without a name has others in every run: vm is then what is the run's own.
func Identity(vm, device string) [16]byte {
	return identity(hostID(os.ReadFile, os.Hostname), vm, device)
}

func identity(host, vm, device string) (id [16]byte) {
	h := sha256.New()
	for _, part := range []string{"virtplug device identity 1", host, strconv.Itoa(os.Getuid()), vm, device} {
		_ = binary.Write(h, binary.BigEndian, uint64(len(part))) // a hash takes everything
		h.Write([]byte(part))
	}
	copy(id[:], h.Sum(nil))
	return id
}

// hostID names this host.
func hostID(read func(path string) ([]byte, error), hostname func() (string, error)) string {
	for _, path := range machineIDPaths {
		b, err := read(path)
		id := strings.TrimSpace(string(b))
		if n, bad := hex.DecodeString(id); err == nil && bad == nil && len(n) == 16 { // before the first boot it says "uninitialized"
			return "machine-id " + strings.ToLower(id)
		}
	}
	name, err := hostname()
	if err != nil {
		name = ""
	}
	return "hostname " + name
}
