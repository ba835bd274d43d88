package config_test

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/virtplug/virtplug/core/config"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// A plugin runs in another directory than the launcher, so it gets paths inside strings absolute.
func TestAPathBehindAPrefixIsMadeAbsolute(t *testing.T) {
	t.Parallel()
	p := fakePlugins{"net": {Name: "net", Version: "0.1.0", DeviceId: 1, Schema: &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
		{Name: "connect", Type: tString, PathPrefixes: []string{"unix:", "unixgram:"}},
	}}}}
	abs := func(path string) string {
		a, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for value, want := range map[string][2]string{ // in a file, and on the command line
		"unix:s":        {"unix:" + abs("etc/s"), "unix:" + abs("s")},
		"unixgram:../s": {"unixgram:" + abs("s"), "unixgram:" + abs("../s")},
		"unix:/run/s":   {"unix:/run/s", "unix:/run/s"},
		"unix:@s":       {"unix:@s", "unix:@s"},
		"unix:":         {"unix:", "unix:"},
		"tcp:s:80":      {"tcp:s:80", "tcp:s:80"},
	} {
		src := `vm "v" {
  machine = "uml"
}
device "net" "a" {
  connect = "` + value + `"
}`
		in := config.Input{Path: "etc/vm.hcl", Flags: config.Flags{Devices: []config.DeviceFlag{{Flag: "--device", Value: "net,connect=" + value}}}}
		vm, err := config.Parse(t.Context(), []byte(src), in, p, config.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range vm.Devices {
			var got struct{ Connect string }
			if err := json.Unmarshal(d.ConfigJSON, &got); err != nil || got.Connect != want[i] {
				t.Errorf("%s: device %s: %q, %v: want %q", value, d.Name, got.Connect, err, want[i])
			}
		}
	}
}
