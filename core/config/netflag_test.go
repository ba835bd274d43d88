package config_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/virtplug/virtplug/core/config"
)

func tunnet(t *testing.T, value string) config.DeviceFlag {
	t.Helper()
	f, err := config.TunnetFlag(value)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestNetFlagsMakeInterfaces(t *testing.T) {
	t.Parallel()
	vm, err := config.Load(t.Context(), config.Input{Flags: config.Flags{Name: "x", Devices: []config.DeviceFlag{
		config.NetFlag("user,mtu=1500"),
		config.NetFlag("tap:vp%d,queue_pairs=2,address=10.0.0.1/24,address=fd00::1/64"),
		tunnet(t, "192.168.19.1"),
		config.NetFlag("socket:a,,b.sock"),
		config.NetFlag("backend=null"),
		tunnet(t, "10.1.0.1/16:02:00:00:00:00:01"),
		tunnet(t, "bridge:br0"),
		tunnet(t, "bridge:br0:02:00:00:00:00:02"),
		config.NetFlag("mac=02:00:00:00:00:03"),
	}}}, plugins(), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range vm.Devices {
		got = append(got, d.Name+" "+string(d.ConfigJSON))
	}
	want := []string{
		`net0 {"backend":"user","mtu":1500,"queue_pairs":1}`,
		`net1 {"address":["10.0.0.1/24","fd00::1/64"],"backend":"tap","mtu":0,"queue_pairs":2,"tap":"vp%d"}`,
		`net2 {"address":["192.168.19.1/24"],"backend":"tap","mtu":0,"queue_pairs":1,"tap":"tap%d"}`,
		`net3 {"backend":"socket","listen":"a,b.sock","mtu":0,"queue_pairs":1}`,
		`net4 {"backend":"null","mtu":0,"queue_pairs":1}`,
		`net5 {"address":["10.1.0.1/16"],"backend":"tap","mac":"02:00:00:00:00:01","mtu":0,"queue_pairs":1,"tap":"tap%d"}`,
		`net6 {"backend":"tap","bridge":"br0","mtu":0,"queue_pairs":1,"tap":"tap%d"}`,
		`net7 {"backend":"tap","bridge":"br0","mac":"02:00:00:00:00:02","mtu":0,"queue_pairs":1,"tap":"tap%d"}`,
		`net8 {"backend":"user","mac":"02:00:00:00:00:03","mtu":0,"queue_pairs":1}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
}

func TestTunnetThatCannotBe(t *testing.T) {
	t.Parallel()
	const form = "want the host's IPv4 address or a bridge"
	for value, want := range map[string]string{
		"": form, "banana": form, "bridge": form, "bridge:": form, "192.168.19": form, "fd00::1": form, "192.168.19.1/33": form,
		"192.168.19.0":               "that is the network",
		"192.168.19.255":             "broadcast",
		"192.168.19.1:":              `"" is no MAC address`,
		"192.168.19.1:02:00":         `"02:00" is no MAC address`,
		"bridge:br0:zz":              `"zz" is no MAC address`,
		"bridge:br0:02:00:00:00:0:1": "is no MAC address",
	} {
		if _, err := config.TunnetFlag(value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v: want %q", value, err, want)
		}
	}
}

func TestBadTapsAreExplainedAtTheirSetting(t *testing.T) {
	t.Parallel()
	_, err := config.Load(t.Context(), config.Input{Flags: config.Flags{Name: "x", Devices: []config.DeviceFlag{
		config.NetFlag("tap:a b"),
		config.NetFlag("tap:ok,address=10.0.0.1,mtu=7,queue_pairs=500"),
		config.NetFlag("tap:ok,address=10.0.0.1/8,bridge=br0"),
		tunnet(t, "bridge:far too long for a bridge"),
		config.NetFlag("usr"),
		config.NetFlag("tap:"),
	}}}, plugins(), config.Options{})
	golden(t, "testdata/bad/net.golden", text(t, err))
}
