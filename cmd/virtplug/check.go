package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/pluginhost"
	"github.com/virtplug/virtplug/sdk/devicetest"
)

// pluginCheck is what `plugin check` was asked.
type pluginCheck struct {
	settings []string
	keeps    []int
	patience time.Duration
	json     bool
}

func (a *app) pluginCheckCommand() *cobra.Command {
	var c pluginCheck
	cmd := &cobra.Command{
		Use:   "check NAME|PATH",
		Short: "Check that a plugin keeps the rules of devices and plugins, without a VM",
		Long: `Check that a plugin keeps the rules of devices and plugins, without a VM: the conformance suite of the SDK, against the real
program, in whatever language it is written. It starts the plugin many times and sends it what a driver could, also a hostile
one; what the device makes of that is written to what its settings name, so give it scratch files.

The exit status is 1 if a case fails.`,
		Example: `  virtplug plugin check block --set path=scratch.img
  virtplug plugin check ./bin/virtplug-plugin-mine --set backend=null --keeps 0 --json`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return (&launcher.Host{}).Names(a.pluginDirs), cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.pluginCheck(cmd.Context(), args[0], &c) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&c.settings, "set", nil, "a setting of the plugin, `KEY=VALUE`; may be repeated")
	f.IntSliceVar(&c.keeps, "keeps", nil, "`QUEUES` that may keep chains because they wait for input (default: by device type)")
	f.DurationVar(&c.patience, "patience", 10*time.Second, "how long one call or one chain may take")
	f.BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

// checkedCase is one line of plugin check.
type checkedCase struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	// Rule is where the rule stands.
	Rule    string  `json:"rule"`
	Reason  string  `json:"reason,omitempty"`
	Log     string  `json:"log,omitempty"`
	Seconds float64 `json:"seconds"`
}

func (a *app) pluginCheck(ctx context.Context, name string, c *pluginCheck) error {
	if c.patience <= 0 {
		return usageError{fmt.Errorf("--patience %v: want more than 0", c.patience)}
	}
	program, settings, err := a.checkTarget(ctx, name, c)
	if err != nil {
		return err
	}
	o := devicetest.Options{Settings: settings, Patience: c.patience}
	if len(c.keeps) > 0 {
		o.Keeps = func(queue int) bool { return slices.Contains(c.keeps, queue) }
	}
	count := map[devicetest.Status]int{}
	cases := []checkedCase{}
	width := 0
	for _, k := range devicetest.Cases() {
		width = max(width, len(k.Name))
	}
	err = devicetest.Check(ctx, devicetest.Program(program), o, func(r devicetest.Result) {
		count[r.Status]++
		cases = append(cases, checkedCase{r.Case.Name, r.Status.String(), r.Case.Source, r.Reason, r.Log, r.Duration.Seconds()})
		if !c.json {
			printCase(a.stdout, width, r)
		}
	})
	if err != nil {
		return fmt.Errorf("check plugin %s: %w", name, err)
	}
	if c.json {
		err = a.printJSON(map[string]any{
			"schema_version": schemaVersion, "path": program, "cases": cases,
			"passed": count[devicetest.Pass], "failed": count[devicetest.Fail], "skipped": count[devicetest.Skip],
		})
	} else {
		_, err = fmt.Fprintf(a.stdout, "\n%d passed, %d failed, %d do not apply\n", count[devicetest.Pass], count[devicetest.Fail], count[devicetest.Skip])
	}
	if err == nil && count[devicetest.Fail] > 0 {
		err = exitStatus{code: exitError}
	}
	return err
}

// checkTarget finds the program and makes its settings, as run would.
func (a *app) checkTarget(ctx context.Context, name string, c *pluginCheck) (path string, settings map[string]any, err error) {
	ref := a.pluginRef(name)
	dirs := a.pluginDirs
	if ref.Path != "" {
		dir, file := filepath.Split(ref.Path)
		kind, ok := strings.CutPrefix(file, pluginhost.FilePrefix)
		if !ok {
			return "", nil, usageError{fmt.Errorf("%s: a plugin's file name is %sNAME", ref.Path, pluginhost.FilePrefix)}
		}
		name, dirs = kind, []string{dir}
	}
	host := &launcher.Host{Log: a.logger()}
	if _, err := host.Describe(ctx, ref); err != nil {
		return "", nil, err
	}
	flag := config.GenericFlag(strings.Join(append([]string{name + "=check0"}, c.settings...), ","))
	flag.Flag = "--set"
	vm, err := config.Load(ctx, config.Input{Flags: config.Flags{
		Name: "check", Memory: "64M", PluginDirs: dirs, Devices: []config.DeviceFlag{flag},
	}}, host, config.Options{CheckFiles: true})
	if err != nil {
		return "", nil, err
	}
	if path = ref.Path; path == "" {
		program, err := launcher.Discover(dirs).Find(name)
		if err != nil {
			return "", nil, err
		}
		path = program.Path
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return "", nil, err
	}
	d := vm.Devices[0]
	if d.Terminal != "" {
		return "", nil, usageError{errors.New("a device on the terminal cannot be checked: choose another back-end")}
	}
	if err := json.Unmarshal(d.FilesJSON, &settings); err != nil {
		return "", nil, fmt.Errorf("settings: %w", err)
	}
	return path, settings, nil
}

// printCase prints a line as its case ends, and below it why it failed.
func printCase(w io.Writer, width int, r devicetest.Result) {
	line := fmt.Sprintf("%-*s  %v", width, r.Case.Name, r.Status)
	if r.Status == devicetest.Skip {
		line += "  " + oneLine(r.Reason)
	}
	fmt.Fprintln(w, line)
	if r.Status != devicetest.Fail {
		return
	}
	text := r.Reason + "\nrule: " + r.Case.Source
	if r.Log != "" {
		text += "\nlog:\n" + r.Log
	}
	for line := range strings.Lines(text) {
		fmt.Fprintf(w, "    %s\n", oneLine(strings.TrimRight(line, "\n")))
	}
}
