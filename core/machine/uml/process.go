package uml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keeper runs the kernel ("$@") and ends with its exit code. The kernel makes a session of its own, so its process group is
// its own too. The watchdog kills both groups when the launcher's end of the pipe on descriptor 3 is closed, in whatever
// way the launcher ended. A panic is an abort: no core file of guest memory is to be left.
const keeper = `ulimit -c 0
"$@" 3<&- &
k=$!
( read -r _ <&3; kill -9 $k -$k; kill -9 0 ) >/dev/null 2>&1 &
wait $k
c=$?
kill -9 -$k 2>/dev/null
exit $c`

// process is a running linux.uml with all its helpers.
type process struct {
	pid int // the keeper's; also its process group and session
	// alive is our end of the watchdog's pipe: closing it ends everything.
	alive *os.File
	jail  string // what holds the processes together, for the log
	// namespace: the keeper is process 1 of a PID namespace.
	namespace bool
	done      chan struct{}
	code      int // the exit code, once done is closed; 128+n: signal n
}

// jails are the ways to make a PID namespace, best first. The last has none: then the watchdog and kill do it.
func jails() []jailKind {
	uid, gid := os.Getuid(), os.Getgid()
	user := jailKind{
		name: "user and pid namespace", flags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID,
		uids: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
		gids: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
	}
	all := []jailKind{user, {name: "process group"}}
	if uid == 0 {
		all = append([]jailKind{{name: "pid namespace", flags: unix.CLONE_NEWPID}}, all...)
	}
	return all
}

type jailKind struct {
	name       string
	flags      uintptr
	uids, gids []syscall.SysProcIDMap
}

// start runs the kernel with its standard output and error going to out.
func start(kernel string, args []string, dir, tmpDir string, out io.Writer) (*process, error) {
	return startIn(jails(), kernel, args, dir, tmpDir, out)
}

func startIn(kinds []jailKind, kernel string, args []string, dir, tmpDir string, out io.Writer) (*process, error) {
	alive, ours, err := os.Pipe() // ours stays open as long as the launcher lives
	if err != nil {
		return nil, fmt.Errorf("user-mode linux: %w", err)
	}
	defer func() { _ = alive.Close() }()
	p := &process{done: make(chan struct{}), alive: ours}
	started := make(chan error)
	go func() {
		// Pdeathsig is sent when the thread that started the child ends: keep it until the child has gone. The thread is
		// never unlocked, so its changed personality ends with it.
		runtime.LockOSThread()
		var cmd *exec.Cmd
		var err error
		for _, k := range kinds {
			cmd = command(k, kernel, args, dir, tmpDir, out, alive)
			if err = startFixed(cmd); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINVAL) {
				p.jail, p.namespace = k.name, k.flags&unix.CLONE_NEWPID != 0
				break
			}
		}
		if err != nil {
			_ = ours.Close()
			started <- fmt.Errorf("user-mode linux: start %s: %w", kernel, err)
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.reap(cmd)
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func command(k jailKind, kernel string, args []string, dir, tmpDir string, out io.Writer, alive *os.File) *exec.Cmd {
	cmd := exec.Command("/bin/sh", append([]string{"-c", keeper, "virtplug-uml", kernel}, args...)...) //nolint:noctx,gosec // ended by process.kill
	cmd.Dir, cmd.Env = dir, []string{"TMPDIR=" + tmpDir, "PATH=/usr/bin:/bin"}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{alive}
	cmd.WaitDelay = 2 * time.Second // for a console writer that blocks
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Pdeathsig: unix.SIGKILL,
		Cloneflags: k.flags, UidMappings: k.uids, GidMappings: k.gids,
	}
	return cmd
}

// startFixed starts cmd without address space randomisation: the gap before its heap, up to 1 GiB, would otherwise count as
// guest memory, and its page table would eat a random part of the real one. Where it is forbidden, so be it.
func startFixed(cmd *exec.Cmd) error {
	const query, addrNoRandomize = 0xffffffff, 0x0040000
	if old, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, query, 0, 0); errno == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_PERSONALITY, old|addrNoRandomize, 0, 0)
	}
	return cmd.Start()
}

// reap waits for the keeper, then ends what it left and waits for that.
func (p *process) reap(cmd *exec.Cmd) {
	// Wait returns only after output has ended, which a helper that outlives the kernel would delay. So everything is
	// ended while the keeper is dead but not yet reaped: its id cannot be another's.
	var info unix.Siginfo
	for errors.Is(unix.Waitid(unix.P_PID, p.pid, &info, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		continue
	}
	_ = p.alive.Close() // the watchdog, which is in the keeper's group, ends the kernel's group and then its own
	awaitGroup(p.pid, 1)
	_ = unix.Kill(-p.pid, unix.SIGKILL)
	_ = cmd.Wait() // the state says it all
	p.code = exitCode(cmd.ProcessState)
	awaitGroup(p.pid, 0)
}

// awaitGroup waits until a process group has at most n members, the dead ones that nobody reaped included, for at most 5 s.
func awaitGroup(pgid, n int) {
	for range 500 {
		if groupSize(pgid) <= n {
			return
		}
		time.Sleep(10 * time.Millisecond) // orphans are reaped by process 1, soon
	}
}

// groupSize counts the members of a process group.
func groupSize(pgid int) (n int) {
	if errors.Is(unix.Kill(-pgid, 0), unix.ESRCH) {
		return 0
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path) //nolint:gosec // below /proc
		if err != nil {
			continue // it has just ended
		}
		_, rest, _ := bytes.Cut(b, []byte(") "))
		if f := bytes.Fields(rest); len(f) > 2 && string(f[2]) == strconv.Itoa(pgid) {
			n++
		}
	}
	return n
}

// kill ends all processes at once: the namespace's first, or by the watchdog.
func (p *process) kill() {
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.alive.Close()
	if p.namespace {
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
}

func exitCode(st *os.ProcessState) int {
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return st.ExitCode()
}

// codeText says what an exit code of the keeper means.
func codeText(code int) string {
	if code > 128 && code < 128+65 {
		sig := unix.Signal(code - 128)
		return fmt.Sprintf("ended by signal %d (%s)", code-128, unix.SignalName(sig))
	}
	return fmt.Sprintf("exit status %d", code)
}
