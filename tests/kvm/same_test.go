package kvm_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/initrd"
	"github.com/virtplug/virtplug/tests/session"
)

// The same programs serve the KVM machine, User-Mode Linux and the loopback machine: not only of the same name, but the same bytes.
func TestSameProgramsServeAllMachines(t *testing.T) {
	t.Parallel()
	needBare(t)
	if _, err := initrd.DefaultKernel(); err != nil {
		t.Skipf("MISSING: %v", err)
	}
	want := map[string]string{}
	for _, name := range []string{"block", "console"} {
		want[name] = digest(t, filepath.Join(built.Bin(), "virtplug-plugin-"+name))
	}
	same := func(t *testing.T, machine string, plugins func(name string) []int) {
		t.Helper()
		for name, sum := range want {
			pids := plugins(name)
			if len(pids) != 1 {
				t.Errorf("%s: %d processes of plugin %s, want 1", machine, len(pids), name)
			}
			for _, pid := range pids {
				if got := digest(t, fmt.Sprintf("/proc/%d/exe", pid)); got != sum {
					t.Errorf("%s: plugin %s is a program with the sum %s, want %s", machine, name, got, sum)
				}
			}
		}
	}
	t.Run("kvm", func(t *testing.T) {
		t.Parallel()
		v := newBare(t)
		startBare(v, "end=halt", "--block", disk(t, v, "d", session.Pattern(1, mebi)), "--console", "file:"+v.Path("console"))
		waitDone(t, v).good(t, "disk0.read", "console0.write")
		same(t, "kvm", v.Plugin)
		stop(t, v)
	})
	t.Run("uml", func(t *testing.T) {
		t.Parallel()
		v := session.New(t, built.Bin())
		v.Args = []string{"--machine", "uml", "--memory", "128M", "--initrd", v.Path("initrd.gz")}
		if err := initrd.BuildFile(t.Context(), v.Path("initrd.gz"), initrd.Options{}); err != nil {
			t.Fatal(err)
		}
		content := session.Pattern(1, mebi)
		v.Boot("--block", disk(t, v, "d", content), "--console", "stdio")
		if got, want := v.Must("sha256sum </dev/vda"), fmt.Sprintf("%x  -", sha256.Sum256(content)); got != want {
			t.Errorf("the guest reads %s, want %s", got, want)
		}
		same(t, "uml", v.Plugin)
		v.PowerOff()
	})
	for name, settings := range map[string][]string{"block": {"--set", "path=d"}, "console": {"--set", "backend=null"}} {
		t.Run("loopback, "+name, func(t *testing.T) {
			t.Parallel()
			v := session.New(t, built.Bin())
			disk(t, v, "d", session.Pattern(1, mebi))
			checkLoopback(t, v, name, settings, want[name])
		})
	}
}

// checkLoopback lets the conformance suite drive a plugin on the loopback machine, and looks at what it starts.
func checkLoopback(t *testing.T, v *session.VM, name string, settings []string, want string) {
	t.Helper()
	var out session.Output
	cmd := v.Virtplug(append([]string{"plugin", "check", name}, settings...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := session.Watch(cmd.Process.Pid, v.Path(""))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		f.Kill()
		f.Stop()
	})
	seen := 0
	for limit := time.After(session.BootLimit); ; {
		for _, pid := range f.Plugin(name) {
			exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
			if err != nil {
				continue // it has ended
			}
			if got := sum(t, exe); got != want {
				t.Fatalf("loopback: plugin %s is a program with the sum %s, want %s", name, got, want)
			}
			seen++
		}
		select {
		case err := <-ended:
			if err != nil || seen == 0 {
				t.Errorf("virtplug plugin check %s: %v, seen %d processes:\n%s", name, err, seen, out.String())
			}
			return
		case <-limit:
			t.Fatalf("virtplug plugin check %s has not ended within %v:\n%s", name, session.BootLimit, out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// digest is the SHA-256 sum of a file.
func digest(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name) //nolint:gosec // G304: a program of this test
	if err != nil {
		t.Fatal(err)
	}
	return sum(t, f)
}

func sum(t *testing.T, f *os.File) string {
	t.Helper()
	defer f.Close() //nolint:errcheck // read only
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
