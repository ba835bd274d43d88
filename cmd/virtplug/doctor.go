package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/initrd"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/tap"
)

// Statuses of findings.
const (
	statusOK      = "ok"
	statusWarning = "warning"
	statusMissing = "missing"
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
	findings = checkMachines(machines(hclog.NewNullLogger()))
	auto := findings[len(findings)-1]
	plugins := (&launcher.Host{}).Names(a.pluginDirs)
	found := finding{"plugins", statusOK, strings.Join(plugins, ", ")}
	if len(plugins) == 0 {
		found = finding{"plugins", statusMissing, "none is found; 'virtplug plugin list' shows where it looks"}
	}
	findings = append(findings, checkKernels()...)
	findings = append(findings, checkBusybox(), found, checkMemfd(), checkTun(), checkUserns(), checkFiles(), checkRunRoot())
	return findings, auto.Status == statusOK && found.Status == statusOK
}

// prober is a machine that can be asked whether the host has what it needs, whatever the guest.
type prober interface{ Probe() error }

// checkMachines tries each machine with a small guest on its default kernel. The last finding is what auto takes.
func checkMachines(all []launcher.NamedMachine) []finding {
	guest := machine.Guest{Name: "doctor", MemoryBytes: 64 << 20, VCPUs: 1, RunDir: launcher.DefaultRunRoot()}
	var findings []finding
	auto := finding{"auto", statusMissing, "no machine can run guests"}
	var refused []string
	for _, m := range all {
		err := m.Machine.Check(guest)
		switch {
		case auto.Status == statusOK:
		case err == nil:
			auto = finding{"auto", statusOK, "machine auto takes " + m.Name}
			if len(refused) > 0 {
				auto.Detail += ", for " + strings.Join(refused, " and ") + " cannot be used"
			}
		default:
			refused = append(refused, m.Name)
		}
		if p, ok := m.Machine.(prober); ok { // its kernel is a finding of its own
			err = p.Probe()
		}
		f := finding{m.Name, statusOK, usable(m.Name)}
		if err != nil {
			f = finding{m.Name, statusMissing, strings.TrimPrefix(err.Error(), m.Name+": ")}
		}
		findings = append(findings, f)
	}
	for i := range findings {
		if findings[i].Status == statusMissing && auto.Status == statusOK { // others run
			findings[i].Status = statusWarning
		}
	}
	return append(findings, auto)
}

// usable says what a machine is good for.
func usable(name string) string {
	if name == "uml" {
		return "User-Mode Linux can run guests, without KVM and without root"
	}
	return "/dev/kvm can run guests"
}

// checkKernels looks for the machines' default kernels, and for the modules that an initial RAM disk needs.
func checkKernels() []finding {
	var findings []finding
	for _, m := range machineKernels() {
		f := finding{Check: "kernel-" + m.machine, Status: statusOK}
		kernel, release, err := m.check()
		switch {
		case err != nil:
			f.Status, f.Detail = statusWarning, err.Error()
		default:
			f.Detail = kernel + ", release " + release + ", with modules"
		}
		findings = append(findings, f)
	}
	return findings
}

func checkBusybox() finding {
	path, err := initrd.Busybox()
	if err != nil {
		return finding{"busybox", statusWarning, err.Error() + "; `virtplug initrd` needs it"}
	}
	return finding{"busybox", statusOK, path + " is static: `virtplug initrd` can use it"}
}

func checkMemfd() finding {
	fd, err := unix.MemfdCreate("virtplug-doctor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return finding{"memfd", statusMissing, "memfd_create: " + err.Error() + "; guest memory needs it (Linux 3.17)"}
	}
	defer unix.Close(fd) //nolint:errcheck // only tried
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		return finding{"memfd", statusMissing, "sealing: " + err.Error()}
	}
	return finding{"memfd", statusOK, "guest memory can be shared and sealed"}
}

func checkTun() finding {
	usable, err := tap.CanMake()
	switch {
	case !usable:
		return finding{"tun", statusWarning, err.Error() + "; `--net tap` needs it, `--net user` does not"}
	case err != nil:
		return finding{"tun", statusOK, "tap interfaces of this user can be used; " + err.Error()}
	}
	return finding{"tun", statusOK, "tap interfaces can be made and used"}
}

func checkUserns() finding {
	for _, path := range []string{"/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/unprivileged_userns_clone"} {
		text, err := os.ReadFile(path) //nolint:gosec // one of two constants
		if err != nil {
			continue // the second is Debian's own
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n == 0 {
			return finding{"userns", statusWarning, path + " is 0: plugins cannot be confined in user namespaces; set it to 1 or more with sysctl"}
		}
	}
	return finding{"userns", statusOK, "user namespaces are allowed"}
}

// wantFiles is enough descriptors for some tens of devices; arbitrary.
const wantFiles = 1024

func checkFiles() finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return finding{"files", statusWarning, "getrlimit: " + err.Error()}
	}
	detail := fmt.Sprintf("%d open files (at most %d)", limit.Cur, limit.Max)
	if limit.Max < wantFiles {
		return finding{"files", statusWarning, detail + fmt.Sprintf("; many devices need %d: raise `ulimit -n`", wantFiles)}
	}
	return finding{"files", statusOK, detail}
}

func checkRunRoot() finding {
	root := launcher.DefaultRunRoot()
	if strings.HasPrefix(root, "/tmp/") {
		return finding{"rundir", statusOK, root + " ($XDG_RUNTIME_DIR is not usable)"}
	}
	return finding{"rundir", statusOK, root}
}
