package terminal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

const mebibyte = 1 << 20

// openPty returns a fresh pseudo-terminal: what the user sees, and what the launcher gets.
func openPty(t *testing.T) (user, tty *os.File) {
	t.Helper()
	user, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = user.Close()
		_ = tty.Close()
	})
	return user, tty
}

func open(t *testing.T, in, out *os.File, opts Options) *Terminal {
	t.Helper()
	opts.NoGuard = true
	term, err := Open(in, out, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = term.Close() })
	return term
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

func termios(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *m
}

func isRaw(m unix.Termios) bool {
	return m.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0 && m.Oflag&unix.OPOST == 0
}

func randomBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

func readN(t *testing.T, r io.Reader, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	done := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(r, b)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatalf("read %d bytes: not after %v", n, patience)
	}
	return b
}

func TestRawModeIsSetAndRestored(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	before := termios(t, tty)
	term := open(t, tty, tty, Options{})
	if !isRaw(termios(t, tty)) || !term.IsTerminal() {
		t.Error("the terminal is not raw after Open")
	}
	var msg bytes.Buffer
	if _, err := io.WriteString(term.Messages(&msg), "a\nb\n"); err != nil || msg.String() != "a\r\nb\r\n" {
		t.Errorf("message in raw mode: %q, %v", msg.String(), err)
	}
	if err := term.Close(); err != nil {
		t.Error(err)
	}
	if got := termios(t, tty); got != before {
		t.Errorf("mode after Close: %+v, before Open: %+v", got, before)
	}
	if err := term.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	_ = user
}

func TestOneMebibyteEachWay(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	term := open(t, tty, tty, Options{})
	guest := term.PluginEnd()
	typed, printed := bytes.ReplaceAll(randomBytes(1, mebibyte), []byte{escapeKey}, []byte{0}), randomBytes(2, mebibyte)
	errs := make(chan error, 2)
	go func() { _, err := user.Write(typed); errs <- err }()
	go func() { _, err := guest.Write(printed); errs <- err }()
	got := make(chan []byte)
	go func() { got <- readN(t, guest, mebibyte) }()
	if sha256.Sum256(readN(t, user, mebibyte)) != sha256.Sum256(printed) {
		t.Error("output differs")
	}
	if sha256.Sum256(<-got) != sha256.Sum256(typed) {
		t.Error("input differs")
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestSlowUserLosesNothing(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	term := open(t, tty, tty, Options{})
	printed := randomBytes(3, mebibyte)
	var sent atomic.Int64
	go func() {
		for b := printed; len(b) > 0; b = b[4096:] {
			if _, err := term.PluginEnd().Write(b[:4096]); err != nil {
				return
			}
			sent.Add(4096)
		}
	}()
	// It stands still: the plugin is made to wait.
	eventually(t, "output stops", func() bool {
		n := sent.Load()
		time.Sleep(100 * time.Millisecond)
		return n > 0 && n == sent.Load()
	})
	if sent.Load() == mebibyte {
		t.Fatal("everything was taken although nobody reads")
	}
	if !bytes.Equal(readN(t, user, mebibyte), printed) {
		t.Error("output differs")
	}
}

func TestEscapeKeyWorksWhileTheGuestDoesNotRead(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	var quits atomic.Int32
	term := open(t, tty, tty, Options{OnQuit: func() { quits.Add(1) }})
	typed := bytes.Repeat([]byte("0123456789abcdef"), 3*mebibyte/4/16) // more than sockets hold, less than the limit
	if _, err := user.Write(append(bytes.Clone(typed), "\x01x\x01h"...)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "quit", func() bool { return quits.Load() == 1 })
	help := strings.ReplaceAll(term.Help(), "\n", "\r\n")
	if got := readN(t, user, len(help)+2); string(got) != "\r\n"+help {
		t.Errorf("help: %q", got)
	}
	if !bytes.Equal(readN(t, term.PluginEnd(), len(typed)), typed) {
		t.Error("input differs")
	}
}

func TestFullInputWaits(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	var warned atomic.Int32
	term := open(t, tty, tty, Options{Warn: func(string) { warned.Add(1) }})
	typed := bytes.Repeat([]byte("0123456789abcdef"), 3*mebibyte/16)
	go func() { _, _ = user.Write(typed) }()
	eventually(t, "warning", func() bool { return warned.Load() > 0 })
	if !bytes.Equal(readN(t, term.PluginEnd(), len(typed)), typed) {
		t.Error("input differs")
	}
}

func TestSizeAndItsChangesAreTold(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	if err := pty.Setsize(user, &pty.Winsize{Cols: 80, Rows: 25}); err != nil {
		t.Fatal(err)
	}
	var got atomic.Int64
	term := open(t, tty, tty, Options{OnResize: func(cols, rows int) { got.Store(int64(cols*1000 + rows)) }})
	eventually(t, "first size", func() bool { return got.Load() == 80025 })
	if err := pty.Setsize(user, &pty.Winsize{Cols: 132, Rows: 43}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil { // it does not control us
		t.Fatal(err)
	}
	eventually(t, "new size", func() bool { return got.Load() == 132043 })
	if c, r, ok := term.Size(); c != 132 || r != 43 || !ok {
		t.Errorf("Size: %d, %d, %v", c, r, ok)
	}
}

func TestCloseWritesWhatIsLeft(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	term := open(t, tty, tty, Options{})
	printed := randomBytes(4, 100<<10)
	// All of it is in the socket, unread by the user, when Close comes.
	if _, err := term.PluginEnd().Write(printed); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte)
	go func() { got <- readN(t, user, len(printed)) }()
	if err := term.Close(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(<-got, printed) {
		t.Error("output differs")
	}
}

func TestCloseGivesUpOnAStuckTerminal(t *testing.T) {
	t.Parallel()
	user, tty := openPty(t)
	before := termios(t, tty)
	term := open(t, tty, tty, Options{})
	go func() { _, _ = term.PluginEnd().Write(randomBytes(5, mebibyte)) }()
	readN(t, user, 1)
	start := time.Now()
	if err := term.Close(); err == nil {
		t.Error("Close tells of no lost output")
	}
	if d := time.Since(start); d > patience {
		t.Errorf("Close took %v", d)
	}
	if termios(t, tty) != before {
		t.Error("the terminal is not restored")
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, user) // until nobody has tty open
	}()
	if !finished(&term.writers) {
		t.Error("the output goroutine does not end when the terminal goes on")
	}
	if err := errors.Join(term.release(), tty.Close()); err != nil {
		t.Error(err)
	}
	<-drained
}

func TestPipesArePumpedAsTheyAre(t *testing.T) {
	t.Parallel()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(inR.Close(), outR.Close(), outW.Close()) }()
	term := open(t, inR, outW, Options{OnQuit: func() { t.Error("escape key in a pipe") }})
	if term.IsTerminal() {
		t.Error("a pipe is a terminal")
	}
	const text = "a\x01x\x01\x01\n"
	if _, err := inW.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := inW.Close(); err != nil {
		t.Fatal(err)
	}
	guest := term.PluginEnd()
	got, err := io.ReadAll(guest) // ends: the socket is half-closed
	if err != nil || string(got) != text {
		t.Errorf("input: %q, %v", got, err)
	}
	if _, err := guest.WriteString("out\n"); err != nil { // the other half is open
		t.Fatal(err)
	}
	if got := readN(t, outR, 4); string(got) != "out\n" {
		t.Errorf("output: %q", got)
	}
}

func TestLostStandardOutputDoesNotStopTheGuest(t *testing.T) {
	t.Parallel()
	_, tty := openPty(t)
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = outW.Close() }()
	if err := outR.Close(); err != nil {
		t.Fatal(err)
	}
	var warned atomic.Int32
	term := open(t, tty, outW, Options{Warn: func(string) { warned.Add(1) }})
	if _, err := term.PluginEnd().Write(make([]byte, mebibyte)); err != nil {
		t.Fatal(err)
	}
	if err := term.Close(); !errors.Is(err, unix.EPIPE) {
		t.Errorf("Close: %v", err)
	}
	if warned.Load() != 1 || term.lost.Load() != mebibyte {
		t.Errorf("%d warnings, %d bytes lost", warned.Load(), term.lost.Load())
	}
}

