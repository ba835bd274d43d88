package session

import (
	"bytes"
	"strings"
	"time"
)

// wait waits until look finds something in the terminal's unread output, and consumes what it says.
func (v *VM) wait(limit time.Duration, what string, look func(unread []byte) (used int, ok bool)) {
	v.tb.Helper()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		v.mu.Lock()
		used, ok := look(v.out[v.read:])
		if ok {
			v.read += used
		}
		changed := v.changed
		v.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-v.Exited:
			v.tb.Fatalf("virtplug ended (%v) while waiting for %s", v.waitErr, what)
		case <-timeout.C:
			v.tb.Fatalf("no %s within %v", what, limit)
		}
	}
}

// Expect waits for text on the terminal and returns what came before it.
func (v *VM) Expect(text string, limit time.Duration) string {
	v.tb.Helper()
	before := ""
	v.wait(limit, "\""+text+"\"", func(unread []byte) (int, bool) {
		i := bytes.Index(unread, []byte(text))
		if i >= 0 {
			before = string(unread[:i])
		}
		return i + len(text), i >= 0
	})
	return before
}

// Bytes waits for n bytes of the terminal.
func (v *VM) Bytes(n int, limit time.Duration) []byte {
	v.tb.Helper()
	var got []byte
	v.wait(limit, "more bytes", func(unread []byte) (int, bool) {
		if len(unread) < n {
			return 0, false
		}
		got = bytes.Clone(unread[:n])
		return n, true
	})
	return got
}

// Peek returns the unread output and leaves it unread. Any goroutine may call it.
func (v *VM) Peek() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return string(v.out[v.read:])
}

// Shell runs a command line in the guest's shell and returns its output and exit status.
func (v *VM) Shell(command string) (output, status string) {
	v.tb.Helper()
	// The shell echoes the line: the marks are written so that the echo does not have them.
	v.Type("echo BE''GIN; " + command + "; echo EN''D$?.\r")
	v.Expect("BEGIN\r\n", CommandLimit)
	output = v.Expect("END", CommandLimit)
	status = v.Expect(".\r\n", CommandLimit)
	return strings.TrimSpace(strings.ReplaceAll(output, "\r\n", "\n")), status
}

// Must runs a command line in the guest's shell that has to succeed, and returns its output.
func (v *VM) Must(command string) string {
	v.tb.Helper()
	out, status := v.Shell(command)
	if status != "0" {
		v.tb.Fatalf("guest: %s: exit status %s: %s", command, status, out)
	}
	return out
}

// PowerOff ends the guest from inside and checks that the launcher ends well and leaves nothing behind.
func (v *VM) PowerOff() {
	v.tb.Helper()
	v.Type("poweroff\r")
	v.Ended(0)
}
