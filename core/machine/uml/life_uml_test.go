package uml

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/machine"
)

func TestUMLTellsWhyTheGuestEnded(t *testing.T) {
	t.Parallel()
	requireUML(t)
	for _, c := range []struct {
		script, detail string
		want           machine.Reason
	}{
		{"poweroff -f", "reboot: ", machine.PowerOff},
		{"halt -f", "System halted", machine.PowerOff},
		{"reboot -f", "Restarting system", machine.Reboot},
		{"echo c > /proc/sysrq-trigger", "Kernel panic - not syncing: sysrq triggered crash", machine.Panic},
		{"exit 3", "Kernel panic - not syncing: Attempted to kill init!", machine.Panic},
	} {
		t.Run(c.script, func(t *testing.T) {
			t.Parallel()
			exit, _ := boot(t, initramfs(t, c.script+"\n"))
			if exit.Reason != c.want || !strings.Contains(exit.Detail, c.detail) {
				t.Errorf("exit %+v: want reason %d, detail %q", exit, c.want, c.detail)
			}
		})
	}
}

func TestUMLGuestCannotMountTheHost(t *testing.T) {
	t.Parallel()
	requireUML(t)
	_, out := boot(t, initramfs(t, "mount -t hostfs none /tmp && echo MOUNTED; echo LISTED $(ls /tmp)\npoweroff -f\n"))
	if strings.Contains(out, "MOUNTED") || !strings.Contains(out, "LISTED") {
		t.Errorf("hostfs shows the host's files:\n%s", out)
	}
}

// busyGuest has several processes, so that several traced host processes exist.
const busyGuest = "sleep 1000 &\nsh -c 'while :; do :; done' &\necho BUSY\nsleep 1000\n"

// proc is one process: its id may be used again, its id and start time together not.
type proc struct {
	pid, ppid int
	start     string
	kernel    bool
}

// procs reads all live processes of the host.
func procs(t *testing.T) (all []proc) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path) //nolint:gosec // below /proc
		if err != nil {
			continue // it has just ended
		}
		text := string(b)
		f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // state ppid … starttime is the 20th
		if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
			continue
		}
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		ppid, pperr := strconv.Atoi(f[1])
		if err := errors.Join(perr, pperr); err != nil {
			t.Fatal(err)
		}
		all = append(all, proc{pid: pid, ppid: ppid, start: f[19], kernel: strings.Contains(text, "(linux")})
	}
	return all
}

// family is the process pid and all its descendants: keeper, watchdog, kernel, helpers, traced processes.
func family(t *testing.T, pid int) (in []proc) {
	t.Helper()
	all := procs(t)
	member := map[int]bool{pid: true}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if member[p.ppid] && !member[p.pid] {
				member[p.pid], grown = true, true
			}
		}
	}
	for _, p := range all {
		if member[p.pid] {
			in = append(in, p)
		}
	}
	if len(in) < 6 {
		t.Fatalf("%d processes: the test looks at the wrong ones", len(in))
	}
	return in
}

// startBusy starts a busy guest in one kind of jail.
func startBusy(t *testing.T, k jailKind) *process {
	t.Helper()
	g := machine.Guest{MemoryBytes: 128 << 20, Initrd: initramfs(t, busyGuest), RunDir: runDir(t)}
	if err := prepareRunDir(g); err != nil {
		t.Fatal(err)
	}
	args, err := arguments(g, nil)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := findKernel("")
	if err != nil {
		t.Fatal(err)
	}
	out := &syncBuffer{}
	p, err := startIn([]jailKind{k}, kernel, args, g.RunDir, shmDir, out)
	if errors.Is(err, unix.EPERM) {
		t.Skipf("SKIPPED, this host allows no %s: %v", k.name, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill(); <-p.done })
	out.await(t, "BUSY")
	return p
}

