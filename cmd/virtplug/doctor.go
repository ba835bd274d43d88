package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/machine/uml"
)

// finding is the result of one check of doctor.
type finding struct {
	Check string `json:"check"`
	// Status is ok, warning (something works less well) or missing.
	Status string `json:"status"`
	Detail string `json:"detail"`
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what this host can do, and say what to install or change",
		Long: `Check what this host can do, and say what to install or change. The exit status is 1 if no guest can be run
or no plugin is found.`,
		Example: "  virtplug doctor\n  virtplug doctor --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			findings, ok := a.diagnose()
			if asJSON {
				if err := a.printJSON(map[string]any{"schema_version": schemaVersion, "ok": ok, "checks": findings}); err != nil {
					return err
				}
			} else {
				w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
				for _, f := range findings {
					fmt.Fprintf(w, "%s\t%s\t%s\n", f.Check, f.Status, oneLine(f.Detail))
				}
				if err := w.Flush(); err != nil {
					return err
				}
			}
			if !ok {
				return exitStatus{code: exitError}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// diagnose runs all checks; ok: a guest can be run.
func (a *app) diagnose() (findings []finding, ok bool) {
	umlOK := finding{"uml", "ok", "User-Mode Linux can run guests"}
	if err := uml.New(uml.Options{}).Check(machine.Guest{Name: "doctor", MemoryBytes: 64 << 20, VCPUs: 1, RunDir: launcher.DefaultRunRoot()}); err != nil {
		umlOK = finding{"uml", "missing", err.Error()}
	}
	plugins := (&launcher.Host{}).Names(a.pluginDirs)
	found := finding{"plugins", "ok", strings.Join(plugins, ", ")}
	if len(plugins) == 0 {
		found = finding{"plugins", "missing", "none is found; 'virtplug plugin list' shows where it looks"}
	}
	findings = []finding{checkKVM(), umlOK, found, checkMemfd(), checkUserns(), checkFiles(), checkRunRoot()}
	return findings, umlOK.Status == "ok" && found.Status == "ok"
}

func checkKVM() finding {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return finding{"kvm", "warning", err.Error() + "; guests run under User-Mode Linux"}
	}
	_ = f.Close() // only tried
	return finding{"kvm", "ok", "/dev/kvm can be opened (not used by this version)"}
}

func checkMemfd() finding {
	fd, err := unix.MemfdCreate("virtplug-doctor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return finding{"memfd", "missing", "memfd_create: " + err.Error() + "; guest memory needs it (Linux 3.17)"}
	}
	defer unix.Close(fd) //nolint:errcheck // only tried
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		return finding{"memfd", "missing", "sealing: " + err.Error()}
	}
	return finding{"memfd", "ok", "guest memory can be shared and sealed"}
}

func checkUserns() finding {
	for _, path := range []string{"/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/unprivileged_userns_clone"} {
		text, err := os.ReadFile(path) //nolint:gosec // one of two constants
		if err != nil {
			continue // the second is Debian's own
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n == 0 {
			return finding{"userns", "warning", path + " is 0: plugins cannot be confined in user namespaces; set it to 1 or more with sysctl"}
		}
	}
	return finding{"userns", "ok", "user namespaces are allowed"}
}

// wantFiles is enough descriptors for some tens of devices; arbitrary.
const wantFiles = 1024

func checkFiles() finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return finding{"files", "warning", "getrlimit: " + err.Error()}
	}
	detail := fmt.Sprintf("%d open files (at most %d)", limit.Cur, limit.Max)
	if limit.Max < wantFiles {
		return finding{"files", "warning", detail + fmt.Sprintf("; many devices need %d: raise `ulimit -n`", wantFiles)}
	}
	return finding{"files", "ok", detail}
}

func checkRunRoot() finding {
	root := launcher.DefaultRunRoot()
	if strings.HasPrefix(root, "/tmp/") {
		return finding{"rundir", "ok", root + " ($XDG_RUNTIME_DIR is not usable)"}
	}
	return finding{"rundir", "ok", root}
}
