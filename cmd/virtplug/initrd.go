package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/initrd"
)

// newInitrdCommand makes `virtplug initrd`, which builds a small initial RAM disk to boot guests with.
func newInitrdCommand() *cobra.Command {
	var o initrd.Options
	var output string
	var add []string
	cmd := &cobra.Command{
		Use:   "initrd -o FILE",
		Short: "Build a small initial RAM disk: busybox, virtio drivers, a shell on the console",
		Long: `Build a small initial RAM disk from what this host has: a static busybox, the modules of the kernel's virtio
drivers, and an /init that keeps a shell on every virtio console. The same files give the same bytes.

A file added as /etc/rc.local is run once before the shells. A program added brings its shared libraries along.`,
		Example: `  virtplug initrd -o initrd.gz
  virtplug initrd -o initrd.gz --add /sbin/mke2fs --add test.sh:/etc/rc.local`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output == "" {
				return errors.New("initrd: no output file: say where with -o FILE")
			}
			for _, a := range add {
				f, err := initrd.ParseFile(a)
				if err != nil {
					return fmt.Errorf("initrd: --add: %w", err)
				}
				o.Add = append(o.Add, f)
			}
			return initrd.BuildFile(cmd.Context(), output, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "", "where to write the RAM disk")
	f.StringVar(&o.Kernel, "kernel", "", "the kernel that it is for (default linux.uml)")
	f.StringVar(&o.ModuleDir, "modules", "", "directory of the kernel's modules (default: found by the kernel's release)")
	f.BoolVar(&o.NoModules, "no-modules", false, "add no modules: the kernel has its virtio drivers built in")
	f.StringVar(&o.Busybox, "busybox", "", "a statically linked busybox (default: Debian's busybox-static)")
	f.StringVar(&o.Hostname, "hostname", "", `the guest's name (default "virtplug")`)
	f.StringArrayVar(&add, "add", nil, "add a file or directory, `HOST[:GUEST]`; may be repeated")
	return cmd
}
