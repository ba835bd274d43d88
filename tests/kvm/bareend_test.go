package kvm_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/session"
)

// Each way in which a guest ends has its exit status (docs/kvm.md), and what there is to tell is told.
func TestBareEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		end    string
		flag   string
		code   int
		stderr []string
	}{
		{"poweroff", "", 0, nil},
		{"reboot", "--no-reboot", 0, []string{"asked to be restarted"}},
		{"keyboard", "--no-reboot", 0, []string{"asked to be restarted"}},
		{"panic", "", 3, []string{"panic"}},
		{"panictext", "", 3, []string{"Kernel panic - not syncing: asked for on the command line"}},
		{"triplefault", "", 4, []string{"triple fault", "rip"}},
		{"badinsn", "", 4, []string{"internal error", "rip"}},
	} {
		t.Run(c.end, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			args := []string{"--block", disk(t, v, "d", session.Pattern(1, mebi))}
			if c.flag != "" {
				args = append(args, c.flag)
			}
			r := runBare(t, v, c.code, "test=start end="+c.end, args...)
			r.good(t, "disk0.start")
			said := strings.ToLower(v.Stderr.String())
			for _, text := range c.stderr {
				if !strings.Contains(said, strings.ToLower(text)) {
					t.Errorf("standard error has no %q:\n%s", text, v.Stderr)
				}
			}
		})
	}
}

// The guest asks for a restart twice: it comes up again, with the same plugin processes, and finds what it wrote.
func TestBareReboots(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			startBare(v, "reboots=2 end=halt", "--bus", bus, "--block", disk(t, v, "d", session.Pattern(1, mebi)), "--console", "file:"+v.Path("console"))
			waitReport(t, v, "PASS disk0.start")
			before := append(v.Plugin("block"), v.Plugin("console")...)
			r := waitDone(t, v)
			r.good(t, "disk0.read", "console0.write", "reboots")
			if n := strings.Count(string(r), "INFO start "); n != 3 {
				t.Errorf("the guest has started %d times, want 3", n)
			}
			if after := append(v.Plugin("block"), v.Plugin("console")...); len(before) != 2 || !slices.Equal(before, after) {
				t.Errorf("plugin processes were %v, are %v: want two, the same", before, after)
			}
			stop(t, v)
		})
	}
}

// stop ends a guest as `virtplug stop` does, whatever it is doing.
func stop(t *testing.T, v *session.VM) {
	t.Helper()
	vms := describe(t, v)
	if out, err := v.Virtplug("stop", vms.Name).CombinedOutput(); err != nil {
		t.Fatalf("virtplug stop: %v\n%s", err, out)
	}
	v.Ended(0)
}

// A guest that does not react to its power button is switched off: one that sleeps, one that never does.
func TestBareIsSwitchedOff(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"halt", "hang"} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(end+", "+sig.String(), func(t *testing.T) {
				t.Parallel()
				v := newBare(t)
				startBare(v, "test=start end="+end, "--cpus", "2", "--block", disk(t, v, "d", session.Pattern(1, mebi)))
				waitDone(t, v)
				v.Signal(sig)
				v.Ended(130)
			})
		}
	}
}

// A signal at any moment ends everything.
func TestBareIsStoppedAtEveryStage(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			startBare(v, "reinit=1000", "--block", disk(t, v, "d", session.Pattern(1, mebi)), "--console", "stdio")
			time.Sleep(after)
			v.Signal(syscall.SIGTERM)
			v.WaitExit()
			// Before the program has set up its handlers the signal itself ends it; a guest that was quick has ended well.
			code, died := v.Cmd.ProcessState.ExitCode(), v.Cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() //nolint:forcetypeassert // on Linux
			if code != 130 && code != 0 && !died {
				t.Errorf("exit status %v, want 130", v.Cmd.ProcessState)
			}
			v.NothingLeft()
		})
	}
}
