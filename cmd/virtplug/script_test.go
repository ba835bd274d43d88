package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/virtplug/virtplug/core/pluginhost"
)

// binEnv names the directory with the programs that TestMain built.
const binEnv = "VIRTPLUG_TEST_BIN"

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "virtplug-test")
		if err == nil {
			defer os.RemoveAll(dir) //nolint:errcheck // the end
			err = build(dir)
		}
		if err == nil {
			err = os.Setenv(binEnv, dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// build builds the command and its plugins into dir, as `make build` does into bin.
func build(dir string) error {
	for name, pkg := range map[string]string{
		"virtplug":                        ".",
		pluginhost.FilePrefix + "block":   "../../plugins/block",
		pluginhost.FilePrefix + "console": "../../plugins/console",
		pluginhost.FilePrefix + "net":     "../../plugins/net",
	} {
		out, err := exec.CommandContext(context.Background(), "go", "build", "-o", filepath.Join(dir, name), pkg).CombinedOutput() //nolint:gosec // our own sources
		if err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	return nil
}

func TestScripts(t *testing.T) {
	t.Parallel()
	bin := os.Getenv(binEnv)
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			if err := openTo(nobody, e.WorkDir, bin); err != nil {
				return err
			}
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("BIN", bin)
			e.Setenv("EXAMPLES", examples)
			e.Setenv("XDG_RUNTIME_DIR", e.WorkDir) // often too long, which is a test too
			return nil
		},
		Condition: condition,
		Cmds:      map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "unprivileged": unprivileged},
	})
}

// condition is what scripts may ask for in brackets besides testscript's own.
func condition(name string) (bool, error) {
	switch name {
	case "root":
		return os.Getuid() == 0, nil
	case "kvm": // a /dev/kvm that may be used, whatever it can run
		return canOpen("/dev/kvm")
	case "tun":
		return canOpen("/dev/net/tun")
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

// canOpen tells whether a device may be used.
func canOpen(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0) //nolint:gosec // one of two
	if err != nil {
		return false, nil //nolint:nilerr // that is the answer
	}
	return true, f.Close()
}

// exits is `exits CODE COMMAND…`: like exec, and the exit status must be CODE.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if ee := (*exec.ExitError)(nil); errors.As(err, &ee) {
		got = ee.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s: exit status %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// nobody is a user without any rights.
const nobody = 65534

// openTo lets another user into directories that this process made, if it is root and so needs another user at all.
func openTo(uid int, dirs ...string) error {
	if os.Getuid() != 0 || uid == 0 {
		return nil
	}
	for _, d := range dirs {
		for tmp := os.TempDir(); len(d) > len(tmp); d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // G302: that is the point
				return err
			}
		}
	}
	return nil
}

// unprivileged is `unprivileged CODE COMMAND…`: like exits, but as nobody if the test runs as root.
func unprivileged(ts *testscript.TestScript, neg bool, args []string) {
	if os.Getuid() == 0 && len(args) > 1 {
		args = append([]string{args[0], "setpriv", fmt.Sprintf("--reuid=%d", nobody), "--clear-groups", "--"}, args[1:]...)
	}
	exits(ts, neg, args)
}
