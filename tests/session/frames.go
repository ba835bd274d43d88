package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Frames counts what passes an interface, in both directions: a frame that was not segmented counts as one.
type Frames struct {
	socket *os.File
	done   chan struct{}

	mu      sync.Mutex
	in, out FrameCount
}

// FrameCount is what passed in one direction; lengths in bytes with the Ethernet header.
type FrameCount struct {
	Frames, Bytes, Longest int
}

func (c *FrameCount) add(n int) {
	c.Frames++
	c.Bytes += n
	c.Longest = max(c.Longest, n)
}

// Watch counts the frames of an interface of the namespace until the test ends. The test's goroutine only.
func (n *Network) Watch(tb testing.TB, name string) *Frames {
	tb.Helper()
	f := &Frames{done: make(chan struct{})}
	if err := n.Do(func() (err error) {
		f.socket, err = packetSocket(name)
		return err
	}); err != nil {
		tb.Fatalf("watch %s: %v", name, err)
	}
	go f.read()
	tb.Cleanup(func() {
		_ = f.socket.Close()
		<-f.done
	})
	return f
}

// packetSocket opens a socket that gets what an interface sends and receives (packet(7)).
func packetSocket(name string) (*os.File, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// read counts until the socket is closed.
func (f *Frames) read() {
	defer close(f.done)
	raw, err := f.socket.SyscallConn()
	if err != nil {
		return
	}
	b := make([]byte, 1)
	for {
		if err := raw.Read(func(fd uintptr) bool {
			for range 64 {
				// The frame's whole length although there is no room for it.
				n, from, err := unix.Recvfrom(int(fd), b, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
				if errors.Is(err, unix.EAGAIN) {
					return false
				}
				if l, ok := from.(*unix.SockaddrLinklayer); err == nil && ok {
					f.count(n, l.Pkttype == unix.PACKET_OUTGOING)
				}
			}
			return true
		}); err != nil {
			return
		}
	}
}

func (f *Frames) count(n int, out bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if out {
		f.out.add(n)
	} else {
		f.in.add(n)
	}
}

// Counts tells what the interface has received from its other end, and what was sent there.
func (f *Frames) Counts() (in, out FrameCount) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.in, f.out
}

// Until waits until the counts satisfy ok.
func (f *Frames) Until(tb testing.TB, what string, ok func(in, out FrameCount) bool) {
	tb.Helper()
	for end := time.Now().Add(CommandLimit); !ok(f.Counts()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			in, out := f.Counts()
			tb.Fatalf("no %s within %v: received %+v, sent %+v", what, CommandLimit, in, out)
		}
	}
}
