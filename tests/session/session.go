package session

import (
	"bytes"
	"errors"
	"fmt"
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

// Limits, generous: machines are slow and noisy, and some guests run in an emulator. They bound a test that failed, not one
// that passes.
const (
	BootLimit    = 3 * time.Minute
	CommandLimit = 3 * time.Minute
	EndLimit     = time.Minute
)

// Prompt is what the shell of our RAM disk shows.
const Prompt = "virtplug:~# "

// VM is a run of `virtplug run` on a terminal of its own. Its methods are the test goroutine's, except Peek and Plugin.
type VM struct {
	tb testing.TB
	// Args come before those of Launch and Command: machine, memory, RAM disk. Env is added to the environment.
	Args, Env []string
	// Network is where Launch starts the launcher; nil: here.
	Network *Network
	// UID is whom Launch starts the launcher as; 0: whoever runs the test. Only root can choose.
	UID uint32
	// Stderr is what the launcher says.
	Stderr *Output
	// Cmd is the launcher, after Launch. Exited is closed when it has ended.
	Cmd    *exec.Cmd
	Exited chan struct{}
	// Run and Tmp are XDG_RUNTIME_DIR and TMPDIR of the launcher.
	Run, Tmp string
	// Family are the launcher's descendants, after Launch.
	Family *Family

	bin string
	// dir is the test's; Run and Tmp are below it.
	dir string
	// term is our side of the terminal, tty the launcher's.
	term, tty *os.File
	before    unix.Termios

	mu      sync.Mutex
	changed chan struct{}
	out     []byte
	// read is how much of out was consumed.
	read int

	waitErr error
}

// Output is a buffer that one goroutine writes while others look.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String is what was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// New makes the directories of a run of bin/virtplug with the plugins beside it; they go when the test ends. Paths of sockets
// are short, so the directory is /tmp's.
func New(tb testing.TB, bin string) *VM {
	tb.Helper()
	dir, err := os.MkdirTemp("/tmp", "vp") //nolint:usetesting // t.TempDir's paths are too long for sockets
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	v := &VM{
		tb: tb, bin: bin, dir: dir, Run: filepath.Join(dir, "r"), Tmp: filepath.Join(dir, "t"),
		Stderr: &Output{}, changed: make(chan struct{}), Exited: make(chan struct{}),
	}
	for _, d := range []string{v.Run, v.Tmp} {
		if err := os.Mkdir(d, 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	return v
}

// Path names a file of the test.
func (v *VM) Path(name string) string { return filepath.Join(v.dir, name) }

// Image makes an empty disk image.
func (v *VM) Image(name string, size int64) string {
	v.tb.Helper()
	f, err := os.Create(v.Path(name))
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		v.tb.Fatal(err)
	}
	return v.Path(name)
}

// Virtplug makes the command `virtplug ARGS` with the test's directories: another command about the running VM, as a rule.
func (v *VM) Virtplug(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(v.bin, "virtplug"), args...) //nolint:gosec,noctx // G204: the program under test; it is ended as the test says
	cmd.Dir = v.dir
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+v.Run, "TMPDIR="+v.Tmp, "NO_COLOR=1", "TERM=dumb")
	cmd.Env = append(cmd.Env, v.Env...)
	return cmd
}

// Command makes the command `virtplug run ARGS`, whose messages go to Stderr.
func (v *VM) Command(args ...string) *exec.Cmd {
	all := append([]string{"run", "--log-level", "info"}, v.Args...)
	cmd := v.Virtplug(append(all, args...)...)
	cmd.Stderr = v.Stderr
	return cmd
}

