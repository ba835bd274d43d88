package main

import (
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// schemaVersion is the version of everything that --json prints. It changes when a member goes or changes its meaning; new
// members come without a change.
const schemaVersion = 1

// Exit codes; they are documented in --help and do not change.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitGuestPanic  = 3
	exitMachine     = 4
	exitDevice      = 5
	exitInterrupted = 130
)

const exitHelp = `Exit status:
  0    it worked; for run: the guest powered off, or was ended by the escape key
  1    error
  2    wrong usage or configuration
  3    the guest's kernel panicked
  4    the machine that ran the guest crashed
  5    a device could not start, or had failed when the guest ended
  130  interrupted by a signal`

// app is what all commands share.
type app struct {
	stdout io.Writer
	// stderr takes messages and logs; while the terminal is in raw mode it ends lines as that needs.
	stderr *switchWriter
	colour bool
	width  uint

	pluginDirs []string
	logLevel   string
	logJSON    bool
	// started: the command line was understood, so an error is not one of usage.
	started bool
}

// execute runs a command line and returns the exit status.
func execute(args []string) int {
	a := &app{stdout: os.Stdout, stderr: &switchWriter{w: os.Stderr}}
	if fd := int(os.Stderr.Fd()); term.IsTerminal(fd) {
		a.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if w, _, err := term.GetSize(fd); err == nil && w > 0 {
			a.width = uint(w)
		}
	}
	root := a.rootCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	return a.report(cmd, err)
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "virtplug",
		Short: "Virtual machines whose devices are plugins",
		Long: `virtplug runs virtual machines whose devices are plugins: programs of their own, which serve their virtqueues straight in
the guest's memory. A plugin may crash or be replaced while the guest runs.

` + exitHelp,
		Example: `  virtplug run vm.hcl
  virtplug run --memory 256M --kernel linux --initrd initrd.gz --block disk.img --console stdio
  virtplug plugin list`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(*cobra.Command, []string) error { a.started = true; return a.checkLogLevel() },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true}, // ours has examples
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringArrayVar(&a.pluginDirs, "plugin-dir", nil, "search `DIR` for plugins before the default places; may be repeated")
	f.StringVar(&a.logLevel, "log-level", "warn", "what is logged to standard error: trace, debug, info, warn, error or off")
	f.BoolVar(&a.logJSON, "log-json", false, "log JSON, one object a line")
	noError(root.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions(logLevels(), cobra.ShellCompDirectiveNoFileComp)))
	noError(root.MarkPersistentFlagDirname("plugin-dir"))
	root.AddCommand(a.runCommand(), a.configCommand(), a.pluginCommand(), a.versionCommand(), a.docsCommand(), a.psCommand(), a.stopCommand(), a.pauseCommand(), a.resumeCommand(), a.resizeCommand(), a.commandCommand(), a.doctorCommand(), a.lguestCommand(), a.benchCommand(), a.completionCommand(), a.initrdCommand())
	return root
}

func logLevels() []string { return []string{"trace", "debug", "info", "warn", "error", "off"} }

func (a *app) checkLogLevel() error {
	if slices.Contains(logLevels(), a.logLevel) {
		return nil
	}
	return usageError{fmt.Errorf("--log-level %s: want one of trace, debug, info, warn, error and off", a.logLevel)}
}

// logger makes the one logger of a command.
func (a *app) logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "virtplug", Level: hclog.LevelFromString(a.logLevel), Output: a.stderr, JSONFormat: a.logJSON,
	})
}

// group makes cmd a command that only has others below it: cobra would answer a wrong name with help and status 0.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
			hint = fmt.Sprintf("; did you mean %q?", s[0])
		}
		return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), hint)
	}
	cmd.SuggestionsMinimumDistance = 2 // cobra's own default is set too late
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// noError is for what can fail only by a mistake in this program.
func noError(err error) {
	if err != nil {
		panic("BUG: " + err.Error())
	}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print a script that completes commands in a shell",
		Example: `  source <(virtplug completion bash)
  virtplug completion zsh > "${fpath[1]}/_virtplug"
  virtplug completion fish > ~/.config/fish/completions/virtplug.fish`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			}
			return root.GenPowerShellCompletionWithDesc(a.stdout)
		},
	}
}
