package guest_test

import (
	"strings"
	"testing"

	"github.com/virtplug/virtplug/tests/session"
)

// What cannot work is told before the guest starts, by the setting's name, with what to do.
func TestBadNetworkSettingsAreTold(t *testing.T) {
	t.Parallel()
	needNetwork(t)
	n := session.NewNetwork(t, nil)
	n.Run("ip", "link", "add", "other", "type", "veth", "peer", "name", "peer")
	n.Run("ip", "tuntap", "add", "dev", "taken", "mode", "tap")
	n.Run("ip", "tuntap", "add", "dev", "several", "mode", "tap", "multi_queue")
	n.Listen("127.0.0.1:8080")
	holder := withNet(t, n)
	holder.Boot("--device", "net=eth0,backend=tap,tap=taken")

	for _, c := range []struct {
		name, settings string
		uid            uint32
		want           []string
	}{
		{"MAC of another kind", "mac=52:54:00:12:34", 0, []string{"mac", "52:54:00:12:34"}},
		{"multicast MAC", "mac=01:00:5e:00:00:01", 0, []string{"mac", "01:00:5e:00:00:01"}},
		{"port in use", "forward=tcp:8080:80", 0, []string{"forward", "8080", "in use"}},
		{"no port", "forward=tcp:http:80", 0, []string{"forward", "tcp:http:80"}},
		{"tap without a name", "backend=tap", 0, []string{"tap"}},
		{"name too long", "backend=tap,tap=a-name-of-many-bytes", 0, []string{"tap", "a-name-of-many-bytes", "15"}},
		{"not a tap", "backend=tap,tap=other", 0, []string{"tap", "other"}},
		{"taken", "backend=tap,tap=taken", 0, []string{"tap", "taken", "busy"}},
		{"no permission", "backend=tap,tap=vp0", 65534, []string{"tap", "vp0", "permitted"}},
		{"setting of another back-end", "backend=tap,tap=vp9,subnet=10.0.0.0/24", 0, []string{"subnet"}},
		{"no socket", "backend=socket", 0, []string{"listen", "connect"}},
		{"unknown back-end", "backend=bridge", 0, []string{"backend", "bridge"}},
		{"too large MTU", "mtu=70000", 0, []string{"mtu", "65520"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := withNet(t, n)
			v.UID = c.uid
			v.Launch("--device", "net=eth0,"+c.settings)
			v.WaitExit()
			if code := v.Cmd.ProcessState.ExitCode(); code != 1 && code != 2 {
				t.Errorf("exit status %d", code)
			}
			v.NothingLeft()
			said := v.Stderr.String()
			for _, want := range c.want {
				if !strings.Contains(said, want) {
					t.Errorf("the message has no %q:\n%s", want, said)
				}
			}
			t.Log(said)
		})
	}
	_ = holder
}
