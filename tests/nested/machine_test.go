package nested_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/virtplug/virtplug/tests/session"
)

// Limits. What hangs inside is ended first, as it tells more.
const (
	innerLimit = 20 * time.Minute
	outerLimit = innerLimit + 3*time.Minute
)

// What level 1 is told. An emulated processor's time stamp counter is good, only its frequency is hard to measure: without
// tsc=reliable each look at the clock goes through the emulator. With high-resolution timers its interrupts come faster than a busy
// host serves them, and level 2 makes no progress: seen once in 26 boots.
const cmdline = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable highres=off nohz=off"

// qemu is a running level 1.
type qemu struct {
	// tests is what the tests print.
	tests io.ReadCloser
	cmd   *exec.Cmd
	// console is the file with what else level 1 says.
	console string
	stderr  bytes.Buffer
}

// start boots level 1. It ends when ctx does.
func (l level1) start(ctx context.Context, dir string) (*qemu, error) {
	q := &qemu{console: filepath.Join(dir, "console")}
	q.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", //nolint:gosec // G204: files of this test
		// NPT: the guest's page tables are walked by the (emulated) processor.
		// One processor: with two, one in a few boots at level 2 stands still, in page faults that KVM cannot resolve (seen at
		// reboots and panics; never with one, and it is faster besides).
		// Memory is taken from the host when it is used.
		"-accel", "tcg", "-cpu", "EPYC,+svm,+npt", "-smp", "1", "-m", "6144",
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot",
		"-serial", "file:"+q.console, "-serial", "stdio",
		"-kernel", l.kernel, "-initrd", l.initrd, "-append", cmdline)
	q.cmd.Stderr = &q.stderr
	var err error
	if q.tests, err = q.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := q.cmd.Start(); err != nil {
		return nil, fmt.Errorf("level 1: %w", err)
	}
	return q, nil
}

// wait waits for the end.
func (q *qemu) wait() error {
	if err := q.cmd.Wait(); err != nil {
		return fmt.Errorf("level 1: %w\n%s", err, q.complaints())
	}
	return nil
}

// complaints are what QEMU says, without what TCG lacks of the processor's features: that is known.
func (q *qemu) complaints() string {
	var out strings.Builder
	for line := range strings.Lines(q.stderr.String()) {
		if !strings.Contains(line, "TCG doesn't support requested feature") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// said is the end of what level 1 printed besides the tests.
func (q *qemu) said() string {
	b, err := os.ReadFile(q.console)
	if err != nil {
		return err.Error()
	}
	return string(session.Tail(b, 6000))
}

// needs tells what this host lacks.
func needs() error {
	var errs []error
	for program, pkg := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "gcc": "gcc", "make": "make"} {
		if _, err := exec.LookPath(program); err != nil {
			errs = append(errs, fmt.Errorf("no %s: install the Debian package %s", program, pkg))
		}
	}
	return errors.Join(errs...)
}
