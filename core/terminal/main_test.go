package terminal

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roleVar makes the test binary play a part in another process.
const roleVar = "TERMINAL_TEST_ROLE"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == GuardArg {
		os.Exit(GuardMain())
	}
	switch os.Getenv(roleVar) {
	case "launcher":
		launcherMain()
		os.Exit(1)
	case "shell":
		os.Exit(shellMain())
	}
	goleak.VerifyTestMain(m)
}

// launcherMain opens the terminal, says so with the guard's process id through the console, and waits to be killed.
func launcherMain() {
	t, err := Open(os.Stdin, os.Stdout, Options{})
	if err != nil {
		return
	}
	pid := 0
	if g := t.mode.guard; g != nil {
		pid = g.cmd.Process.Pid
	}
	if _, err := fmt.Fprintf(t.PluginEnd(), "ready %d\r\n", pid); err != nil {
		return
	}
	time.Sleep(time.Minute)
}

// shellMain is a shell with job control: a session leader that starts a launcher in the background and obeys the words
// that come in descriptor 3.
func shellMain() int {
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // ends with the session
	cmd.Env = append(os.Environ(), roleVar+"=launcher")
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 1
	}
	defer func() { _ = cmd.Process.Kill() }()
	words := bufio.NewScanner(os.NewFile(3, "words"))
	for words.Scan() {
		var err error
		switch words.Text() {
		case "fg":
			err = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, cmd.Process.Pid)
		case "stop":
			err = cmd.Process.Signal(unix.SIGSTOP)
		case "cont":
			err = cmd.Process.Signal(unix.SIGCONT)
		}
		if err != nil {
			return 1
		}
	}
	return 0
}
