package control

import (
	"fmt"
	"net"
	"os"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// ownListener accepts connections of the same user, and of root, only.
type ownListener struct {
	*net.UnixListener
	log hclog.Logger
}

// Accept implements net.Listener.
func (l *ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(conn)
		if err == nil && (uid == 0 || int(uid) == os.Geteuid()) {
			return conn, nil
		}
		l.log.Warn("control socket: caller refused", "uid", uid, "error", err)
		if err := conn.Close(); err != nil {
			l.log.Warn("control socket: close", "error", err)
		}
	}
}

// peerUID is the user who connected, by the kernel's word.
func peerUID(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	ctl := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if ctl != nil {
		return 0, ctl
	}
	if err != nil {
		return 0, fmt.Errorf("peer's credentials: %w", os.NewSyscallError("getsockopt", err))
	}
	return cred.Uid, nil
}
