package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/terminal"
)

// runOptions are the flags of run.
type runOptions struct {
	flags        config.Flags
	devices      []config.DeviceFlag
	rng          bool
	json         bool
	dryRun       bool
	noReboot     bool
	kernelOutput string
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [VM.hcl]",
		Short: "Run a virtual machine",
		Long: `Run a virtual machine, described by a file, by flags, or by a file with flags over it. It returns when the guest has
powered off and nothing of it is left.

A device flag is a list of settings, separated by commas: --block disk.img,read_only=true. Two commas stand for one. Settings in
nested blocks are paths: --console pty,port.agent.socket=agent.sock. 'virtplug plugin describe NAME' lists a device's settings.

A network interface with --net user needs no privileges and no set-up. --net tap:NAME is an interface of the host: one that
'ip tuntap add dev NAME mode tap user USER' made for you, or else a new one, for which the program needs CAP_NET_ADMIN. --tunnet
is the lguest Launcher's spelling of a new one.

The guest runs by KVM where this host and the VM allow it, else under User-Mode Linux, and a message says why; --machine chooses.
'virtplug doctor' shows what this host can do.

With a console on stdio the terminal is the guest's; Ctrl-A x ends the guest, Ctrl-A h shows what else Ctrl-A can do.

With --json standard output has one object a line for each event, the last one with the reason of the end.

` + exitHelp,
		Example: `  virtplug run vm.hcl
  virtplug run vm.hcl --memory 512M --block scratch.img
  virtplug run --memory 256M --kernel linux --initrd initrd.gz --block disk.img,read_only=true --console stdio
  virtplug run --initrd initrd.gz --console socket:con.sock --device block=data,path=data.img,cache=writethrough
  virtplug run --machine kvm --cpus 2 --kernel /boot/vmlinuz-6.1.0-56-cloud-amd64 --initrd initrd.gz --console stdio
  virtplug run vm.hcl --net user,forward=tcp:8080:80
  virtplug run vm.hcl --net tap:tap0,queue_pairs=2 --net socket:link.sock
  virtplug run vm.hcl --tunnet=192.168.19.1:02:00:00:00:00:01
  virtplug run vm.hcl --tunnet=bridge:br0
  virtplug run --bus lguest --kernel guest.elf --block disk.img --console stdio
  virtplug run vm.hcl --dry-run`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeConfig,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.flags.Devices = o.devices
			path := ""
			if len(args) > 0 {
				path = args[0]
			}
			if path == "" && cmd.Flags().NFlag() == 0 {
				return usageError{errors.New("run: nothing to run; give a configuration file, or flags such as --kernel, --initrd and --console")}
			}
			return a.run(cmd.Context(), path, o)
		},
	}
	o.register(cmd)
	return cmd
}

// run checks and runs a VM.
func (a *app) run(ctx context.Context, path string, o runOptions) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// A guest outlives whoever reads our messages. Not ignored but caught, as what is ignored is so for plugins and guest too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	defer context.AfterFunc(ctx, func() {
		signal.Reset(os.Interrupt) // plugins and guest die with us then; the next run removes what is left
		fmt.Fprintln(a.stderr, "virtplug: stopping; Ctrl-C again ends at once")
	})()
	log := a.logger()
	host := &launcher.Host{Log: log}
	out := &reporter{app: a, json: o.json}
	if o.rng {
		flag, err := rngFlag(host, a.pluginDirs)
		if err != nil {
			return out.end(launcher.Outcome{}, err)
		}
		o.flags.Devices = append(o.flags.Devices, flag)
	}
	opts, err := a.load(ctx, path, o.flags, host)
	if err != nil {
		return out.end(launcher.Outcome{}, err)
	}
	opts.Machines = machines(log)
	if o.json && opts.VM.UsesTerminal() {
		return out.end(launcher.Outcome{}, usageError{errors.New("run: --json and a console on stdio both want standard output; give the console another back-end")})
	}
	if o.dryRun {
		return out.dryRun(opts)
	}
	opts.Log, opts.RunRoot, opts.Event, opts.Terminal = log, launcher.DefaultRunRoot(), out.event, a.openTerminal
	opts.NoReboot = o.noReboot
	if opts.KernelOutput, err = kernelOutput(o.kernelOutput, a.stderr); err != nil {
		return out.end(launcher.Outcome{}, err)
	}
	outcome, err := launcher.Run(ctx, opts)
	a.stderr.set(os.Stderr)
	return out.end(outcome, err)
}

// load reads and checks a configuration.
func (a *app) load(ctx context.Context, path string, flags config.Flags, host *launcher.Host) (launcher.Options, error) {
	flags.PluginDirs = a.pluginDirs
	vm, err := config.Load(ctx, config.Input{Path: path, Flags: flags}, host, config.Options{CheckFiles: true, HostMemory: hostMemory()})
	return launcher.Options{VM: vm, Plugins: host}, err
}

// guestTerminal is the user's terminal; it says so when it becomes the guest's.
type guestTerminal struct {
	*terminal.Terminal
	app *app
}

// Start implements launcher.Terminal.
func (t *guestTerminal) Start() {
	t.Terminal.Start()
	if t.IsTerminal() {
		fmt.Fprintf(t.app.stderr, "The terminal is the guest's now. Ctrl-A x ends the guest, Ctrl-A h shows help.\n")
	}
}

// openTerminal prepares to take over the user's terminal, and lets messages go through it.
func (a *app) openTerminal(resize func(cols, rows int), quit func()) (launcher.Terminal, error) {
	var once sync.Once
	stop := func() { // with plugins that hang it takes a while: say that it was heard
		quit()
		once.Do(func() { go fmt.Fprint(a.stderr, "\nvirtplug: ending the guest\n") }) // standard error may block
	}
	t, err := terminal.Open(os.Stdin, os.Stdout, terminal.Options{
		Hold: true, OnQuit: stop, OnResize: resize, Warn: func(m string) { fmt.Fprintf(a.stderr, "%s%s\n", a.prefix(), m) },
	})
	if err != nil {
		return nil, err
	}
	a.stderr.set(t.Messages(os.Stderr))
	return &guestTerminal{t, a}, nil
}

// kernelOutput is where the kernel's own messages go: nowhere, to standard error ("-"), or to the end of a file.
func kernelOutput(path string, stderr io.Writer) (io.Writer, error) {
	switch path {
	case "":
		return nil, nil //nolint:nilnil // none is wanted
	case "-":
		return stderr, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600) //nolint:gosec // the user names it
	if err != nil {
		return nil, usageError{fmt.Errorf("--kernel-output: %w", err)}
	}
	return f, nil // closed by the end of the program
}

// rngFlag is --rng of the lguest Launcher: an entropy device, if there is a plugin for one.
func rngFlag(host *launcher.Host, dirs []string) (config.DeviceFlag, error) {
	for _, name := range host.Names(dirs) {
		if name == "entropy" || name == "rng" {
			return config.DeviceFlag{Flag: "--rng", Type: name, Prefix: "rng"}, nil
		}
	}
	return config.DeviceFlag{}, usageError{errors.New("--rng: no entropy plugin is found; 'virtplug plugin list' shows which there are and where it looks")}
}

func completeConfig(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []string{"hcl", "json"}, cobra.ShellCompDirectiveFilterFileExt
}
