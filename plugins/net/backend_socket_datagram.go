package main

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/vecio"
)

// datagramDrops bounds what one receive drops, so that a peer that sends only that does not keep it. Arbitrary.
const datagramDrops = 64

// lasting tells which errors of a datagram socket are its peer's end.
type lasting int

const (
	// forever: the peer comes and goes without the socket's knowledge (UDP); an error says only that something was lost.
	forever lasting = iota
	// bySending: sending to it tells that it has gone (unix datagrams).
	bySending
	// byBoth: it is a connection that ends, also told by receiving (SOCK_SEQPACKET).
	byBoth
)

// datagramWire sends each frame as a datagram, from and to the guest's memory without a copy.
type datagramWire struct {
	counts *socketCounters
	lasts  lasting

	pushing
	sendBuf []byte // for a frame in more buffers than a call takes; allocated by the first one

	in      vecio.IO
	inVec   [][]byte
	over    [1]byte // is written if a datagram is longer than the room
	recvBuf []byte  // as sendBuf
}

// send implements wire.
func (d *datagramWire) send(ctx context.Context, fd int, frames []frame) (dropped int, err error) {
	d.until = time.Time{}
	drop := func(n int) {
		dropped += markDropped(frames[:n])
		frames = frames[n:]
	}
	for len(frames) > 0 {
		if !fits(size(frames[0].bufs)) {
			d.counts.txBad.Add(1)
			drop(1)
			continue
		}
		_, err := d.out.Write(fd, d.vectors(&frames[0]), 0)
		switch {
		case err == nil:
			frames = frames[1:]
		case errors.Is(err, unix.EAGAIN):
			if !d.room(ctx, fd) {
				d.counts.txFull.Add(uint64(len(frames)))
				drop(len(frames))
				return dropped, nil
			}
		case d.lasts != forever && ended(err):
			d.counts.txNoPeer.Add(uint64(len(frames)))
			drop(len(frames))
			return dropped, peerError(err)
		case errors.Is(err, unix.ECONNREFUSED): // the answer to an earlier one; this one was not sent
			d.counts.txNoPeer.Add(1)
			drop(1)
		default: // too long for the protocol, no route, no memory: this frame's
			d.counts.txBad.Add(1)
			drop(1)
		}
	}
	if d.until.IsZero() {
		d.full = false
	}
	return dropped, nil
}

// ended tells whether err says that a peer has gone.
func ended(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) ||
		errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.EPERM)
}

// vectors is what to send f from.
func (d *datagramWire) vectors(f *frame) [][]byte {
	if len(f.bufs) <= vecio.MaxBuffers {
		return f.bufs
	}
	if d.sendBuf == nil {
		d.sendBuf = make([]byte, maxSocketFrame)
	}
	d.vec = append(d.vec[:0], d.sendBuf[:gather(d.sendBuf, f.bufs, 0)])
	return d.vec
}

// receive implements wire.
func (d *datagramWire) receive(fd int, frames []frame) (n int, err error) {
	for drops := 0; n < len(frames) && drops < datagramDrops; {
		got, err := d.read(fd, &frames[n])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return n, nil
		case d.lasts == byBoth && (err != nil || got == 0):
			if n > 0 { // it comes back with the next call
				return n, nil
			}
			if err != nil {
				return 0, peerError(err)
			}
			return 0, errHungUp
		case err != nil: // of a datagram that was sent
			drops++
		case got < minFrame:
			d.counts.rxShort.Add(1)
			drops++
		case got > size(frames[n].bufs):
			d.counts.rxLong.Add(1)
			drops++
		default:
			frames[n].hdr, frames[n].n = header{}, got
			n++
		}
	}
	return n, nil
}

// read reads one datagram to the room of f. got is more than the room if it was cut.
func (d *datagramWire) read(fd int, f *frame) (got int, err error) {
	if len(f.bufs) < vecio.MaxBuffers {
		d.inVec = append(append(d.inVec[:0], f.bufs...), d.over[:])
		return d.in.Read(fd, d.inVec)
	}
	if d.recvBuf == nil {
		d.recvBuf = make([]byte, maxSocketFrame+1)
	}
	d.inVec = append(d.inVec[:0], d.recvBuf)
	if got, err = d.in.Read(fd, d.inVec); err == nil && got <= size(f.bufs) {
		scatter(f.bufs, d.recvBuf[:got])
	}
	return got, err
}

// buffered implements wire.
func (d *datagramWire) buffered() bool { return false }

// unfinished implements wire: a datagram is sent whole.
func (d *datagramWire) unfinished() bool { return false }
func (d *datagramWire) finish(int) error { return nil }
