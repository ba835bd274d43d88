package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/initrd"
)

// initrdOptions are the flags of initrd.
type initrdOptions struct {
	initrd.Options

	output, machine string
	add             []string
}

// initrdCommand makes `virtplug initrd`, which builds a small initial RAM disk to boot guests with.
func (a *app) initrdCommand() *cobra.Command {
	var o initrdOptions
	cmd := &cobra.Command{
		Use:   "initrd -o FILE",
		Short: "Build a small initial RAM disk: busybox, virtio drivers, a shell on the console",
		Long: `Build a small initial RAM disk from what this host has: a static busybox, the modules of the kernels' virtio
drivers, and an /init that keeps a shell on every virtio console. The same files give the same bytes.

It boots with the default kernel of every machine that has one here; --machine or --kernel chooses. Build it again when a kernel
was upgraded: modules fit one release only.

A file added as /etc/rc.local is run once before the shells. A program added brings its shared libraries along.`,
		Example: `  virtplug initrd -o initrd.gz
  virtplug initrd -o initrd.gz --add /sbin/mke2fs --add test.sh:/etc/rc.local
  virtplug initrd -o initrd.gz --machine kvm --module guest/linux/lguest_bus/lguest_bus.ko
  virtplug initrd -o initrd.gz --kernel bzImage --modules build/lib/modules/6.12.1`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.initrd(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.output, "output", "o", "", "where to write the RAM disk, a `FILE`")
	f.StringVar(&o.machine, "machine", config.MachineAuto, "whose default kernel it is for: kvm, uml, or auto for each that has one")
	f.StringArrayVar(&o.Kernels, "kernel", nil, "a kernel that it is for, a `FILE`, instead of the default ones; may be repeated")
	f.StringVar(&o.ModuleDir, "modules", "", "`DIR` of the kernel's modules (default: found by the kernel's release)")
	f.BoolVar(&o.NoModules, "no-modules", false, "add no modules: the kernel has its virtio drivers built in")
	f.StringArrayVar(&o.Modules, "module", nil, "add a further module, a `FILE.ko` built for one of the kernels, and load it at boot; may be repeated")
	f.StringVar(&o.Busybox, "busybox", "", "a statically linked busybox, a `FILE` (default: Debian's busybox-static)")
	f.StringVar(&o.Hostname, "hostname", "", "the guest's `NAME` (default virtplug)")
	f.StringArrayVar(&o.add, "add", nil, "add a file or directory, `HOST[:GUEST]`; may be repeated")
	noError(cmd.MarkFlagDirname("modules"))
	noError(cmd.RegisterFlagCompletionFunc("machine", cobra.FixedCompletions(config.Machines(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (a *app) initrd(ctx context.Context, o initrdOptions) error {
	switch {
	case o.output == "":
		return usageError{errors.New("initrd: no output file: say where with -o FILE")}
	case !slices.Contains(config.Machines(), o.machine):
		return usageError{fmt.Errorf("initrd: --machine %s: want one of auto, kvm and uml", o.machine)}
	case len(o.Kernels) > 0 && o.machine != config.MachineAuto:
		return usageError{errors.New("initrd: --kernel and --machine both say which kernel: give one of them")}
	case o.NoModules && (len(o.Modules) > 0 || o.ModuleDir != ""):
		return usageError{errors.New("initrd: --no-modules contradicts --module and --modules")}
	}
	for _, add := range o.add {
		f, err := initrd.ParseFile(add)
		if err != nil {
			return usageError{fmt.Errorf("initrd: --add: %w", err)}
		}
		o.Add = append(o.Add, f)
	}
	if len(o.Kernels) == 0 && !o.NoModules {
		var err error
		if o.Kernels, err = a.defaultKernels(o.machine); err != nil {
			return fmt.Errorf("initrd: %w", err)
		}
	}
	return initrd.BuildFile(ctx, o.output, o.Options)
}

// check finds the default kernel and tells whether an initial RAM disk can be made for it.
func (m machineKernel) check() (kernel, release string, err error) {
	if kernel, err = m.find(); err != nil {
		return "", "", err
	}
	if release, err = initrd.Release(kernel); err == nil {
		_, err = initrd.ModuleDir(release)
	}
	if err != nil {
		return kernel, release, fmt.Errorf("kernel %s: %w", kernel, err)
	}
	return kernel, release, nil
}

// defaultKernels finds the kernel of a machine, for auto those of each machine that has one with modules.
func (a *app) defaultKernels(machine string) ([]string, error) {
	var kernels, left []string
	var errs []error
	for _, m := range machineKernels() {
		if machine != config.MachineAuto && machine != m.machine {
			continue
		}
		kernel, _, err := m.check()
		if err == nil {
			kernels = append(kernels, kernel)
			continue
		}
		errs = append(errs, fmt.Errorf("%s: %w", m.machine, err))
		if kernel != "" { // somebody may want to boot it
			left = append(left, fmt.Sprintf("%sinitrd: not for machine %s: %v\n", a.prefix(), m.machine, err))
		}
	}
	if len(kernels) == 0 {
		return nil, errors.Join(errs...)
	}
	_, err := fmt.Fprint(a.stderr, strings.Join(left, ""))
	return kernels, err
}
