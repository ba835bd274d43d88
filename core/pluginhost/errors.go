package pluginhost

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/virtplug/virtplug/core/device"
)

// What can be wrong with a plugin. Errors of this package wrap them.
var (
	// ErrExited: the process ended. The error is an *ExitError.
	ErrExited = errors.New("plugin exited")
	// ErrStartTimeout: it did not get through its start in time.
	ErrStartTimeout = errors.New("plugin did not start in time")
	// ErrHandshake: it wrote something else than go-plugin's handshake to standard output.
	ErrHandshake = errors.New("no handshake on the plugin's standard output")
	// ErrAPIVersion: it does not serve our version of the contract.
	ErrAPIVersion = errors.New("wrong API version")
	// ErrIdentity: it says that its name is another.
	ErrIdentity = errors.New("wrong plugin name")
	// ErrDeviceType: it serves another device type.
	ErrDeviceType = errors.New("wrong device type")
	// ErrHash: the program is not the one that was pinned.
	ErrHash = errors.New("wrong SHA-256 of the program")
	// ErrNotFound: there is no such plugin.
	ErrNotFound = errors.New("plugin not found")
	// ErrUnsafe: the program or its directory may be changed by anybody.
	ErrUnsafe = errors.New("writable by everybody")
)

// ExitError tells how a plugin's process ended. It matches ErrExited and device.ErrLost.
type ExitError struct {
	// Plugin and Device are names; PID was the process.
	Plugin, Device string
	PID            int
	// Status is the exit status; -1 if Signal ended it.
	Status int
	Signal syscall.Signal
	// Reason is why the launcher ended it; empty if it was not the launcher.
	Reason string
	// Stderr are the last lines that it wrote, at most 20.
	Stderr []string
}

// Error is one line.
func (e *ExitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plugin %s of device %s (process %d) ", e.Plugin, e.Device, e.PID)
	switch {
	case e.Reason != "":
		fmt.Fprintf(&b, "was ended by the launcher: %s", e.Reason)
	case e.Signal != 0:
		fmt.Fprintf(&b, "was killed by signal %d (%v)", int(e.Signal), e.Signal)
	default:
		fmt.Fprintf(&b, "exited with status %d", e.Status)
	}
	b.WriteString(lastWords(e.Stderr))
	return b.String()
}

// Is matches ErrExited and device.ErrLost.
func (e *ExitError) Is(target error) bool { return target == ErrExited || target == device.ErrLost }

// StartError tells why an instance did not start. It wraps one of the errors of this package, a *pluginrpc.SettingError or
// the context's error.
type StartError struct {
	Plugin, Device, Path string
	Err                  error
	// Stderr are the last lines that the process wrote, at most 20.
	Stderr []string
}

// Error is one line.
func (e *StartError) Error() string {
	s := fmt.Sprintf("start plugin %s: %s: %s: %v", e.Plugin, e.Device, e.Path, e.Err)
	if exit := (*ExitError)(nil); errors.As(e.Err, &exit) {
		return s // has them
	}
	return s + lastWords(e.Stderr)
}

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// shownLines is how many of the last lines a message shows.
const shownLines = 5

func lastWords(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	if len(lines) > shownLines {
		lines = lines[len(lines)-shownLines:]
	}
	return "; its last words: " + strings.Join(lines, " | ")
}
