package main

import (
	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/initrd"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/machine/kvm"
	"github.com/virtplug/virtplug/core/machine/uml"
)

// machines are all there are; the best is the first.
func machines(log hclog.Logger) []launcher.NamedMachine {
	return []launcher.NamedMachine{
		{Name: "kvm", Machine: kvm.New(kvm.Options{Log: log.Named("kvm")})},
		{Name: "uml", Machine: uml.New(uml.Options{Log: log.Named("uml")})},
	}
}

// machineKernel is a machine and how to find its default kernel.
type machineKernel struct {
	machine string
	find    func() (string, error)
}

func machineKernels() []machineKernel {
	return []machineKernel{{"kvm", kvm.DefaultKernel}, {"uml", initrd.DefaultKernel}}
}
