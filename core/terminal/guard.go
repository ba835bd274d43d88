package terminal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// GuardArg is the only argument of the guard process: a program that calls Open calls GuardMain when it is started with it,
// before anything else, and exits with what it returns.
const GuardArg = "__terminal-guard"

const (
	guardTerminal = 3 // descriptors of the guard
	guardPipe     = 4
	farewell      = 'b'
	guardWait     = 2 * time.Second // arbitrary: it has nothing to do but end
)

// guardModes is what the launcher writes to the pipe first.
type guardModes struct{ Saved, Raw unix.Termios }

// guard is the launcher's side of the guard process.
type guard struct {
	cmd  *exec.Cmd
	pipe *os.File // write end
}

// startGuard starts the guard for the terminal fd.
func startGuard(fd int, saved, raw unix.Termios) (_ *guard, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start terminal guard: if this program is killed, type `reset` to repair the terminal: %w", err)
		}
	}()
	ttyFD, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	tty := os.NewFile(uintptr(ttyFD), "terminal")
	defer func() { err = errors.Join(err, tty.Close()) }()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", GuardArg)
	cmd.Args[0] = "virtplug-terminal-guard"
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.ExtraFiles = []*os.File{tty, r}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	g := &guard{cmd, w}
	if err := binary.Write(w, binary.NativeEndian, guardModes{saved, raw}); err != nil {
		return nil, errors.Join(err, g.dismiss())
	}
	return g, nil
}

// dismiss says farewell and waits for the guard's end.
func (g *guard) dismiss() error {
	_, werr := g.pipe.Write([]byte{farewell})
	if errors.Is(werr, unix.EPIPE) {
		werr = nil // somebody killed it; there is nothing left to restore
	}
	err := errors.Join(werr, g.pipe.Close())
	t := time.AfterFunc(guardWait, func() { _ = g.cmd.Process.Kill() })
	defer t.Stop()
	_ = g.cmd.Wait() // how it ended does not matter
	return err
}

// GuardMain is the guard process; it returns the exit status. It holds the terminal's descriptor and restores the saved
// mode if the launcher dies without a farewell, unless somebody (a shell) has changed the mode since.
func GuardMain() int {
	signal.Ignore(unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	debug.FreeOSMemory()
	pipe := os.NewFile(guardPipe, "launcher")
	var m guardModes
	if err := binary.Read(pipe, binary.NativeEndian, &m); err != nil {
		return 1 // the launcher died before it said anything to restore, or this was started by hand
	}
	var b [1]byte
	if _, err := io.ReadFull(pipe, b[:]); err == nil && b[0] == farewell {
		return 0
	}
	now, err := unix.IoctlGetTermios(guardTerminal, unix.TCGETS)
	if err != nil || *now != m.Raw {
		return 0
	}
	if err := unix.IoctlSetTermios(guardTerminal, unix.TCSETS, &m.Saved); err != nil {
		return 1
	}
	return 0
}
