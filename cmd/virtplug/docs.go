package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/launcher"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

func (a *app) docsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "docs",
		Short:   "Write documentation",
		Example: "  virtplug docs configuration > configuration.md\n  virtplug docs man --dir man",
	}
	var names []string
	configuration := &cobra.Command{
		Use:     "configuration",
		Short:   "Write the reference of the configuration, from the plugins' schemas, as Markdown",
		Example: "  virtplug docs configuration > configuration.md\n  virtplug docs configuration --plugin block --plugin console",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.docsConfiguration(cmd.Context(), names) },
	}
	configuration.Flags().StringArrayVar(&names, "plugin", nil, "include the plugin `NAME`; may be repeated (default: all that are found)")
	var dir string
	man := &cobra.Command{
		Use:     "man --dir DIR",
		Short:   "Write a manual page for each command",
		Example: "  virtplug docs man --dir /usr/local/share/man/man1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usageError{errors.New("docs man: say where with --dir DIR")}
			}
			return writeManPages(cmd.Root(), dir)
		},
	}
	man.Flags().StringVar(&dir, "dir", "", "the `DIR` to write to")
	cmd.AddCommand(configuration, man)
	return group(cmd)
}

func (a *app) docsConfiguration(ctx context.Context, names []string) error {
	host := &launcher.Host{}
	if len(names) == 0 {
		names = host.Names(a.pluginDirs)
	}
	var plugins []*pluginv1.DescribeResponse
	for _, n := range names {
		d, err := host.Describe(ctx, config.PluginRef{Name: n, Dirs: a.pluginDirs})
		if err != nil {
			return err
		}
		plugins = append(plugins, d)
	}
	return config.WriteReference(a.stdout, plugins)
}

// writeManPages writes DIR/virtplug-run.1 and so on, for cmd and all below it.
func writeManPages(cmd *cobra.Command, dir string) error {
	if cmd.Hidden || cmd.Name() == "help" {
		return nil
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	if err := os.WriteFile(filepath.Join(dir, name+".1"), manPage(cmd, name), 0o644); err != nil { //nolint:gosec // for everybody to read
		return fmt.Errorf("docs man: %w", err)
	}
	var errs []error
	for _, c := range cmd.Commands() {
		errs = append(errs, writeManPages(c, dir))
	}
	return errors.Join(errs...)
}

// manPage is a command's page in the man macros.
func manPage(cmd *cobra.Command, name string) []byte {
	var b bytes.Buffer
	text := func(s string) { b.WriteString(roff(s) + "\n") }
	verbatim := func(s string) { b.WriteString(".PP\n.nf\n" + roff(strings.TrimRight(s, "\n")) + "\n.fi\n") }
	fmt.Fprintf(&b, ".TH %q 1 \"\" \"virtplug %s\" \"virtplug manual\"\n.SH NAME\n", strings.ToUpper(name), version)
	text(name + " - " + cmd.Short)
	b.WriteString(".SH SYNOPSIS\n")
	text(cmd.UseLine())
	if cmd.Long != "" {
		b.WriteString(".SH DESCRIPTION\n")
		for i, p := range strings.Split(cmd.Long, "\n\n") {
			switch {
			case strings.Contains(p, "\n  "):
				verbatim(p)
			case i > 0:
				b.WriteString(".PP\n")
				text(p)
			default:
				text(p)
			}
		}
	}
	options := func(title string, set *pflag.FlagSet) {
		if !set.HasAvailableFlags() {
			return
		}
		b.WriteString(".SH " + title + "\n")
		set.VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			value, usage := pflag.UnquoteUsage(f)
			b.WriteString(".TP\n")
			short := ""
			if f.Shorthand != "" {
				short = "-" + f.Shorthand + ", "
			}
			text(strings.TrimSpace(short + "--" + f.Name + " " + value))
			text(usage)
		})
	}
	options("OPTIONS", cmd.NonInheritedFlags())
	options("OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	if cmd.Example != "" {
		b.WriteString(".SH EXAMPLES\n")
		verbatim(cmd.Example)
	}
	return b.Bytes()
}

// roff escapes text for troff.
func roff(s string) string {
	lines := strings.Split(strings.ReplaceAll(strings.ReplaceAll(s, "\\", "\\e"), "-", "\\-"), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = "\\&" + l
		}
	}
	return strings.Join(lines, "\n")
}
