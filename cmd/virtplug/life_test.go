package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// limit is how long anything here may take; generous, as test machines are slow and noisy.
const limit = 90 * time.Second

// memory is what guests get: with much less than this a fork of Debian's User-Mode Linux fails now and then at its start.
const memory = "128M"

// vm is a launcher on a guest that stays at its shell.
type vm struct {
	dir, runRoot string
	cmd          *exec.Cmd
}

// newVM prepares a launcher with copies of its plugins, so that their processes are known by their programs.
func newVM(t *testing.T, args ...string) *vm {
	t.Helper()
	if _, err := exec.LookPath("linux.uml"); err != nil {
		t.Skip("no user-mode-linux: apt-get install user-mode-linux")
	}
	bin := os.Getenv(binEnv)
	dir, err := os.MkdirTemp("/tmp", "vpt") //nolint:usetesting // the test's own is too long for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{"virtplug-plugin-block", "virtplug-plugin-console"} {
		text, err := os.ReadFile(filepath.Join(bin, name)) //nolint:gosec // what TestMain built
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o700) //nolint:gosec // a program
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "disk.img"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "virtplug"), "initrd", "-o", filepath.Join(dir, "initrd.gz")).CombinedOutput() //nolint:gosec // our own program
	if err != nil {
		t.Skipf("no initrd (apt-get install busybox-static): %v: %s", err, out)
	}
	args = append([]string{"run", "--machine", "uml", "--plugin-dir", dir, "--memory", memory, "--initrd", "initrd.gz", "--block", "disk.img"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "virtplug"), args...) //nolint:gosec // our own program
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	return &vm{dir: dir, runRoot: filepath.Join(dir, "virtplug"), cmd: cmd}
}

// left lists processes and run directories of the VM.
func (v *vm) left() []string {
	var left []string
	for _, link := range []string{"exe", "cwd"} {
		found, _ := filepath.Glob("/proc/[0-9]*/" + link)
		for _, f := range found {
			if to, err := os.Readlink(f); err == nil && strings.HasPrefix(to, v.dir+"/") {
				left = append(left, f+" is "+to)
			}
		}
	}
	entries, _ := os.ReadDir(v.runRoot)
	for _, e := range entries {
		if e.IsDir() {
			left = append(left, filepath.Join(v.runRoot, e.Name()))
		}
	}
	return left
}

// wait returns the exit status, and fails the test if the launcher does not end.
func (v *vm) wait(t *testing.T) int {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- v.cmd.Wait() }()
	select {
	case err := <-done:
		if ee, ok := errors.AsType[*exec.ExitError](err); ok {
			return ee.ExitCode()
		}
		if err != nil {
			t.Fatal(err)
		}
		return 0
	case <-time.After(limit):
		_ = v.cmd.Process.Kill()
		t.Fatal("the launcher does not end")
		return -1
	}
}

func TestSignalsAtEveryStageLeaveNothing(t *testing.T) {
	t.Parallel()
	for i, delay := range []int{0, 20, 60, 120, 250, 500, 1500, 4000} {
		sig := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}[i%3]
		t.Run(fmt.Sprintf("%v after %d ms", sig, delay), func(t *testing.T) {
			t.Parallel()
			v := newVM(t, "--console", "pty", "--log-level", "debug")
			var out bytes.Buffer
			v.cmd.Stderr = &out
			if err := v.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(delay) * time.Millisecond) // the stage is what is varied; any is right
			if err := v.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			code := v.wait(t)
			// Before the launcher listens to signals, they end it at once.
			status, ok := v.cmd.ProcessState.Sys().(syscall.WaitStatus)
			early := ok && status.Signaled() && status.Signal() == sig && out.Len() == 0
			if code != exitInterrupted && !early {
				t.Errorf("exit status %d\n%s", code, out.String())
			}
			if left := v.left(); len(left) > 0 {
				t.Errorf("left is %q\n%s", left, out.String())
			}
		})
	}
}

func TestADeadLauncherTakesItsPluginsAlongAndTheNextOneCleansUp(t *testing.T) {
	t.Parallel()
	v := newVM(t, "--console", "null", "--json")
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), `"running"`) {
		t.Log(lines.Text())
	}
	if len(v.left()) == 0 {
		t.Error("no process of the running VM is found: this test sees nothing")
	}
	if err := v.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = v.cmd.Wait()
	processes := func() []string {
		var p []string
		for _, l := range v.left() {
			if strings.HasPrefix(l, "/proc/") {
				p = append(p, l)
			}
		}
		return p
	}
	for deadline := time.Now().Add(limit); len(processes()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left is %q", processes())
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	next := exec.CommandContext(ctx, v.cmd.Path, "run", "--machine", "uml", "--memory", "64M", "--console", "null", "--plugin-dir", v.dir) //nolint:gosec // our own program
	next.Dir, next.Env = v.dir, v.cmd.Env
	if text, err := next.CombinedOutput(); err == nil || next.ProcessState.ExitCode() != exitGuestPanic { // it has no root
		t.Errorf("next: %v: %s", err, text)
	}
	if left := v.left(); len(left) > 0 {
		t.Errorf("left is %q", left)
	}
}

func TestTheGuestOutlivesWhoeverReadsMessages(t *testing.T) {
	t.Parallel()
	v := newVM(t, "--console", "null", "--json", "--log-level", "trace")
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	messages, err := v.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := messages.Close(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for running := false; !running; running = strings.Contains(lines.Text(), `"running"`) {
		if !lines.Scan() {
			t.Fatalf("it has ended: %v", v.cmd.Wait())
		}
	}
	if err := out.Close(); err != nil { // its last line has no reader either
		t.Fatal(err)
	}
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := v.wait(t); code != exitInterrupted {
		t.Errorf("exit status %d (%v), want %d", code, v.cmd.ProcessState, exitInterrupted)
	}
	if left := v.left(); len(left) > 0 {
		t.Errorf("left is %q", left)
	}
}

func TestTheEscapeKeyEndsTheGuestAndTheTerminalIsRestored(t *testing.T) {
	t.Parallel()
	v := newVM(t, "--console", "stdio")
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close() //nolint:errcheck // the end
	defer slave.Close()  //nolint:errcheck // the end
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	v.cmd.Stdin, v.cmd.Stdout, v.cmd.Stderr = slave, slave, slave
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	screen := make(chan string, 1)
	typed := make(chan struct{})
	go func() {
		var seen bytes.Buffer
		buf := make([]byte, 4096)
		prompt := false
		for {
			n, err := master.Read(buf)
			seen.Write(buf[:n])
			if !prompt && bytes.Contains(seen.Bytes(), []byte("~# ")) {
				prompt = true
				close(typed)
			}
			if err != nil {
				screen <- seen.String()
				return
			}
		}
	}()
	select {
	case <-typed:
	case <-time.After(limit):
		_ = v.cmd.Process.Kill()
		t.Fatal("no prompt")
	}
	if _, err := io.WriteString(master, "\x01x"); err != nil {
		t.Fatal(err)
	}
	if code := v.wait(t); code != exitOK {
		t.Errorf("exit status %d", code)
	}
	after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal is not restored: %v\n%+v\n%+v", err, before, after)
	}
	if left := v.left(); len(left) > 0 {
		t.Errorf("left is %q", left)
	}
	_ = slave.Close()
	if text := <-screen; !strings.Contains(text, "Ctrl-A x ends the guest") {
		t.Errorf("the escape key is not told:\n%s", text)
	}
}
