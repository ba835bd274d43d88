package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ptyPoll is how often an unconnected terminal is looked at: the kernel does not tell when somebody opens it. What limits
// it is that an idle device should sleep.
const ptyPoll = 250 * time.Millisecond

// pty is a pseudo-terminal: users attach to its slave, /dev/pts/N. Somebody is connected while the slave is open.
type pty struct {
	*outlet
	master *os.File
	slave  string
	link   string
}

// newPty opens a pseudo-terminal in raw mode. link, if not empty, becomes a symbolic link to the slave.
func newPty(o *outlet, link string) (*pty, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	p := &pty{outlet: o, master: os.NewFile(uintptr(fd), "/dev/ptmx")}
	if err := p.set(fd); err != nil {
		return nil, errors.Join(err, p.master.Close())
	}
	if link != "" {
		if err := linkPty(link, p.slave); err != nil {
			return nil, errors.Join(err, p.master.Close())
		}
		p.link = link
	}
	return p, nil
}

func (p *pty) set(fd int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock pseudo-terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("number of pseudo-terminal: %w", err)
	}
	p.slave = fmt.Sprintf("/dev/pts/%d", n)
	// Opened and closed once, the slave counts as hung up until somebody opens it.
	slave, err := unix.Open(p.slave, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: p.slave, Err: err}
	}
	defer func() { _ = unix.Close(slave) }()
	t, err := unix.IoctlGetTermios(slave, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read mode of %s: %w", p.slave, err)
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(slave, unix.TCSETS, t); err != nil {
		return fmt.Errorf("set mode of %s: %w", p.slave, err)
	}
	return nil
}

// linkPty makes link point to slave. A link that a former instance left is replaced, anything else is not.
func linkPty(link, slave string) error {
	if old, err := os.Readlink(link); err == nil && strings.HasPrefix(old, "/dev/pts/") {
		if err := os.Remove(link); err != nil {
			return err
		}
	}
	return os.Symlink(slave, link)
}

// connected tells whether somebody has the slave open.
func (p *pty) connected() bool {
	up := true
	raw, err := p.master.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}} //nolint:gosec // G115: a descriptor
		n, err := unix.Poll(fds, 0)
		up = err != nil || n == 0 || fds[0].Revents&unix.POLLHUP == 0
	})
	return err == nil && up
}

func (p *pty) Run(ctx context.Context, opened func(bool)) {
	conn, _, _ := p.state()
	opened(conn != nil)
	for ctx.Err() == nil {
		conn, _, _ := p.state()
		switch up := p.connected(); {
		case up && conn == nil:
			p.attach(p.master)
			opened(true)
		case !up && conn != nil:
			p.detach(p.master)
			opened(false)
		case !up:
			sleep(ctx, ptyPoll)
		default:
			p.awaitHangup(ctx)
		}
	}
}

func (p *pty) awaitHangup(ctx context.Context) {
	raw, err := p.master.SyscallConn()
	if err == nil {
		err = hangup(ctx, raw)
	}
	if err != nil {
		sleep(ctx, ptyPoll)
	}
}

func (p *pty) Read(ctx context.Context, b []byte) (int, error) {
	for {
		n, err := readStream(ctx, p.master, b)
		if !errors.Is(err, unix.EIO) {
			return n, err
		}
		// Nobody has the slave open, and all that was written to it is read.
		_, _, changed := p.state()
		pause, cancel := context.WithTimeout(ctx, ptyPoll)
		select {
		case <-changed:
		case <-pause.Done():
		}
		cancel()
	}
}

func (p *pty) Counters(add func(string, uint64)) { p.counters(add) }

func (p *pty) Close() error {
	p.close()
	var err error
	if old, rerr := os.Readlink(p.link); p.link != "" && rerr == nil && old == p.slave {
		err = os.Remove(p.link)
	}
	return errors.Join(p.master.Close(), err)
}
