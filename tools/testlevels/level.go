package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
)

const module = "github.com/virtplug/virtplug"

// level is one row of the design's table of tests.
type level struct {
	name, what string
	// has tells whether the level tests a package, by its directory in the module.
	has func(dir string) bool
	// args are further arguments of `go test`.
	args []string
	// env is further environment.
	env []string
}

// processDirs hold tests that start real plugin and launcher programs.
var processDirs = []string{"cmd", "core/launcher", "core/pluginhost", "tests/process", "examples"}

// guestDirs hold tests that boot User-Mode Linux, kvmDirs those of the KVM machine, nestedDirs what runs them in a machine with a full
// KVM.
var (
	guestDirs  = []string{"tests/guest"}
	kvmDirs    = []string{"tests/kvm"}
	nestedDirs = []string{"tests/nested"}
)

// noRaceDirs are left out of the race level: their data plane lives in memory that the race detector does not see.
var noRaceDirs = []string{"tools"}

func levels() []level {
	unit := func(dir string) bool {
		return !under(dir, slices.Concat(processDirs, guestDirs, kvmDirs, nestedDirs))
	}
	return []level{
		{name: "unit", what: "unit tests, the ring model, fuzz seeds and conformance; no race detector, so rings on memfd too",
			has: unit, args: []string{"-shuffle=on", "-timeout=10m"}},
		{name: "race", what: "the same under the race detector, rings on heap memory",
			has:  func(dir string) bool { return unit(dir) && !under(dir, noRaceDirs) },
			args: []string{"-race", "-shuffle=on", "-timeout=15m"}, env: []string{"CGO_ENABLED=1"}},
		{name: "process", what: "real plugin and launcher programs",
			has: func(dir string) bool { return under(dir, processDirs) }, args: []string{"-timeout=10m"}},
		{name: "guest", what: "User-Mode Linux boots with our devices",
			has: func(dir string) bool { return under(dir, guestDirs) }, args: []string{"-timeout=25m", "-parallel=2"}},
		{name: "machine", what: "the freestanding guest on this host's KVM; any /dev/kvm will do",
			has: func(dir string) bool { return under(dir, kvmDirs) }, args: []string{"-timeout=15m", "-parallel=2", "-run=^Test(Bare|Same)"}},
		{name: "nested", what: "stock Linux and the freestanding guest on a full KVM, inside QEMU",
			has: func(dir string) bool { return under(dir, nestedDirs) }, args: []string{"-timeout=30m"}},
	}
}

// under tells whether dir is one of roots or below it.
func under(dir string, roots []string) bool {
	for _, r := range roots {
		if dir == r || strings.HasPrefix(dir, r+"/") {
			return true
		}
	}
	return false
}

// listPackages returns the directories of the module's packages, relative: "sdk/virtq"; "." is the root.
func listPackages(ctx context.Context) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var dirs []string
	for p := range strings.FieldsSeq(string(out)) {
		dirs = append(dirs, path.Clean("."+strings.TrimPrefix(p, module)))
	}
	return dirs, nil
}

// run tests the level's packages and counts. Output of failed tests, and only theirs, goes to w.
func (l level) run(ctx context.Context, w io.Writer, all []string) result {
	args := append([]string{"test", "-json", "-count=1"}, l.args...)
	n := 0
	for _, dir := range all {
		if l.has(dir) {
			args = append(args, "./"+dir)
			n++
		}
	}
	if n == 0 {
		return result{}
	}
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // G204: package names of this module
	cmd.Env = append(os.Environ(), l.env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	stderr := &tail{}
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return failure(w, l, err, "")
	}
	if err := cmd.Start(); err != nil {
		return failure(w, l, err, "")
	}
	r, readErr := count(out, w)
	if readErr != nil {
		_, _ = io.Copy(io.Discard, out) // let the tests end
	}
	err = cmd.Wait()
	switch {
	case readErr != nil:
		r.add(failure(w, l, readErr, stderr.String()))
	case err != nil && r.failed == 0:
		r.add(failure(w, l, err, stderr.String()))
	}
	return r
}

// failure is a level that broke as a whole.
func failure(w io.Writer, l level, err error, stderr string) result {
	fmt.Fprintf(w, "FAIL: level %s: go test: %v\n%s", l.name, err, stderr)
	return result{failed: 1}
}

// tail keeps the last bytes written to it.
type tail struct{ b []byte }

// maxTail is enough for a screen of errors; arbitrary.
const maxTail = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > maxTail {
		t.b = append(t.b[:0], t.b[len(t.b)-maxTail:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }
