package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxFDs is what one SCM_RIGHTS message can carry (the kernel's SCM_MAX_FD).
const maxFDs = 253

// Message is a received message. Its receiver owns the descriptors.
type Message struct {
	Header

	Payload []byte
	FDs     []int
}

// closeFDs closes the descriptors that nobody took.
func (m *Message) closeFDs() {
	for _, fd := range m.FDs {
		_ = unix.Close(fd)
	}
	m.FDs = nil
}

// Conn carries messages over a connected unix stream socket. One goroutine may receive while another sends.
type Conn struct {
	sock *net.UnixConn
	oob  []byte
}

// NewConn takes over sock.
func NewConn(sock *net.UnixConn) *Conn {
	return &Conn{sock: sock, oob: make([]byte, unix.CmsgSpace(4*maxFDs))}
}

// Close closes the socket; a blocked Receive or Send returns.
func (c *Conn) Close() error { return c.sock.Close() }

// Receive reads one message. io.EOF means that the peer closed the socket between two messages. Every descriptor that came
// is in the message, or closed on an error.
func (c *Conn) Receive() (*Message, error) {
	m := &Message{}
	if err := c.receive(m); err != nil {
		m.closeFDs()
		return nil, err
	}
	return m, nil
}

func (c *Conn) receive(m *Message) error {
	var hdr [HeaderSize]byte
	if err := c.readFull(hdr[:], m); err != nil {
		return err
	}
	h, err := DecodeHeader(hdr[:])
	if err != nil {
		return err
	}
	m.Header, m.Payload = h, make([]byte, h.Size)
	if err := c.readFull(m.Payload, m); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%v: payload: %w", h.Request, err)
	}
	return nil
}

// readFull fills b, collecting descriptors in m.
func (c *Conn) readFull(b []byte, m *Message) error {
	for done := 0; done < len(b); {
		n, oobn, flags, _, err := c.sock.ReadMsgUnix(b[done:], c.oob)
		fds, cerr := parseRights(c.oob[:oobn])
		m.FDs = append(m.FDs, fds...)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return fmt.Errorf("receive: %w", err)
		case cerr != nil:
			return fmt.Errorf("%w: control message: %w", ErrProtocol, cerr)
		case flags&unix.MSG_CTRUNC != 0:
			return fmt.Errorf("%w: descriptors lost: too many in one message, or this process is out of descriptors", ErrProtocol)
		case len(m.FDs) > maxFDs:
			return fmt.Errorf("%w: more than %d descriptors", ErrProtocol, maxFDs)
		case n == 0 && done == 0:
			return io.EOF
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		done += n
	}
	return nil
}

// parseRights returns the descriptors of all SCM_RIGHTS messages in oob, also on an error.
func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, perr := unix.ParseUnixRights(&msgs[i])
		fds, err = append(fds, got...), errors.Join(err, perr)
	}
	return fds, err
}

// Send writes one message with descriptors, which stay the caller's.
func (c *Conn) Send(r Request, flags uint32, payload []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	b := AppendMessage(make([]byte, 0, HeaderSize+len(payload)), r, flags, payload)
	n, _, err := c.sock.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) { // WriteMsgUnix may write less; descriptors went with the first byte
		_, err = c.sock.Write(b[n:])
	}
	if err != nil {
		return fmt.Errorf("send %v: %w", r, err)
	}
	return nil
}

// connFromFD makes a Conn of a received socket. fd stays the caller's.
func connFromFD(fd int) (*Conn, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(dup), "backend-req")
	defer func() { _ = f.Close() }()
	nc, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor is no socket: %w", err)
	}
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("descriptor is no unix socket"), nc.Close())
	}
	return NewConn(uc), nil
}
