package terminal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// inputLimit is how many typed bytes wait while the guest reads none; more wait in the terminal.
	inputLimit = 1 << 20
	// drainLimit is how long Close waits for output and for whoever still blocks.
	drainLimit = 2 * time.Second
	// backgroundPoll is how often a process in the background looks whether it still is.
	backgroundPoll = 200 * time.Millisecond
	chunk          = 32 << 10
)

// Options are what Open needs to know. The zero value is usable.
type Options struct {
	// OnQuit is called when the user types Ctrl-A x, each time, on the goroutine that reads input: it must not block.
	OnQuit func()
	// OnResize is called with the terminal's size in characters: once soon after Start if it has one, then whenever it changes.
	OnResize func(cols, rows int)
	// Warn gets messages for the user; nil: they are dropped.
	Warn func(message string)
	// NoGuard leaves out the guard process: then nothing restores the terminal if this program is killed by SIGKILL.
	NoGuard bool
	// Hold leaves the terminal alone until Start is called: for what comes before there is a guest to type to.
	Hold bool
}

// Terminal pumps between the user's terminal and a console plugin. Its methods may be called from any goroutine.
type Terminal struct {
	opts      Options
	in, out   int      // duplicates of the caller's descriptors
	wake      *os.File // write end of a pipe: closing it ends what polls wakeFD
	wakeFD    int
	conn      *os.File // our end of the socket pair
	pluginEnd *os.File
	mode      *mode // nil: standard input is no terminal
	input     *buffer
	signals   chan os.Signal
	sizeFD    int // -1: no terminal

	outMu      sync.Mutex // held while a piece of output is written
	lost       atomic.Uint64
	outErr     atomic.Pointer[error]
	closing    atomic.Bool
	quit       chan struct{}
	helpWanted chan struct{}

	readers, writers, others sync.WaitGroup
	closeOnce                sync.Once
	closeErr                 error
}

// Open prepares to take over stdin and stdout, which stay the caller's but must not be used from Start to Close. Without
// Options.Hold it calls Start.
func Open(stdin, stdout *os.File, opts Options) (_ *Terminal, err error) {
	t := &Terminal{opts: opts, in: -1, out: -1, wakeFD: -1, sizeFD: -1, quit: make(chan struct{}), helpWanted: make(chan struct{}, 1), input: newBuffer(inputLimit)}
	defer func() {
		if err != nil {
			for _, f := range []*os.File{t.conn, t.wake, t.pluginEnd} {
				err = errors.Join(err, closeFile(f))
			}
			err = fmt.Errorf("open terminal: %w", errors.Join(err, t.release()))
		}
	}()
	if t.in, err = dup(stdin); err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	if t.out, err = dup(stdout); err != nil {
		return nil, fmt.Errorf("standard output: %w", err)
	}
	if err := t.connect(); err != nil {
		return nil, err
	}
	if isTerminal(t.in) {
		t.mode = &mode{fd: t.in}
		t.sizeFD = t.in
	}
	if isTerminal(t.out) {
		t.sizeFD = t.out
	}
	if !opts.Hold {
		t.Start()
	}
	return t, nil
}

// Start takes over. A stdin that is a terminal is put into raw mode as soon as this process is in its foreground. Until then
// the terminal is as it was: Ctrl-C reaches the caller. Once, and not after Close.
func (t *Terminal) Start() {
	if t.mode != nil {
		t.enterRaw()
	}
	t.signals = make(chan os.Signal, 4)
	signal.Notify(t.signals, unix.SIGWINCH, unix.SIGCONT)
	t.readers.Go(t.readInput)
	t.writers.Go(t.writeInput)
	t.writers.Go(t.pumpOutput)
	t.writers.Go(t.printHelp)
	t.others.Go(t.watch)
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// connect makes the socket pair and the wake pipe.
func (t *Terminal) connect() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	// The plugin's end is made an os.File while it is blocking, so that File.Fd does not set it back to blocking below a
	// running plugin.
	t.pluginEnd = os.NewFile(uintptr(fds[1]), "console")
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fds[0]))
	}
	t.conn = os.NewFile(uintptr(fds[0]), "console")
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	t.wake = w
	t.wakeFD, err = dup(r)
	return errors.Join(err, r.Close())
}

