package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// version is the release; the build sets it with -ldflags "-X main.version=…".
var version = "0.1.0-dev" //nolint:gochecknoglobals // only the linker changes it

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  virtplug version\n  virtplug version --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			commit := ""
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						commit = s.Value
					}
				}
			}
			if asJSON {
				return a.printJSON(map[string]any{
					"schema_version": schemaVersion, "version": version, "commit": commit, "plugin_api": pluginrpc.APIVersion,
					"go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			if commit != "" {
				commit = ", commit " + commit[:min(12, len(commit))]
			}
			_, err := fmt.Fprintf(a.stdout, "virtplug %s (plugin API %d%s, %s %s/%s)\n", version, pluginrpc.APIVersion, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
