package guest_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// Limits, generous: machines are slow and noisy. They bound a test that failed, not one that passes.
const (
	bootLimit    = 90 * time.Second
	commandLimit = 90 * time.Second
	endLimit     = 30 * time.Second
)

// vm is a running `virtplug run` on a terminal of its own.
type vm struct {
	t *testing.T
	// dir is the test's; run and tmp below it are XDG_RUNTIME_DIR and TMPDIR of the launcher.
	dir, run, tmp string
	cmd           *exec.Cmd
	// term is our side of the terminal, tty the guest's.
	term, tty *os.File
	before    unix.Termios
	stderr    *lockedBuffer
	family    *family

	mu      sync.Mutex
	changed chan struct{}
	out     []byte
	// read is how much of out was consumed.
	read int

	exited  chan struct{}
	waitErr error
}

// lockedBuffer is a buffer that one goroutine writes while others look.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// prepare makes the test's directories. Paths of sockets are short, so the directory is /tmp's.
func prepare(t *testing.T) *vm {
	t.Helper()
	need(t)
	dir, err := os.MkdirTemp("/tmp", "vp") //nolint:usetesting // t.TempDir's paths are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	v := &vm{t: t, dir: dir, run: filepath.Join(dir, "r"), tmp: filepath.Join(dir, "t"), stderr: &lockedBuffer{}, changed: make(chan struct{}), exited: make(chan struct{})}
	for _, d := range []string{v.run, v.tmp} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// path names a file of the test.
func (v *vm) path(name string) string { return filepath.Join(v.dir, name) }

// image makes an empty disk image.
func (v *vm) image(name string, size int64) string {
	v.t.Helper()
	f, err := os.Create(v.path(name))
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		v.t.Fatal(err)
	}
	return v.path(name)
}

// memory is what test guests get. Linux allows a thread for each 128 KiB, and while it starts Debian's User-Mode Linux has up
// to 700 of them: with less than this, its first fork fails now and then.
const memory = "128M"

// command makes the command `virtplug run ARGS` with the test's memory, initrd and directories.
func (v *vm) command(args ...string) *exec.Cmd {
	args = append([]string{"run", "--memory", memory, "--machine", "uml", "--initrd", built.initrd, "--log-level", "info"}, args...)
	cmd := exec.Command(filepath.Join(built.dir, "virtplug"), args...) //nolint:gosec,noctx // G204: a program built here; it is ended as the test says
	cmd.Dir = v.dir
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+v.run, "TMPDIR="+v.tmp, "NO_COLOR=1", "TERM=dumb")
	cmd.Stderr = v.stderr
	return cmd
}

// launch starts `virtplug run ARGS` on a new terminal of 80 by 24 and does not wait for the guest.
func (v *vm) launch(args ...string) {
	v.t.Helper()
	term, tty, err := pty.Open()
	if err != nil {
		v.t.Fatal(err)
	}
	v.term, v.tty = term, tty
	v.resize(80, 24)
	v.before = v.termios()
	v.cmd = v.command(args...)
	v.cmd.Stdin, v.cmd.Stdout = tty, tty
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.family = watchFamily(v.cmd.Process.Pid, v.dir)
	go v.collect()
	go func() {
		v.waitErr = v.cmd.Wait()
		close(v.exited)
	}()
	v.t.Cleanup(v.abandon)
}

// boot starts `virtplug run ARGS` and waits for the guest's shell.
func boot(t *testing.T, v *vm, args ...string) {
	t.Helper()
	v.launch(args...)
	v.expect("virtplug:~# ", bootLimit)
}

// collect reads the terminal until its end.
func (v *vm) collect() {
	b := make([]byte, 64<<10)
	for {
		n, err := v.term.Read(b)
		v.mu.Lock()
		v.out = append(v.out, b[:n]...)
		close(v.changed)
		v.changed = make(chan struct{})
		v.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// abandon ends what a failed test left running, and shows what was said.
func (v *vm) abandon() {
	select {
	case <-v.exited:
	default:
		v.family.kill()
		<-v.exited
	}
	v.family.stop()
	_ = errors.Join(v.tty.Close(), v.term.Close())
	if v.t.Failed() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.t.Logf("terminal, last of %d bytes:\n%s\nstandard error:\n%s", len(v.out), printable(tail(v.out, 4000)), tail([]byte(v.stderr.String()), 8000))
	}
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// printable leaves out what would upset a terminal or a log.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r <= '~' {
			return r
		}
		return -1
	}, string(b))
}

