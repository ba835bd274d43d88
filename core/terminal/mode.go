package terminal

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// mode switches one terminal between the mode it was found in and raw mode.
type mode struct {
	fd int

	mu         sync.Mutex
	entered    bool // raw mode was entered at least once
	done       bool // restored for good
	saved, raw unix.Termios
	guard      *guard
}

// isTerminal tells whether fd is a terminal.
func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// foreground tells whether this process may use the terminal: it is in its foreground process group, or the terminal is
// not the one that controls it.
func (m *mode) foreground() bool {
	group, err := unix.IoctlGetInt(m.fd, unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp()
}

// enter enters raw mode if it is not on and the process is in the foreground. start makes the guard, the first time.
func (m *mode) enter(start func(saved, raw unix.Termios) (*guard, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done || !m.foreground() {
		return nil
	}
	now, err := unix.IoctlGetTermios(m.fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read terminal mode: %w", err)
	}
	if m.entered && *now == m.raw {
		return nil
	}
	if !m.entered {
		m.saved = *now
	}
	raw := m.saved
	makeRaw(&raw)
	if err := unix.IoctlSetTermios(m.fd, unix.TCSETS, &raw); err != nil {
		return fmt.Errorf("set terminal mode: %w", err)
	}
	if m.entered {
		return nil
	}
	m.entered = true
	m.raw = raw
	if now, err = unix.IoctlGetTermios(m.fd, unix.TCGETS); err == nil {
		m.raw = *now // as the driver rounded it
	}
	m.guard, err = start(m.saved, m.raw)
	return err
}

// makeRaw is cfmakeraw(3): every byte passes as it is, both ways.
func makeRaw(t *unix.Termios) {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
}

// isRaw tells whether raw mode was entered and not left.
func (m *mode) isRaw() bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entered && !m.done
}

// restore leaves raw mode for good. In the background the terminal is somebody else's and is left alone.
func (m *mode) restore() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done {
		return nil
	}
	m.done = true
	if !m.entered {
		return nil
	}
	var err error
	if m.foreground() {
		err = os.NewSyscallError("restore terminal: tcsetattr", unix.IoctlSetTermios(m.fd, unix.TCSETS, &m.saved))
	}
	if m.guard != nil {
		err = errors.Join(err, m.guard.dismiss())
	}
	return err
}

// size is the terminal's size in characters; ok is false if it has none.
func size(fd int) (cols, rows int, ok bool) {
	w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil || w.Col == 0 || w.Row == 0 {
		return 0, 0, false
	}
	return int(w.Col), int(w.Row), true
}