// dup duplicates f's descriptor without changing its mode, as File.Fd would.
func dup(f *os.File) (fd int, err error) {
	if f == nil {
		return -1, os.ErrInvalid
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	ctl := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(os.NewSyscallError("fcntl", err), ctl)
}

// enterRaw enters raw mode if that is due.
func (t *Terminal) enterRaw() {
	err := t.mode.enter(func(saved, raw unix.Termios) (*guard, error) {
		if t.opts.NoGuard {
			return nil, nil //nolint:nilnil // no guard is wanted
		}
		return startGuard(t.in, saved, raw)
	})
	if err != nil {
		t.warn(err.Error())
	}
}

// IsTerminal tells whether standard input is a terminal, and so whether the escape key works.
func (t *Terminal) IsTerminal() bool { return t.mode != nil }

// Help describes the escape key, a line each.
func (t *Terminal) Help() string { return helpText }

// PluginEnd is the connected stream socket for the console plugin. It stays t's, which keeps it open for the plugin's
// successors: pass on duplicates.
func (t *Terminal) PluginEnd() *os.File { return t.pluginEnd }

// Size is the terminal's size in characters; ok is false if there is no terminal or it has no size.
func (t *Terminal) Size() (cols, rows int, ok bool) {
	if t.sizeFD < 0 {
		return 0, 0, false
	}
	return size(t.sizeFD)
}

// Messages returns a writer for the launcher's own messages on w, which may be the terminal too: while that is in raw mode
// lines end in CR LF.
func (t *Terminal) Messages(w io.Writer) io.Writer { return &messages{t, w} }

type messages struct {
	t *Terminal
	w io.Writer
}

func (m *messages) Write(p []byte) (int, error) {
	q := p
	if m.t.mode.isRaw() {
		q = bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))
	}
	if _, err := m.w.Write(q); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t *Terminal) warn(message string) {
	if t.opts.Warn != nil {
		t.opts.Warn(message)
	}
}

// watch tells of sizes and comes back after a stop.
func (t *Terminal) watch() {
	var lastCols, lastRows int
	for {
		if cols, rows, ok := t.Size(); ok && (cols != lastCols || rows != lastRows) && t.opts.OnResize != nil {
			lastCols, lastRows = cols, rows
			t.opts.OnResize(cols, rows)
		}
		select {
		case s := <-t.signals:
			if s == unix.SIGCONT && t.mode != nil {
				t.enterRaw()
			}
		case <-t.quit:
			return
		}
	}
}

// Close writes what output is still there, restores the terminal and releases everything. End the plugin first: what it
// writes during Close may be left out. The error tells of output that could not be written in time. Idempotent.
func (t *Terminal) Close() error {
	t.closeOnce.Do(func() { t.closeErr = t.shut() })
	return t.closeErr
}

func (t *Terminal) shut() error {
	if t.signals != nil { // it was started
		signal.Stop(t.signals)
	}
	close(t.quit)
	t.closing.Store(true)
	var errs []error
	errs = append(errs, t.wake.Close(), t.pluginEnd.Close())
	t.input.abort()
	past := time.Unix(1, 0)
	errs = append(errs, t.conn.SetDeadline(past)) // pumpOutput then reads the rest without waiting
	stuck := !finished(&t.writers)
	if stuck {
		errs = append(errs, fmt.Errorf("close terminal: output is not taken: some may be lost (waited %v)", drainLimit))
	}
	stuck = !finished(&t.readers) || stuck
	stuck = !finished(&t.others) || stuck
	if t.mode != nil {
		errs = append(errs, t.mode.restore())
	}
	if p := t.outErr.Load(); p != nil {
		errs = append(errs, fmt.Errorf("write console output: %d bytes lost: %w", t.lost.Load(), *p))
	}
	errs = append(errs, t.conn.Close())
	if !stuck { // else somebody still uses the descriptors
		errs = append(errs, t.release())
	}
	return errors.Join(errs...)
}

// finished waits for wg, at most drainLimit.
func finished(wg *sync.WaitGroup) bool {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(drainLimit):
		return false
	}
}

// release closes the bare descriptors.
func (t *Terminal) release() error {
	var errs []error
	for _, fd := range []int{t.in, t.out, t.wakeFD} {
		if fd >= 0 {
			errs = append(errs, os.NewSyscallError("close", unix.Close(fd)))
		}
	}
	return errors.Join(errs...)
}