// wait waits until look finds something in the terminal's unread output, and consumes what it says.
func (v *vm) wait(limit time.Duration, what string, look func(unread []byte) (used int, ok bool)) {
	v.t.Helper()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		v.mu.Lock()
		used, ok := look(v.out[v.read:])
		if ok {
			v.read += used
		}
		changed := v.changed
		v.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-v.exited:
			v.t.Fatalf("virtplug ended (%v) while waiting for %s", v.waitErr, what)
		case <-timeout.C:
			v.t.Fatalf("no %s within %v", what, limit)
		}
	}
}

// expect waits for text on the terminal and returns what came before it.
func (v *vm) expect(text string, limit time.Duration) string {
	v.t.Helper()
	before := ""
	v.wait(limit, "\""+text+"\"", func(unread []byte) (int, bool) {
		i := bytes.Index(unread, []byte(text))
		if i >= 0 {
			before = string(unread[:i])
		}
		return i + len(text), i >= 0
	})
	return before
}

// bytes waits for n bytes of the terminal.
func (v *vm) bytes(n int, limit time.Duration) []byte {
	v.t.Helper()
	var got []byte
	v.wait(limit, "more bytes", func(unread []byte) (int, bool) {
		if len(unread) < n {
			return 0, false
		}
		got = bytes.Clone(unread[:n])
		return n, true
	})
	return got
}

// typeIn writes to the terminal as somebody who types; Ctrl-A is the launcher's escape key.
func (v *vm) typeIn(text string) {
	v.t.Helper()
	if _, err := io.WriteString(v.term, text); err != nil {
		v.t.Fatal(err)
	}
}

// sh runs a command line in the guest and returns its output and exit status.
func (v *vm) sh(command string) (output, status string) {
	v.t.Helper()
	// The shell echoes the line: the marks are written so that the echo does not have them.
	v.typeIn("echo BE''GIN; " + command + "; echo EN''D$?.\r")
	v.expect("BEGIN\r\n", commandLimit)
	output = v.expect("END", commandLimit)
	status = v.expect(".\r\n", commandLimit)
	return strings.TrimSpace(strings.ReplaceAll(output, "\r\n", "\n")), status
}

// must runs a command line in the guest that has to succeed.
func (v *vm) must(command string) string {
	v.t.Helper()
	out, status := v.sh(command)
	if status != "0" {
		v.t.Fatalf("guest: %s: exit status %s: %s", command, status, out)
	}
	return out
}

// powerOff ends the guest from inside and checks that the launcher ends well and leaves nothing behind.
func (v *vm) powerOff() {
	v.t.Helper()
	v.typeIn("poweroff\r")
	v.ended(0)
}

// ended waits for the launcher's end, with this exit status, and checks that nothing is left behind.
func (v *vm) ended(code int) {
	v.t.Helper()
	select {
	case <-v.exited:
	case <-time.After(endLimit):
		v.t.Fatalf("virtplug has not ended within %v", endLimit)
	}
	if got := v.cmd.ProcessState.ExitCode(); got != code {
		v.t.Errorf("virtplug: %v, want exit status %d", v.cmd.ProcessState, code)
	}
	v.nothingLeft()
}

// signal sends a signal to the launcher.
func (v *vm) signal(s os.Signal) {
	v.t.Helper()
	if err := v.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		v.t.Fatal(err)
	}
}

// resize changes the terminal's size.
func (v *vm) resize(cols, rows uint16) {
	v.t.Helper()
	if err := pty.Setsize(v.term, &pty.Winsize{Cols: cols, Rows: rows}); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) termios() unix.Termios {
	v.t.Helper()
	tio, err := unix.IoctlGetTermios(int(v.tty.Fd()), unix.TCGETS)
	if err != nil {
		v.t.Fatal(err)
	}
	return *tio
}
