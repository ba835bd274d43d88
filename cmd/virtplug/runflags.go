package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/config"
)

// register adds the flags of run.
func (o *runOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.flags.Name, "name", "", "the VM's `NAME`")
	f.StringVarP(&o.flags.Memory, "memory", "m", "", "`SIZE` of guest memory, such as 256M (default 256M)")
	f.StringVar(&o.flags.CPUs, "cpus", "", "`NUMBER` of virtual CPUs (default 1)")
	f.StringVar(&o.flags.Machine, "machine", "", "what runs the guest: `"+strings.Join(config.Machines(), "|")+"` (default auto)")
	f.StringVar(&o.flags.Bus, "bus", "", "how the guest of machine kvm finds its devices: `"+strings.Join(config.Buses(), "|")+"` (default mmio)")
	f.StringVar(&o.flags.Kernel, "kernel", "", "the guest's kernel, a `FILE` (default: kvm takes the newest cloud kernel in /boot, or else the newest there; uml takes linux.uml)")
	f.StringVar(&o.flags.Initrd, "initrd", "", "an initial RAM disk, a `FILE`")
	f.StringVar(&o.flags.Cmdline, "cmdline", "", "`TEXT` to add to the kernel's command line")
	f.StringVar(&o.flags.Cmdline, "append", "", "the same as --cmdline")
	f.Var(&deviceValue{&o.devices, config.BlockFlag, "IMAGE[,KEY=VALUE…]"}, "block", "add a disk; may be repeated")
	f.Var(&deviceValue{&o.devices, config.ConsoleFlag, "stdio|pty|null|socket:PATH|file:PATH[,KEY=VALUE…]"}, "console", "add a console; may be repeated")
	f.Var(&deviceValue{&o.devices, config.NetFlag, "user|tap:NAME|socket:PATH|null[,KEY=VALUE…]"}, "net", "add a network interface; may be repeated")
	f.Var(&tunnetValue{&o.devices}, "tunnet", "add a network interface on a new tap tap0, tap1, … of the host, with the host's address IP (/24) there or in a bridge; may be repeated")
	f.Var(&deviceValue{&o.devices, config.GenericFlag, "TYPE[=NAME][,KEY=VALUE…]"}, "device", "add a device of any type; may be repeated")
	f.BoolVar(&o.rng, "rng", false, "add an entropy device, if there is a plugin for one")
	f.BoolVar(&o.json, "json", false, "print one JSON object a line for each event, the last one with the exit reason")
	f.BoolVar(&o.dryRun, "dry-run", false, "check everything and start nothing")
	f.BoolVar(&o.noReboot, "no-reboot", false, "end when the guest asks to be restarted, instead of booting it again")
	f.StringVar(&o.kernelOutput, "kernel-output", "", "append the kernel's own messages to `FILE`; - is standard error (default: dropped)")
	for _, name := range []string{"username", "chroot"} {
		f.Var(&laterValue{name}, name, "of the lguest Launcher; not yet in this version")
		noError(f.MarkHidden(name))
	}
	noError(cmd.RegisterFlagCompletionFunc("machine", cobra.FixedCompletions(config.Machines(), cobra.ShellCompDirectiveNoFileComp)))
	noError(cmd.RegisterFlagCompletionFunc("bus", cobra.FixedCompletions(config.Buses(), cobra.ShellCompDirectiveNoFileComp)))
	noError(cmd.RegisterFlagCompletionFunc("console", cobra.FixedCompletions([]string{"stdio", "pty", "null", "socket:", "file:"}, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)))
	noError(cmd.RegisterFlagCompletionFunc("net", completeNet))
	noError(cmd.RegisterFlagCompletionFunc("tunnet", cobra.FixedCompletions([]string{"bridge:"}, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)))
}

// completeNet offers the back-ends, and the host's tap interfaces by name.
func completeNet(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	out := []string{"user", "socket:", "null", "loopback", "tap:"}
	taps, _ := filepath.Glob("/sys/class/net/*/tun_flags") // the pattern is a good one
	for _, path := range taps {
		out = append(out, "tap:"+filepath.Base(filepath.Dir(path)))
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// deviceValue is a flag that adds a device; all of them share one list, which keeps their order.
type deviceValue struct {
	list *[]config.DeviceFlag
	make func(string) config.DeviceFlag
	kind string
}

// Set implements pflag.Value.
func (v *deviceValue) Set(s string) error {
	*v.list = append(*v.list, v.make(s))
	return nil
}

// String implements pflag.Value.
func (v *deviceValue) String() string { return "" }

// Type implements pflag.Value.
func (v *deviceValue) Type() string { return v.kind }

// tunnetValue is --tunnet: as deviceValue, for a value that has no settings.
type tunnetValue struct{ list *[]config.DeviceFlag }

// Set implements pflag.Value.
func (v *tunnetValue) Set(s string) error {
	flag, err := config.TunnetFlag(s)
	if err == nil {
		*v.list = append(*v.list, flag)
	}
	return err
}

// String implements pflag.Value.
func (v *tunnetValue) String() string { return "" }

// Type implements pflag.Value.
func (v *tunnetValue) Type() string { return "IP[:MAC]|bridge:BRIDGE[:MAC]" }

// laterValue is a flag of the lguest Launcher whose meaning has not arrived.
type laterValue struct{ name string }

// Set implements pflag.Value.
func (v *laterValue) Set(string) error {
	return fmt.Errorf("--%s is not yet in this version; leave it out", v.name)
}

// String implements pflag.Value.
func (v *laterValue) String() string { return "" }

// Type implements pflag.Value.
func (v *laterValue) Type() string { return "VALUE" }

// hostMemory is how many bytes of memory the host has; 0 if it does not tell.
func hostMemory() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return uint64(info.Totalram) * uint64(info.Unit) //nolint:unconvert // 32 bits on some machines
}