// Launch starts `virtplug run ARGS` on a new terminal of 80 by 24 and does not wait for the guest.
func (v *VM) Launch(args ...string) {
	v.tb.Helper()
	term, tty, err := pty.Open()
	if err != nil {
		v.tb.Fatal(err)
	}
	v.term, v.tty = term, tty
	v.Resize(80, 24)
	v.before = v.termios()
	v.Cmd = v.Command(args...)
	v.Cmd.Stdin, v.Cmd.Stdout = tty, tty
	v.Cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if v.UID != 0 {
		v.giveTo(v.UID)
		v.Cmd.SysProcAttr.Credential = &syscall.Credential{Uid: v.UID, Gid: v.UID}
	}
	start := v.Cmd.Start
	if v.Network != nil {
		start = func() error { return v.Network.Do(v.Cmd.Start) }
	}
	if err := start(); err != nil {
		v.tb.Fatal(err)
	}
	v.Family = Watch(v.Cmd.Process.Pid, v.dir)
	go v.collect()
	go func() {
		v.waitErr = v.Cmd.Wait()
		close(v.Exited)
	}()
	v.tb.Cleanup(v.abandon)
}

// giveTo makes the test's directories somebody else's.
func (v *VM) giveTo(uid uint32) {
	v.tb.Helper()
	for _, d := range []string{v.dir, v.Run, v.Tmp} {
		if err := os.Chown(d, int(uid), int(uid)); err != nil {
			v.tb.Fatal(err)
		}
	}
}

// Boot starts `virtplug run ARGS` and waits for the guest's shell.
func (v *VM) Boot(args ...string) {
	v.tb.Helper()
	v.Launch(args...)
	v.Expect(Prompt, BootLimit)
}

// collect reads the terminal until its end.
func (v *VM) collect() {
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
func (v *VM) abandon() {
	select {
	case <-v.Exited:
	default:
		v.Family.Kill()
		<-v.Exited
	}
	v.Family.Stop()
	_ = errors.Join(v.tty.Close(), v.term.Close())
	if v.tb.Failed() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.tb.Logf("terminal, last of %d bytes:\n%s\nstandard error:\n%s", len(v.out), printable(Tail(v.out, 4000)), Tail([]byte(v.Stderr.String()), 8000))
	}
}

// Tail is the end of b, at most n bytes.
func Tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// printable leaves out what would upset a terminal or a log.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r <= '~' {
			return r
		}
		return -1
	}, string(b))
}

// Ended waits for the launcher's end, with this exit status, and checks that nothing is left behind.
func (v *VM) Ended(code int) {
	v.tb.Helper()
	v.WaitExit()
	if got := v.Cmd.ProcessState.ExitCode(); got != code {
		v.tb.Errorf("virtplug: %v, want exit status %d", v.Cmd.ProcessState, code)
	}
	v.NothingLeft()
}

// WaitExit waits for the launcher's end, however it ends.
func (v *VM) WaitExit() {
	v.tb.Helper()
	select {
	case <-v.Exited:
	case <-time.After(EndLimit):
		v.tb.Fatalf("virtplug has not ended within %v", EndLimit)
	}
}

// Signal sends a signal to the launcher.
func (v *VM) Signal(s os.Signal) {
	v.tb.Helper()
	if err := v.Cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		v.tb.Fatal(err)
	}
}

// Resize changes the terminal's size.
func (v *VM) Resize(cols, rows uint16) {
	v.tb.Helper()
	if err := pty.Setsize(v.term, &pty.Winsize{Cols: cols, Rows: rows}); err != nil {
		v.tb.Fatal(err)
	}
}

// TerminalChanged tells whether the terminal's mode differs from what it was before the launcher came, and how.
func (v *VM) TerminalChanged() error {
	if after := v.termios(); after != v.before {
		return fmt.Errorf("terminal mode is\n%+v, was\n%+v", after, v.before)
	}
	return nil
}

func (v *VM) termios() unix.Termios {
	v.tb.Helper()
	tio, err := unix.IoctlGetTermios(int(v.tty.Fd()), unix.TCGETS)
	if err != nil {
		v.tb.Fatal(err)
	}
	return *tio
}

// Write writes to the terminal as it is: Ctrl-A is the launcher's escape key.
func (v *VM) Write(p []byte) (int, error) { return v.term.Write(p) }

// Type writes to the terminal as somebody who types.
func (v *VM) Type(text string) {
	v.tb.Helper()
	if _, err := io.WriteString(v.term, text); err != nil {
		v.tb.Fatal(err)
	}
}