func awaitGone(t *testing.T, gone []proc) {
	t.Helper()
	var left []proc
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		left = nil
		for _, p := range procs(t) {
			if slices.ContainsFunc(gone, func(g proc) bool { return g.pid == p.pid && g.start == p.start }) {
				left = append(left, p)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("processes %+v are left", left)
	for _, p := range left {
		_ = unix.Kill(p.pid, unix.SIGKILL) // ours: id and start time agree
	}
}

func TestUMLLeavesNoProcess(t *testing.T) {
	t.Parallel()
	requireUML(t)
	for _, k := range jails() {
		for name, end := range map[string]func(*process, []proc){
			"keeper killed": func(p *process, _ []proc) { _ = unix.Kill(p.pid, unix.SIGKILL) },
			"kernel killed": func(p *process, all []proc) {
				i := slices.IndexFunc(all, func(c proc) bool { return c.kernel && c.ppid == p.pid })
				_ = unix.Kill(all[i].pid, unix.SIGKILL)
			},
			"stopped": func(p *process, _ []proc) { p.kill() },
		} {
			t.Run(k.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				p := startBusy(t, k)
				all := family(t, p.pid)
				end(p, all)
				select {
				case <-p.done:
				case <-time.After(bootLimit):
					t.Fatal("the guest did not end")
				}
				if p.code != 128+9 {
					t.Errorf("code %d: want 137", p.code)
				}
				awaitGone(t, all)
			})
		}
	}
}

// launcherEnv makes the test binary a launcher that runs a busy guest: the jail's index and the run directory.
const launcherEnv = "VIRTPLUG_TEST_UML_LAUNCHER"

// TestUMLLauncherHelper is no test: it is the launcher of TestUMLDiesWithItsLauncher.
func TestUMLLauncherHelper(t *testing.T) { //nolint:paralleltest // a process of its own
	arg := os.Getenv(launcherEnv)
	if arg == "" {
		return
	}
	i, err := strconv.Atoi(arg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Skipped() {
			_, _ = os.Stdout.WriteString("PID 0\n") // whoever waits for one need not
		}
	}()
	p := startBusy(t, jails()[i])
	if _, err := os.Stdout.WriteString("PID " + strconv.Itoa(p.pid) + "\n"); err != nil {
		t.Fatal(err)
	}
	<-p.done
}

func TestUMLDiesWithItsLauncher(t *testing.T) {
	t.Parallel()
	requireUML(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range jails() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			out := &syncBuffer{}
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestUMLLauncherHelper$", "-test.v")
			tmp := runDir(t) // the helper is killed and cannot clean up
			cmd.Env = append(os.Environ(), launcherEnv+"="+strconv.Itoa(i), "TMPDIR="+tmp)
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			out.await(t, "PID ")
			pid := -1
			for pid < 0 {
				_, rest, _ := strings.Cut(out.String(), "PID ")
				if line, _, ok := strings.Cut(rest, "\n"); ok {
					if pid, err = strconv.Atoi(line); err != nil {
						t.Fatal(err)
					}
				}
			}
			if pid == 0 {
				t.Skip("SKIPPED, this host does not allow it: ", out)
			}
			all := family(t, pid)
			if err := cmd.Process.Kill(); err != nil { // SIGKILL: nothing of the launcher's own can help
				t.Fatal(err)
			}
			awaitGone(t, all)
		})
	}
}

func TestUMLStopsWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	requireUML(t)
	d, _ := newBlk(t, "vda", 1<<20, 1)
	ctx, cancel := context.WithCancel(t.Context())
	out := &syncBuffer{}
	go func() {
		defer cancel()
		out.await(t, "BUSY")
	}()
	dir := runDir(t)
	m := New(Options{Grace: 20 * time.Second})
	exit, err := m.run(ctx, machine.Guest{
		MemoryBytes: 128 << 20, Initrd: initramfs(t, busyGuest, blkModule), RunDir: dir, Console: out,
	}, []endpoint{{id: d.ID(), dev: d}})
	if err != nil || exit.Reason != machine.Stopped {
		t.Fatalf("exit %+v, error %v: want stopped", exit, err)
	}
	for _, want := range []string{"Emergency Sync complete", "Emergency Remount complete"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("guest was not asked to write back: no %q:\n%s", want, out)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "d*"))
	if err != nil || len(left) > 0 {
		t.Errorf("sockets %v are left (%v)", left, err)
	}
}

func TestUMLStopsBeforeTheGuestAnswers(t *testing.T) {
	t.Parallel()
	requireUML(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	exit, err := New(Options{}).Run(ctx, machine.Guest{
		MemoryBytes: 128 << 20, Initrd: initramfs(t, busyGuest), RunDir: runDir(t),
	}, nil)
	if err != nil || exit.Reason != machine.Stopped {
		t.Fatalf("exit %+v, error %v: want stopped", exit, err)
	}
}
