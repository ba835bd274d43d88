package kvm

import (
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/machine"
)

// Options are settings of the machine. The zero value is the default.
type Options struct {
	// Log receives what happens; nil: nothing is logged.
	Log hclog.Logger
	// Grace is how long a guest whose power button was pressed may take to switch itself off; 0: 5 s.
	Grace time.Duration
	// Path is where KVM is; "": /dev/kvm.
	Path string
}

// Machine runs guests on KVM. It has no state of its own: several guests may run at once.
type Machine struct{ opts Options }

var _ machine.Machine = (*Machine)(nil)

// New makes a machine.
func New(o Options) *Machine {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Grace == 0 {
		o.Grace = 5 * time.Second
	}
	if o.Path == "" {
		o.Path = "/dev/kvm"
	}
	return &Machine{opts: o}
}
