package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/pluginhost"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

func (a *app) pluginCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plugin",
		Short: "Look at the plugins that are found",
		Long: `Look at the plugins that are found. A plugin is a program named virtplug-plugin-NAME. They are searched in this order: the
directories of --plugin-dir; then those of $VIRTPLUG_PLUGIN_PATH and nothing else if that is set; else virtplug's own
directory, $XDG_DATA_HOME/virtplug/plugins, virtplug/plugins in each of $XDG_DATA_DIRS, /usr/lib/virtplug/plugins and
/usr/local/lib/virtplug/plugins.`,
		Example: "  virtplug plugin list\n  virtplug plugin describe block",
	}
	var listJSON, describeJSON bool
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the plugins that are found",
		Example: "  virtplug plugin list\n  virtplug plugin list --json --plugin-dir ./bin",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.pluginList(cmd.Context(), listJSON) },
	}
	list.Flags().BoolVar(&listJSON, "json", false, "print JSON")
	describe := &cobra.Command{
		Use:     "describe NAME|PATH",
		Short:   "Tell what a plugin is and which settings it takes",
		Example: "  virtplug plugin describe block\n  virtplug plugin describe --json ./bin/virtplug-plugin-console",
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return (&launcher.Host{}).Names(a.pluginDirs), cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pluginDescribe(cmd.Context(), args[0], describeJSON)
		},
	}
	describe.Flags().BoolVar(&describeJSON, "json", false, "print JSON")
	cmd.AddCommand(list, describe, a.pluginCheckCommand())
	return group(cmd)
}

// listedPlugin is one line of plugin list.
type listedPlugin struct {
	Name        string `json:"name"`
	Path        string `json:"path"`
	Version     string `json:"version,omitempty"`
	DeviceID    uint32 `json:"device_id,omitempty"`
	Description string `json:"description,omitempty"`
	// ShadowedBy is the program that is used in its stead.
	ShadowedBy string `json:"shadowed_by,omitempty"`
	// Error is why it cannot be used.
	Error string `json:"error,omitempty"`
}

// listedDir is one directory that was searched.
type listedDir struct {
	Path  string `json:"path"`
	Error string `json:"error,omitempty"`
}

func (a *app) pluginList(ctx context.Context, asJSON bool) error {
	catalogue := launcher.Discover(a.pluginDirs)
	plugins := make([]listedPlugin, len(catalogue.Findings))
	var asking sync.WaitGroup
	for i, f := range catalogue.Findings {
		plugins[i] = listedPlugin{Name: f.Name, Path: f.Path, ShadowedBy: f.ShadowedBy}
		if f.Err != nil {
			plugins[i].Error = f.Err.Error()
			continue
		}
		asking.Go(func() {
			d, err := pluginhost.Describe(ctx, f.Program)
			if err != nil {
				plugins[i].Error = err.Error()
				return
			}
			plugins[i].Version, plugins[i].DeviceID, plugins[i].Description = d.GetVersion(), d.GetDeviceId(), d.GetDescription()
		})
	}
	asking.Wait()
	dirs := make([]listedDir, 0, len(catalogue.Directories))
	for _, d := range catalogue.Directories {
		l := listedDir{Path: d.Path}
		if d.Err != nil {
			l.Error = d.Err.Error()
			if errors.Is(d.Err, fs.ErrNotExist) {
				l.Error = "not there"
			}
		}
		dirs = append(dirs, l)
	}
	if asJSON {
		return a.printJSON(map[string]any{"schema_version": schemaVersion, "plugins": plugins, "directories": dirs})
	}
	if len(plugins) == 0 {
		fmt.Fprintln(a.stderr, "No plugin is found in")
		for _, d := range dirs {
			fmt.Fprintf(a.stderr, "  %s\n", strings.TrimSuffix(d.Path+": "+d.Error, ": "))
		}
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVERSION\tDEVICE\tPATH\tDESCRIPTION")
	for _, p := range plugins {
		text := p.Description
		switch {
		case p.Error != "":
			text = "cannot be used: " + p.Error
		case p.ShadowedBy != "":
			text = "not used: " + p.ShadowedBy + " comes first"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", p.Name, p.Version, p.DeviceID, p.Path, oneLine(text))
	}
	return w.Flush()
}

// oneLine makes s fit into a line of a table: it may come from a plugin.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// pluginRef names a plugin as a user does: by name, or by path if there is a slash in it.
func (a *app) pluginRef(name string) config.PluginRef {
	if strings.Contains(name, "/") {
		return config.PluginRef{Path: name}
	}
	return config.PluginRef{Name: name, Dirs: a.pluginDirs}
}

func (a *app) pluginDescribe(ctx context.Context, name string, asJSON bool) error {
	d, err := (&launcher.Host{}).Describe(ctx, a.pluginRef(name))
	if err != nil {
		return err
	}
	if asJSON {
		text, err := protojson.Marshal(d)
		if err != nil {
			return fmt.Errorf("describe plugin: %w", err)
		}
		return a.printJSON(map[string]any{"schema_version": schemaVersion, "plugin": json.RawMessage(text)})
	}
	return a.describeText(d)
}

func (a *app) describeText(d *pluginv1.DescribeResponse) error {
	fmt.Fprintf(a.stdout, "%s %s, virtio device type %d\n%s\n", d.GetName(), d.GetVersion(), d.GetDeviceId(), oneLine(d.GetDescription()))
	var caps []string
	for _, c := range d.GetCapabilities() {
		caps = append(caps, strings.ToLower(strings.TrimPrefix(c.String(), "CAPABILITY_")))
	}
	if len(caps) > 0 {
		fmt.Fprintf(a.stdout, "capabilities: %s\n", strings.Join(caps, ", "))
	}
	fmt.Fprintln(a.stdout, "\nSettings:")
	if err := config.WriteSettings(a.stdout, d.GetSchema()); err != nil {
		return err
	}
	for _, c := range d.GetCommands() {
		fmt.Fprintf(a.stdout, "\nCommand %s: %s\n", c.GetName(), oneLine(c.GetDescription()))
		if err := config.WriteSettings(a.stdout, c.GetArguments()); err != nil {
			return err
		}
	}
	return nil
}