func TestPluginEndStaysNonBlockingForThePlugin(t *testing.T) {
	t.Parallel()
	_, tty := openPty(t)
	term := open(t, tty, tty, Options{})
	raw, err := term.PluginEnd().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), true) }); err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(term.PluginEnd().Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("handing the socket on made it blocking for the plugin that has it: %v", err)
	}
}

func TestEscape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":              "",
		"abc":           "abc",
		"a\x01xb":       "a[quit]b",
		"\x01h\x01?":    "[help][help]",
		"\x01\x01x":     "\x01x",
		"\x01\x01\x01x": "\x01[quit]",
		"\x01b":         "\x01b",
		"a\x01":         "a\x01",
	} {
		for cut := range len(in) + 1 { // however the bytes come
			var got []byte
			e := escape{quit: func() { got = append(got, "[quit]"...) }, help: func() { got = append(got, "[help]"...) }}
			for _, part := range []string{in[:cut], in[cut:]} {
				for i := range len(part) {
					b := e.filter(nil, []byte(part[i:i+1]))
					got = append(got, b...)
				}
			}
			if got = append(got, e.rest()...); string(got) != want {
				t.Errorf("%q cut at %d: %q, want %q", in, cut, got, want)
			}
		}
	}
}

func TestAHeldTerminalIsTheUsersUntilStart(t *testing.T) {
	t.Parallel()
	_, tty := openPty(t)
	before := termios(t, tty)
	never := open(t, tty, tty, Options{Hold: true})
	if termios(t, tty) != before {
		t.Error("Open changed the terminal's mode")
	}
	if err := never.Close(); err != nil || termios(t, tty) != before {
		t.Errorf("Close without Start: %v", err)
	}
	user, tty := openPty(t)
	term := open(t, tty, tty, Options{Hold: true})
	term.Start()
	if !isRaw(termios(t, tty)) {
		t.Error("the terminal is not raw after Start")
	}
	if _, err := user.WriteString("typed"); err != nil {
		t.Fatal(err)
	}
	if got := readN(t, term.PluginEnd(), 5); string(got) != "typed" {
		t.Errorf("the plugin reads %q", got)
	}
}
