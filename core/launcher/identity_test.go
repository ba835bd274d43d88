package launcher

import (
	"errors"
	"io/fs"
	"testing"
)

func TestTheHostIsKnownByItsMachineID(t *testing.T) {
	t.Parallel()
	const id = "0123456789abcdef0123456789abcdef"
	for name, tc := range map[string]struct {
		files map[string]string
		host  string
		err   error
		want  string
	}{
		"machine-id":                    {map[string]string{"/etc/machine-id": id + "\n"}, "h", nil, "machine-id " + id},
		"in capitals":                   {map[string]string{"/etc/machine-id": "0123456789ABCDEF0123456789ABCDEF"}, "h", nil, "machine-id " + id},
		"of D-Bus only":                 {map[string]string{"/var/lib/dbus/machine-id": id}, "h", nil, "machine-id " + id},
		"none":                          {nil, "h", nil, "hostname h"},
		"empty, as in container images": {map[string]string{"/etc/machine-id": ""}, "h", nil, "hostname h"},
		"uninitialized":                 {map[string]string{"/etc/machine-id": "uninitialized\n", "/var/lib/dbus/machine-id": id}, "h", nil, "machine-id " + id},
		"too short":                     {map[string]string{"/etc/machine-id": id[:30]}, "h", nil, "hostname h"},
		"not even a name":               {nil, "x", errors.New("none"), "hostname "},
	} {
		got := hostID(func(path string) ([]byte, error) {
			if s, ok := tc.files[path]; ok {
				return []byte(s), nil
			}
			return nil, fs.ErrNotExist
		}, func() (string, error) { return tc.host, tc.err })
		if got != tc.want {
			t.Errorf("%s: %q: want %q", name, got, tc.want)
		}
	}
}

func TestIdentitiesDiffer(t *testing.T) {
	t.Parallel()
	seen := map[[16]byte]string{}
	for _, k := range [][3]string{{"h", "vm", "net0"}, {"h2", "vm", "net0"}, {"h", "vm2", "net0"}, {"h", "vm", "net1"}, {"h", "vmn", "et0"}, {"hv", "m", "net0"}} {
		id := identity(k[0], k[1], k[2])
		if was, ok := seen[id]; ok || id == [16]byte{} {
			t.Errorf("%q has the identity of %s: %x", k, was, id)
		}
		seen[id] = k[0] + k[1] + k[2]
		if identity(k[0], k[1], k[2]) != id {
			t.Errorf("%q: not the same twice", k)
		}
	}
	id := Identity("vm", "net0")
	if again := Identity("vm", "net0"); again != id || id == [16]byte{} {
		t.Errorf("on this host %x, then %x", id, again)
	}
}
