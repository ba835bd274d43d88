package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/launcher"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Work with configuration files",
		Example: "  virtplug config check vm.hcl",
	}
	var asJSON bool
	check := &cobra.Command{
		Use:   "check VM.hcl",
		Short: "Check a configuration and start nothing",
		Long: `Check a configuration file: its syntax, every setting against the schema of its plugin, the files it names, and whether this
host can run it. All that is wrong is shown at once. Plugins are asked for their schemas; no device and no guest is started.`,
		Example: `  virtplug config check vm.hcl
  virtplug config check --json vm.json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeConfig,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			opts, err := a.load(ctx, args[0], config.Flags{}, &launcher.Host{Log: a.logger()})
			opts.Machines = machines(hclog.NewNullLogger())
			if asJSON {
				return a.checkJSON(opts, err)
			}
			if err != nil {
				return err
			}
			return (&reporter{app: a}).dryRun(opts)
		},
	}
	check.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	cmd.AddCommand(check)
	return group(cmd)
}

// checkJSON prints the result of a check as JSON; the exit status tells it too.
func (a *app) checkJSON(opts launcher.Options, err error) error {
	result := struct {
		Version int    `json:"schema_version"`
		OK      bool   `json:"ok"`
		VM      string `json:"vm,omitempty"`
		Machine string `json:"machine,omitempty"`
		// Note says why machine auto is not the best one.
		Note        string        `json:"note,omitempty"`
		Devices     []string      `json:"devices,omitempty"`
		Error       string        `json:"error,omitempty"`
		Diagnostics *config.Error `json:"diagnostics,omitempty"`
	}{Version: schemaVersion}
	if err == nil {
		result.VM = opts.VM.Name
		for _, d := range opts.VM.Devices {
			result.Devices = append(result.Devices, d.Name)
		}
		var choice launcher.Choice
		choice, err = launcher.Check(opts)
		result.Machine, result.Note = choice.Name, choice.Fallback()
	}
	result.OK = err == nil
	if ce, ok := errors.AsType[*config.Error](err); ok {
		result.Diagnostics, result.Error = ce, "the configuration is wrong"
	} else if err != nil {
		result.Error = err.Error()
	}
	if perr := a.printJSON(result); perr != nil {
		return perr
	}
	if err != nil {
		return exitStatus{code: codeOf(err)}
	}
	return nil
}
