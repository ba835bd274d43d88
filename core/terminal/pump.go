package terminal

import (
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// readInput reads standard input into the buffer until its end or Close.
func (t *Terminal) readInput() {
	defer t.input.end()
	esc := escape{quit: t.quitKey, help: t.helpKey}
	buf := make([]byte, chunk)
	var typed []byte
	for t.awaitInput() {
		n, err := unix.Read(t.in, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if n <= 0 { // the end, or the terminal is gone (EIO)
			t.input.put(esc.rest(), func() {})
			return
		}
		typed = buf[:n]
		if t.mode != nil {
			typed = esc.filter(make([]byte, 0, n+1), buf[:n])
		}
		if !t.input.put(typed, t.inputFull) {
			return
		}
	}
}

func (t *Terminal) quitKey() {
	if t.opts.OnQuit != nil {
		t.opts.OnQuit()
	}
}

func (t *Terminal) helpKey() {
	select {
	case t.helpWanted <- struct{}{}:
	default: // not even the last one is printed yet
	}
}

// printHelp has a goroutine of its own: a terminal that takes no output must not stop input.
func (t *Terminal) printHelp() {
	for {
		select {
		case <-t.helpWanted:
			t.write([]byte("\r\n" + strings.ReplaceAll(helpText, "\n", "\r\n")))
		case <-t.quit:
			return
		}
	}
}

func (t *Terminal) inputFull() {
	t.warn("the guest does not read its console: input waits, and the escape key with it")
}

// awaitInput waits until standard input can be read; false: Close.
func (t *Terminal) awaitInput() bool {
	for {
		background := t.mode != nil && !t.mode.foreground()
		fds := []unix.PollFd{{Fd: int32(t.wakeFD), Events: unix.POLLIN}, {Fd: int32(t.in), Events: unix.POLLIN}} //nolint:gosec // G115: descriptors
		wait := -1
		if background { // input is for whoever is in the foreground
			fds, wait = fds[:1], int(backgroundPoll.Milliseconds())
		}
		n, err := unix.Poll(fds, wait)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			t.warn("wait for input: " + err.Error())
			return false
		case n > 0 && fds[0].Revents != 0:
			return false
		case background:
			if t.mode.foreground() {
				t.enterRaw()
			}
		case n > 0:
			// The process may have been put into the background meanwhile: reading would stop it.
			if t.mode == nil || t.mode.foreground() {
				return true
			}
		}
	}
}

// writeInput moves the buffer to the plugin, and half-closes the socket after the end of input.
func (t *Terminal) writeInput() {
	buf := make([]byte, chunk)
	for {
		n := t.input.take(buf)
		if n == 0 {
			break
		}
		if _, err := t.conn.Write(buf[:n]); err != nil {
			return // Close: nobody is left to read it
		}
	}
	if t.closing.Load() {
		return
	}
	if raw, err := t.conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
}

// pumpOutput moves what the plugin writes to standard output, until Close.
func (t *Terminal) pumpOutput() {
	buf := make([]byte, chunk)
	for {
		n, err := t.conn.Read(buf)
		t.write(buf[:n])
		if err != nil {
			break
		}
	}
	raw, err := t.conn.SyscallConn()
	if err != nil {
		return
	}
	for more := true; more; { // what was there when Close came
		n := 0
		err := raw.Control(func(fd uintptr) {
			n, _, _ = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
		})
		more = err == nil && n > 0
		t.write(buf[:max(n, 0)])
	}
}

// write writes p to standard output. If that is gone, output is counted and dropped, so that the guest goes on.
func (t *Terminal) write(p []byte) {
	t.outMu.Lock()
	defer t.outMu.Unlock()
	for len(p) > 0 {
		n, err := unix.Write(t.out, p)
		if n > 0 {
			p = p[n:]
		}
		switch {
		case err == nil && n > 0, errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN): // somebody made the descriptor non-blocking
			fds := []unix.PollFd{{Fd: int32(t.out), Events: unix.POLLOUT}} //nolint:gosec // G115: a descriptor
			_, _ = unix.Poll(fds, int(backgroundPoll.Milliseconds()))
		default:
			if err == nil {
				err = io.ErrShortWrite
			}
			t.outputFailed(os.NewSyscallError("write", err), len(p))
			return
		}
	}
}

func (t *Terminal) outputFailed(err error, lost int) {
	t.lost.Add(uint64(lost)) //nolint:gosec // G115: a length
	if t.outErr.CompareAndSwap(nil, &err) {
		t.warn("console output is lost from here on: " + err.Error())
	}
}
