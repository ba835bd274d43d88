// Package fdpass passes descriptors from the launcher to a plugin: the descriptor socket of docs/plugin-protocol.md.
//
// The socket is one AF_UNIX SOCK_SEQPACKET pair for the life of a plugin instance. One message is a header of 16 bytes,
//
//	le32 magic "VPFD" · le32 count · le64 token
//
// with count descriptors as SCM_RIGHTS. The launcher sends a message, then the RPC that names its token; so whatever an RPC
// names is in the socket when the RPC arrives. Sender is the launcher's half, Receiver the plugin's.
package fdpass

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// HeaderSize is the length of a message's header, in bytes.
	HeaderSize = 16
	// Magic is the header's first word: "VPFD" in memory.
	Magic = uint32('V') | 'P'<<8 | 'F'<<16 | 'D'<<24
	// MaxFDs is the most descriptors in one message: the kernel's SCM_MAX_FD.
	MaxFDs = 253
)

// Errors of Take. They are wrapped with the token.
var (
	// ErrNeverCame: no message with the token arrived in time.
	ErrNeverCame = errors.New("the launcher never sent these descriptors")
	// ErrTwice: the launcher used one token for two messages, or the token was taken before.
	ErrTwice = errors.New("the token was used twice")
	// ErrCount: message, header and request do not agree on the number of descriptors.
	ErrCount = errors.New("wrong number of descriptors")
	// ErrTruncated: the kernel could not deliver all descriptors (MSG_CTRUNC), mostly because of this process's limit.
	ErrTruncated = errors.New("descriptors were lost (is the limit of open files, ulimit -n, too low?)")
	// ErrMalformed: a message that is no message of this protocol.
	ErrMalformed = errors.New("malformed message on the descriptor socket")
	// ErrTooMany: so many messages were never taken that this one was dropped.
	ErrTooMany = errors.New("dropped: too many descriptor messages that nobody asked for")
	// ErrClosed: the socket is closed, on this side or the launcher's.
	ErrClosed = errors.New("the descriptor socket is closed")
)

// Pair makes the socket: the launcher's end, and the plugin's end to be inherited as descriptor 3. Both are close-on-exec.
func Pair() (launcher, plugin *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("descriptor socket: %w", os.NewSyscallError("socketpair", err))
	}
	return os.NewFile(uintptr(fds[0]), "descriptor socket (launcher)"),
		os.NewFile(uintptr(fds[1]), "descriptor socket (plugin)"), nil
}

// conn makes f a connection and closes f. It refuses what is no AF_UNIX SOCK_SEQPACKET socket.
func conn(f *os.File) (*net.UnixConn, error) {
	defer func() { _ = f.Close() }() // net.FileConn has its own descriptor
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor socket: %s: not a socket: %w", f.Name(), err)
	}
	if u, ok := c.(*net.UnixConn); ok && c.LocalAddr().Network() == "unixpacket" {
		return u, nil
	}
	network := c.LocalAddr().Network()
	return nil, errors.Join(fmt.Errorf("descriptor socket: %s: a %s socket: want unixpacket (SOCK_SEQPACKET)", f.Name(), network), c.Close())
}

func appendHeader(b []byte, count int, token uint64) []byte {
	b = binary.LittleEndian.AppendUint32(b, Magic)
	b = binary.LittleEndian.AppendUint32(b, uint32(count)) //nolint:gosec // count <= MaxFDs
	return binary.LittleEndian.AppendUint64(b, token)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // nothing was written through it
	}
}
