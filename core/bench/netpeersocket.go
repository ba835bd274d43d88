package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// socketPeer is a program at the other end of a unix stream socket with QEMU's framing: each frame follows its length in four
// bytes, the most significant first.
type socketPeer struct {
	path   string
	listen int
	fd     int // the connection; -1: none yet
	loop   peerLoop
	in     []byte // what was read and not understood yet, across loads
	out    []byte // what was not written yet
}

const (
	streamLength = 4
	// streamChunk is how much is read or written by one system call at most, bytes; arbitrary.
	streamChunk = 256 << 10
)

// NewSocketPeer waits at path for the device, whose back-end is socket with connect = "unix:PATH".
func NewSocketPeer(path string) (NetPeer, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, call("socket", err)
	}
	if err := errors.Join(limit(fd), call("bind", unix.Bind(fd, &unix.SockaddrUnix{Name: path})), call("listen", unix.Listen(fd, 1))); err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), unix.Close(fd))
	}
	return &socketPeer{path: path, listen: fd, fd: -1}, nil
}

func (p *socketPeer) address(*netEnds) error { return p.accept(10 * time.Second) }

// accept waits for the device to connect, if it has not.
func (p *socketPeer) accept(patience time.Duration) error {
	for begin := time.Now(); p.fd < 0; {
		fd, _, err := unix.Accept4(p.listen, unix.SOCK_CLOEXEC)
		switch {
		case nothing(err) && time.Since(begin) < patience:
		case nothing(err):
			return fmt.Errorf("socket %s: the device has not connected for %v", p.path, patience)
		case err != nil:
			return call("accept", err)
		default:
			p.fd = fd
			return limit(fd)
		}
	}
	return nil
}

func (p *socketPeer) start(pattern NetPattern, e netEnds, _ func() uint64) error {
	switch pattern {
	case NetSend:
		p.loop.run(func() error { return p.take(&e, nil) })
	case NetReceive:
		p.loop.run(p.generate(e))
	case NetEcho:
		p.loop.run(func() error {
			if err := p.take(&e, p.turnBack); err != nil {
				return err
			}
			return p.flush()
		})
	}
	return nil
}

// take reads once and gives f each whole frame, with its length.
func (p *socketPeer) take(e *netEnds, f func(framed []byte)) error {
	if cap(p.in) < streamChunk+MaxFrame+streamLength {
		p.in = make([]byte, 0, streamChunk+MaxFrame+streamLength)
	}
	n, err := unix.Read(p.fd, p.in[len(p.in):cap(p.in)])
	switch {
	case nothing(err):
		return nil
	case err != nil:
		return fmt.Errorf("socket %s: %w", p.path, err)
	case n == 0:
		return fmt.Errorf("socket %s: the device has closed the connection", p.path)
	}
	p.in = p.in[:len(p.in)+n]
	rest, frames := p.in, int64(0)
	for len(rest) >= streamLength {
		size := int(binary.BigEndian.Uint32(rest))
		if size > MaxFrame+ethernetHeader {
			return fmt.Errorf("socket %s: the device sent a frame of %d bytes", p.path, size)
		}
		if len(rest) < streamLength+size {
			break
		}
		if _, _, own, _ := e.kind(rest[streamLength : streamLength+size]); own {
			frames++
			if f != nil {
				f(rest[:streamLength+size])
			}
		}
		rest = rest[streamLength+size:]
	}
	p.in = p.in[:copy(p.in, rest)]
	p.loop.received.Add(frames)
	return nil
}

// turnBack puts a frame into out with its addresses exchanged.
func (p *socketPeer) turnBack(framed []byte) {
	at := len(p.out)
	p.out = append(p.out, framed...)
	f := p.out[at+streamLength:]
	copy(f, framed[streamLength+6:streamLength+12])
	copy(f[6:], framed[streamLength:streamLength+6])
	p.loop.sent.Add(1)
}

// flush writes what is in out. At the end of a load it gives up after some time: what is left is written first by the next.
func (p *socketPeer) flush() error {
	for tries := 0; len(p.out) > 0; {
		n, err := unix.Write(p.fd, p.out)
		if n > 0 {
			p.out = p.out[:copy(p.out, p.out[n:])]
		}
		if err != nil && !nothing(err) {
			return fmt.Errorf("socket %s: %w", p.path, err)
		}
		if err != nil && p.loop.quit.Load() {
			if tries++; tries > 20 {
				return nil
			}
		}
	}
	return nil
}

// generate writes frames, many at once.
func (p *socketPeer) generate(e netEnds) func() error {
	frame := e.frame(true, 0)
	frames := max(1, min(64, streamChunk/2/len(frame)))
	batch := make([]byte, 0, frames*(streamLength+len(frame)))
	for range frames {
		batch = binary.BigEndian.AppendUint32(batch, uint32(len(frame))) //nolint:gosec // G115: at most MaxFrame
		batch = append(batch, frame...)
	}
	seq := uint32(0)
	return func() error {
		for i := range frames {
			at := i*(streamLength+len(frame)) + streamLength + e.markOffset() + 4
			binary.BigEndian.PutUint32(batch[at:], seq)
			seq++
		}
		p.out = append(p.out, batch...)
		err := p.flush()
		p.loop.sent.Add(int64(frames))
		return err
	}
}

func (p *socketPeer) stop() error       { return p.loop.stop() }
func (p *socketPeer) counts() netCounts { return p.loop.counts() }

func (p *socketPeer) Close() error {
	err := errors.Join(p.stop(), unix.Close(p.listen))
	if p.fd >= 0 {
		err = errors.Join(err, unix.Close(p.fd))
	}
	return errors.Join(err, call("unlink", unix.Unlink(p.path)))
}
