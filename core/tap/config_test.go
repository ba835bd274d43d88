package tap_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/virtplug/virtplug/core/tap"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

func TestNamesThatTheKernelWouldRefuse(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"tap0": "", "vp%d": "", "a.b-c_d": "", "0123456789abcde": "", "ü": "", "/dev/tap7": "",
		"":                   "want a name",
		"0123456789abcdef":   "has 16 bytes; the kernel takes at most 15",
		"a b":                "spaces, '/' and ':'",
		"a/b":                "spaces, '/' and ':'",
		"a:b":                "spaces, '/' and ':'",
		"a\x00":              "spaces, '/' and ':'",
		"..":                 "want a name",
		"a%d%d":              "only \"%d\" at its end",
		"a%s":                "only \"%d\" at its end",
		"%db":                "only \"%d\" at its end",
		"/etc/hosts":         "want a name, or a macvtap interface's device",
		"\u00a0nobreakspace": "spaces",
	} {
		if err := tap.CheckName(name); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v: want %q", name, err, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"192.168.19.1/24": "", "fd00::1/64": "", "10.0.0.0/31": "", "10.0.0.1/32": "", "fd00::/64": "",
		"192.168.19.1":          "with its prefix's length, such as \"192.168.19.1/24\"",
		"banana":                "want an IP address",
		"192.168.19.0/24":       "that is the network, not a host in it: 192.168.19.1/24",
		"192.168.19.255/24":     "broadcast",
		"224.0.0.1/8":           "not one that an interface can have",
		"0.0.0.0/0":             "not one that an interface can have",
		"::ffff:10.0.0.1/120":   "not one that an interface can have",
		"192.168.19.1/33":       "want an IP address",
		"fe80::1%eth0/64":       "want an IP address",
		"192.168.19.1/24,other": "want an IP address",
	} {
		if _, err := tap.ParseAddress(text); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v: want %q", text, err, want)
		}
	}
}

func TestEveryFieldThatIsWrongIsTold(t *testing.T) {
	t.Parallel()
	c := tap.Config{Name: "far too long a name", Queues: 300, Bridge: "a b", Addresses: []string{"x", "10.0.0.1/8", "10.0.0.1/24"}, MTU: 1}
	got := map[tap.Field]int{}
	for _, e := range tap.Errors(c.Check()) {
		got[e.Field]++
	}
	want := map[tap.Field]int{tap.FieldName: 1, tap.FieldQueues: 1, tap.FieldBridge: 1, tap.FieldAddresses: 3, tap.FieldMTU: 1}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, c := range []tap.Config{
		{Name: "/dev/tap7", Bridge: "br0"},
		{Name: "/dev/tap7", Addresses: []string{"10.0.0.1/8"}},
		{Name: "vp0", Bridge: "br0", Addresses: []string{"10.0.0.1/8"}},
	} {
		if len(tap.Errors(c.Check())) != 1 {
			t.Errorf("%+v: %v", c, c.Check())
		}
	}
}

func TestSettingsBecomeAConfig(t *testing.T) {
	t.Parallel()
	attr := &pluginv1.Attribute{Name: "tap", Tap: &pluginv1.TapAccess{QueuePairs: "pairs", Bridge: "br", Addresses: "addr", Mtu: "m"}}
	members := map[string]json.RawMessage{
		"pairs": json.RawMessage("3"), "br": json.RawMessage(`"br0"`), "addr": json.RawMessage(`["10.0.0.1/8"]`), "m": json.RawMessage("1400"),
		"Queues": json.RawMessage("7"),
	}
	want := tap.Config{Name: "vp%d", Queues: 3, Bridge: "br0", Addresses: []string{"10.0.0.1/8"}, MTU: 1400}
	if d := cmp.Diff(want, tap.FromSettings(attr.GetTap(), "vp%d", members)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(tap.Config{Name: "x"}, tap.FromSettings(nil, "x", members)); d != "" {
		t.Error(d)
	}
	members["pairs"] = json.RawMessage(`"three"`)
	if got := tap.FromSettings(attr.GetTap(), "x", members); got.Queues != 0 {
		t.Errorf("%+v", got)
	}
	for f, name := range map[tap.Field]string{
		tap.FieldName: "tap", tap.FieldQueues: "pairs", tap.FieldBridge: "br", tap.FieldAddresses: "addr", tap.FieldMTU: "m",
	} {
		if got := f.Attribute(attr); got != name {
			t.Errorf("field %d: %q, want %q", f, got, name)
		}
	}
}
