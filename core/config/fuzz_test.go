package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/virtplug/virtplug/core/config"
)

// FuzzConfig: any text is either refused with diagnostics that can be written, or becomes a model whose settings are JSON.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(good), false, "disk.img,read_only=true")
	f.Add([]byte(goodJSON), true, "console=con0,port.a.socket=x,port.a.filter.1.drop=y")
	f.Add([]byte(`vm "a" { memory = "64M" }`), false, "a,,b,=,x=,.=,port.=3")
	f.Add([]byte(`device "net" "n" { tap = "vp%d" }`), false, "192.168.19.1/24:02:00:00:00:00:01")
	f.Fuzz(func(t *testing.T, src []byte, isJSON bool, flag string) {
		if len(src) > 64<<10 || len(flag) > 4<<10 {
			t.Skip("longer than what is interesting")
		}
		in := config.Input{Path: "vm.hcl", Flags: config.Flags{Devices: []config.DeviceFlag{
			config.BlockFlag(flag), config.GenericFlag(flag), config.ConsoleFlag(flag), config.NetFlag(flag),
		}}}
		if tunnet, err := config.TunnetFlag(flag); err == nil {
			in.Flags.Devices = append(in.Flags.Devices, tunnet)
		}
		if isJSON {
			in.Path = "vm.json"
		}
		vm, err := config.Parse(t.Context(), src, in, plugins(), config.Options{HostMemory: 1 << 40})
		if err != nil {
			ce, ok := errors.AsType[*config.Error](err)
			if !ok || len(ce.Diagnostics) == 0 {
				t.Fatalf("error without diagnostics: %v", err)
			}
			var buf bytes.Buffer
			if err := ce.WriteText(&buf, 80, true); err != nil {
				t.Fatal(err)
			}
			if out, err := json.Marshal(ce); err != nil || !json.Valid(out) {
				t.Fatalf("diagnostics as JSON: %v", err)
			}
			return
		}
		for _, d := range vm.Devices {
			var m map[string]any
			if err := json.Unmarshal(d.ConfigJSON, &m); err != nil {
				t.Fatalf("device %s: %s: %v", d.Name, d.ConfigJSON, err)
			}
		}
	})
}
