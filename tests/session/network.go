package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Network is a network namespace of the test's own, with nothing in it but its loopback, which is up. Its methods are any goroutine's,
// unless they say otherwise. It ends with the test and with the last process and socket in it.
type Network struct {
	tb testing.TB
	// calls are made on the only thread that is in the namespace.
	calls chan func()
}

// NewNetwork makes a namespace, or skips the test where that is not allowed. Processes in it see these files with these contents
// instead of the host's: /etc/resolv.conf, as a rule.
func NewNetwork(tb testing.TB, files map[string]string) *Network {
	tb.Helper()
	n := &Network{tb: tb, calls: make(chan func())}
	replace := map[string]string{}
	for name, text := range files {
		f, err := os.CreateTemp(tb.TempDir(), "file")
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Chmod(0o644), f.Close())
		}
		if err != nil {
			tb.Fatal(err)
		}
		replace[name] = f.Name()
	}
	entered := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and nobody else gets into the namespace.
		runtime.LockOSThread()
		err := enter(replace)
		entered <- err
		for err == nil {
			f, ok := <-n.calls
			if !ok {
				return
			}
			f()
		}
	}()
	switch err := <-entered; {
	case errors.Is(err, unix.EPERM):
		tb.Skipf("MISSING: making a network namespace needs root: %v", err)
	case err != nil:
		tb.Fatal(err)
	}
	tb.Cleanup(func() { close(n.calls) })
	n.Run("ip", "link", "set", "lo", "up")
	return n
}

// enter brings the calling thread, and what it starts, into new namespaces.
func enter(replace map[string]string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts of our own: %w", err)
	}
	for name, by := range replace {
		if err := unix.Mount(by, name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount: %s: %w", name, err)
		}
	}
	return nil
}

// Do calls f on a thread that is in the namespace: sockets that it opens and processes that it starts belong there, for good. f does not
// end the test.
func (n *Network) Do(f func() error) error {
	done := make(chan error)
	n.calls <- func() { done <- f() }
	return <-done
}

// command makes a command that is to be started by Do.
func (n *Network) command(name string, args ...string) *exec.Cmd {
	return exec.CommandContext(context.WithoutCancel(n.tb.Context()), name, args...) //nolint:gosec // G204: programs that the test names
}

// Try runs a program in the namespace and returns its output.
func (n *Network) Try(name string, args ...string) (string, error) {
	cmd := n.command(name, args...)
	var out Output
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

// Run is Try of a program that has to succeed. The test's goroutine only.
func (n *Network) Run(name string, args ...string) string {
	n.tb.Helper()
	out, err := n.Try(name, args...)
	if err != nil {
		n.tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Start starts a program in the namespace that runs until the test ends. What it says is shown if the test fails. The test's
// goroutine only.
func (n *Network) Start(name string, args ...string) {
	n.tb.Helper()
	cmd := n.command(name, args...)
	out := &Output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := n.Do(cmd.Start); err != nil {
		n.tb.Fatalf("%s: %v", name, err)
	}
	n.tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if n.tb.Failed() {
			n.tb.Logf("%s said:\n%s", name, Tail([]byte(out.String()), 4000))
		}
	})
}

// Listen opens a listening stream socket in the namespace. The test's goroutine only.
func (n *Network) Listen(address string) net.Listener {
	n.tb.Helper()
	var l net.Listener
	if err := n.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(n.tb.Context(), "tcp", address)
		return err
	}); err != nil {
		n.tb.Fatal(err)
	}
	n.tb.Cleanup(func() { _ = l.Close() })
	return l
}

// ListenPacket opens a UDP socket in the namespace. The test's goroutine only.
func (n *Network) ListenPacket(address string) net.PacketConn {
	n.tb.Helper()
	var c net.PacketConn
	if err := n.Do(func() (err error) {
		c, err = (&net.ListenConfig{}).ListenPacket(n.tb.Context(), "udp", address)
		return err
	}); err != nil {
		n.tb.Fatal(err)
	}
	n.tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Dial connects from the namespace to an address in figures: a name would be looked up elsewhere.
func (n *Network) Dial(network, address string) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: CommandLimit}).DialContext(n.tb.Context(), network, address)
		return err
	})
	return c, err
}
