package pluginhost

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// drainTime is how long after the end of a process its pipes are read on: what it wrote is there at once, and longer lives
// only a pipe that a grandchild holds.
const drainTime = 200 * time.Millisecond

// command is what spawn runs.
type command struct {
	exe  *os.File // from openProgram; the caller's
	path string   // for messages and argv[0]
	args []string // after argv[0]
	env  []string
	// socket becomes descriptor 3; nil: none. The caller's.
	socket *os.File
	// stdout and stderr read the pipes until they end.
	stdout, stderr func(*os.File)
}

// process is a running program in a session of its own.
type process struct {
	pid int
	// ended is closed when the process is gone and its pipes are read.
	ended chan struct{}
	state *os.ProcessState // valid once ended is closed

	mu     sync.Mutex
	reaped bool
	killed bool // by us, before it ended
}

// spawn starts c. The goroutine that starts the process also waits for it, on one thread: the process's parent-death
// signal goes by the life of the thread, which so is the longer one.
func spawn(c command) (*process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close() //nolint:errcheck // read only
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, outR.Close(), outW.Close())
	}
	p := &process{ended: make(chan struct{})}
	files := []*os.File{null, outW, errW}
	if c.socket != nil {
		files = append(files, c.socket)
	}
	started := make(chan error)
	go p.run(c, files, []*os.File{outR, errR}, started)
	err = <-started
	_ = outW.Close()
	_ = errW.Close()
	if err != nil {
		_ = outR.Close()
		_ = errR.Close()
		return nil, err
	}
	return p, nil
}

// run is the life of the process: start, pipes, end.
func (p *process) run(c command, files, pipes []*os.File, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	exe := fmt.Sprintf("/proc/self/fd/%d", c.exe.Fd())
	if isScript(c.exe) {
		for len(files) < 4 {
			files = append(files, nil)
		}
		exe = fmt.Sprintf("/proc/self/fd/%d", len(files))
		files = append(files, c.exe)
	}
	proc, err := os.StartProcess(exe, append([]string{c.path}, c.args...), &os.ProcAttr{
		Dir: "/", Env: c.env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		if pe := (*os.PathError)(nil); errors.As(err, &pe) {
			err = &os.PathError{Op: "execute", Path: c.path, Err: pe.Err}
		}
		started <- err
		return
	}
	p.pid = proc.Pid
	var readers sync.WaitGroup
	readers.Go(func() { c.stdout(pipes[0]) })
	readers.Go(func() { c.stderr(pipes[1]) })
	started <- nil

	waitOnly(p.pid)
	p.mu.Lock()
	_ = unix.Kill(-p.pid, unix.SIGKILL) // the rest of its group, while the number is still ours
	p.reaped = true
	p.state, err = proc.Wait()
	p.mu.Unlock()
	if err != nil {
		p.state = &os.ProcessState{}
	}
	for _, f := range pipes {
		_ = f.SetReadDeadline(time.Now().Add(drainTime))
	}
	readers.Wait()
	for _, f := range pipes {
		_ = f.Close()
	}
	close(p.ended)
}

// waitOnly waits for the end of a child without reaping it.
func waitOnly(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// kill ends the process and its group. It does not wait.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		p.killed = true
		_ = unix.Kill(-p.pid, unix.SIGKILL)
	}
}

// endedByItself waits a little for the end, and tells whether it came without our doing.
func (p *process) endedByItself() bool {
	select {
	case <-p.ended:
	case <-time.After(2 * drainTime):
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, signal := p.exit()
	return !p.killed || signal != syscall.SIGKILL // it may have ended just before
}

// exit describes the end of the process.
func (p *process) exit() (status int, signal syscall.Signal) {
	ws, ok := p.state.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return -1, 0
	case ws.Signaled():
		return -1, ws.Signal()
	default:
		return ws.ExitStatus(), 0
	}
}
