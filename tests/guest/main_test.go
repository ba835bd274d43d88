package guest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/virtplug/virtplug/core/initrd"
	"github.com/virtplug/virtplug/tests/session"
)

// programs are built once, from the sources that are tested.
type programs struct {
	// dir holds virtplug and the plugins, as bin/ does.
	dir string
	// initrd is the RAM disk for all tests: a shell on each console, e2fsprogs, and data under /test.
	initrd string
	// data is the host's copy of /test/data.
	data string
	// bulkSum is the SHA-256 of what tests of the network send.
	bulkSum string
	// missing is what this machine lacks; nil: nothing.
	missing error
}

var built programs

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "virtplug-guest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)                      //nolint:errcheck // a temporary directory
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // G302: some tests run the programs as another user
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	built, err = build(context.Background(), dir)
	if err != nil {
		fmt.Fprintf(os.Stderr, "tests/guest: %v\n", err)
		return 1
	}
	return m.Run()
}

// build makes the programs and the RAM disk.
func build(ctx context.Context, dir string) (programs, error) {
	p := programs{dir: filepath.Join(dir, "bin"), initrd: filepath.Join(dir, "initrd.gz"), data: filepath.Join(dir, "data")}
	if err := os.Mkdir(p.dir, 0o755); err != nil { //nolint:gosec // G301: as the directory above it
		return p, err
	}
	for name, pkg := range map[string]string{
		"virtplug": "cmd/virtplug", "virtplug-plugin-block": "plugins/block", "virtplug-plugin-console": "plugins/console",
		"virtplug-plugin-net": "plugins/net",
	} {
		if err := goBuild(ctx, "../..", filepath.Join(p.dir, name), "./"+pkg); err != nil {
			return p, err
		}
	}
	if err := os.WriteFile(p.data, session.Pattern(1, 3<<20), 0o600); err != nil {
		return p, err
	}
	var err error
	if p.bulkSum, err = bulkSum(); err != nil {
		return p, err
	}
	talk := filepath.Join(dir, "talk")
	if err := goBuild(ctx, ".", talk, "./testdata/talk"); err != nil {
		return p, err
	}
	if p.missing = needs(); p.missing != nil {
		return p, nil //nolint:nilerr // then the tests are skipped
	}
	return p, initrd.BuildFile(ctx, p.initrd, initrd.Options{Add: []initrd.File{
		{Host: "/sbin/mke2fs"}, {Host: p.data, Guest: "/test/data"}, {Host: talk, Guest: "/test/talk"},
	}})
}

// needs tells what the machine lacks.
func needs() error {
	var errs []error
	if _, err := initrd.DefaultKernel(); err != nil {
		errs = append(errs, err)
	}
	for _, program := range []string{"/sbin/mke2fs", "/sbin/e2fsck", "/sbin/debugfs"} {
		if _, err := os.Stat(program); err != nil {
			errs = append(errs, fmt.Errorf("no %s: install the Debian package e2fsprogs", program))
		}
	}
	return errors.Join(errs...)
}

// goBuild builds a program as `make build` does.
func goBuild(ctx context.Context, dir, output, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", output, pkg) //nolint:gosec // G204: packages that the tests name
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// need skips a test, loudly, if the machine lacks something.
func need(t *testing.T) {
	t.Helper()
	if built.missing != nil {
		t.Skipf("MISSING: %v", built.missing)
	}
}

// memory is what test guests get. Linux allows a thread for each 128 KiB, and while it starts Debian's User-Mode Linux has up
// to 700 of them: with less than this, its first fork fails now and then.
const memory = "128M"

// prepare makes a run of the test's guest, or skips the test.
func prepare(t *testing.T) *session.VM {
	t.Helper()
	need(t)
	v := session.New(t, built.dir)
	v.Args = []string{"--memory", memory, "--machine", "uml", "--initrd", built.initrd}
	return v
}
