package terminal

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// startLauncher runs launcherMain on tty and returns it with the guard's process id.
func startLauncher(t *testing.T, user, tty *os.File) (cmd *exec.Cmd, guardPID int) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"=launcher")
	cmd.Stdin, cmd.Stdout = tty, tty
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, awaitReady(t, user)
}

func awaitReady(t *testing.T, user *os.File) (guardPID int) {
	t.Helper()
	line := make(chan string, 1)
	go func() {
		s, _ := bufio.NewReader(user).ReadString('\n')
		line <- s
	}()
	eventually(t, "launcher is ready", func() bool { return len(line) == 1 })
	s := <-line
	if _, err := fmt.Sscanf(s, "ready %d", &guardPID); err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return guardPID
}

// running tells whether a process exists and has not ended (a zombie has).
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func TestGuardRestoresAfterKill(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	before := termios(t, tty)
	cmd, guardPID := startLauncher(t, user, tty)
	if !isRaw(termios(t, tty)) {
		t.Fatal("not raw")
	}
	if !running(guardPID) {
		t.Fatal("no guard")
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", guardPID)); err == nil {
		for l := range strings.Lines(string(b)) {
			if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "RssAnon") {
				t.Log("guard: " + strings.TrimSpace(l))
			}
		}
	}
	if sid, err := unix.Getsid(guardPID); err != nil || sid != guardPID {
		t.Errorf("the guard has no session of its own: %d, %v", sid, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "terminal is restored", func() bool { return termios(t, tty) == before })
	eventually(t, "guard ends", func() bool { return !running(guardPID) })
}

func TestGuardLeavesAModeThatSomebodyElseSet(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	cmd, guardPID := startLauncher(t, user, tty)
	m := termios(t, tty)
	m.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, &m); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "guard ends", func() bool { return !running(guardPID) })
	if termios(t, tty) != m {
		t.Error("the guard changed the mode")
	}
}

func TestCloseDismissesTheGuard(t *testing.T) {
	t.Parallel()
	_, tty := openPty(t)
	before := termios(t, tty)
	term, err := Open(tty, tty, Options{})
	if err != nil {
		t.Fatal(err)
	}
	pid := term.mode.guard.cmd.Process.Pid
	if err := term.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
		t.Error("the guard is left behind")
	}
	if termios(t, tty) != before {
		t.Error("not restored")
	}
}

func TestCloseWithoutItsGuard(t *testing.T) {
	t.Parallel()
	_, tty := openPty(t)
	before := termios(t, tty)
	term, err := Open(tty, tty, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := term.mode.guard.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "guard ends", func() bool { return !running(term.mode.guard.cmd.Process.Pid) })
	if err := term.Close(); err != nil {
		t.Error(err)
	}
	if termios(t, tty) != before {
		t.Error("not restored")
	}
}

func TestJobControl(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	before := termios(t, tty)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"=shell")
	cmd.Stdin, cmd.Stdout, cmd.ExtraFiles = tty, tty, []*os.File{r}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	t.Cleanup(func() {
		_ = w.Close()
		_ = cmd.Wait()
	})
	say := func(word string) {
		if _, err := w.WriteString(word + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	awaitReady(t, user)
	if termios(t, tty) != before {
		t.Error("a launcher in the background changed the terminal")
	}
	say("fg")
	eventually(t, "raw in the foreground", func() bool { return isRaw(termios(t, tty)) })
	say("stop")
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, &before); err != nil {
		t.Fatal(err)
	}
	say("cont")
	eventually(t, "raw after SIGCONT", func() bool { return isRaw(termios(t, tty)) })
}
