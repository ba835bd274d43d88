package config_test

import (
	"strings"
	"testing"

	"github.com/virtplug/virtplug/core/config"
)

func TestABusMeansTheKVMMachine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		src          string
		flags        config.Flags
		machine, bus string
		wrong        string
	}{
		{src: `vm "a" {}`, machine: "auto"},
		{src: `vm "a" { machine = "kvm" }`, machine: "kvm"},
		{src: `vm "a" { bus = "lguest" }`, machine: "kvm", bus: "lguest"},
		{src: `vm "a" { bus = "mmio" }`, machine: "kvm", bus: "mmio"},
		{src: `vm "a" {}`, flags: config.Flags{Bus: "lguest"}, machine: "kvm", bus: "lguest"},
		{src: `vm "a" { bus = "mmio" }`, flags: config.Flags{Bus: "lguest", Machine: "kvm"}, machine: "kvm", bus: "lguest"},
		{src: "vm \"a\" {\nbus = \"mmio\"\n}", flags: config.Flags{Machine: "uml"}, wrong: "vm.hcl:2: Bad value for \"bus\""},
		{src: `vm "a" { machine = "uml" }`, flags: config.Flags{Bus: "lguest"}, wrong: "--bus: Bad value for \"bus\""},
		{src: "vm \"a\" {\nbus = \"lgeust\"\n}", wrong: `Did you mean "lguest"?`},
	} {
		vm, err := config.Parse(t.Context(), []byte(c.src), config.Input{Path: "vm.hcl", Flags: c.flags}, plugins(), config.Options{})
		switch {
		case c.wrong != "":
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s %+v: %v, want %q", c.src, c.flags, err, c.wrong)
			}
		case err != nil || vm.Machine != c.machine || vm.Bus != c.bus:
			t.Errorf("%s %+v: %+v, %v; want machine %s, bus %q", c.src, c.flags, vm, err, c.machine, c.bus)
		}
	}
}
