package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lengthSize is the length before each frame on a stream, in bytes.
	lengthSize = 4
	// socketReadSize is what one read takes from a stream, in bytes: several of the longest frames.
	socketReadSize = 256 << 10
	// socketBatch is how many frames one write takes: arbitrary, as many as fill the kernel's buffer with packets of usual size.
	socketBatch = 64
	// socketReads bounds the reads of one receive, so that a peer that sends only what is dropped does not keep it.
	socketReads = 4
)

// errFraming is a peer that sends something else than frames.
var errFraming = errors.New("the peer does not send frames as QEMU and passt do, each after its length")

// streamWire frames a byte stream: 32 bits length, big-endian, then the frame (QEMU's -netdev stream and -netdev socket, passt).
type streamWire struct {
	counts *socketCounters

	// writing guards what sends.
	writing sync.Mutex
	pushing
	heads [socketBatch][lengthSize]byte
	// tail is the rest of a frame whose beginning the peer got; begun: there is one.
	tail    []byte
	begun   atomic.Bool
	tailBuf []byte // allocated by the first such frame

	in   []byte // allocated by the first receive
	r, w int    // in[r:w] came and was not taken
}

// send implements wire.
func (t *streamWire) send(ctx context.Context, fd int, frames []frame) (dropped int, err error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.until = time.Time{}
	calm, err := t.finishTail(fd)
	for err == nil && calm && len(frames) > 0 {
		batch := frames[:min(len(frames), socketBatch)]
		var taken, unfit int
		taken, unfit, err = t.write(ctx, fd, batch)
		t.counts.txBad.Add(uint64(unfit)) //nolint:gosec // G115: a number of frames
		dropped += unfit
		calm = taken == len(batch)
		frames = frames[taken:]
	}
	if calm && err == nil && t.until.IsZero() {
		t.full = false
	}
	if err != nil {
		t.counts.txNoPeer.Add(uint64(len(frames)))
	} else {
		t.counts.txFull.Add(uint64(len(frames)))
	}
	return dropped + markDropped(frames), err
}

// unfinished implements wire.
func (t *streamWire) unfinished() bool { return t.begun.Load() }

// finish implements wire: the driver may have nothing more to send. A send under way does it itself.
func (t *streamWire) finish(fd int) error {
	if !t.writing.TryLock() {
		return nil
	}
	defer t.writing.Unlock()
	_, err := t.finishTail(fd)
	return err
}

// finishTail writes the rest of a frame that was begun in a former call; false: there is no room for it yet.
func (t *streamWire) finishTail(fd int) (done bool, err error) {
	for len(t.tail) > 0 {
		n, err := unix.Write(fd, t.tail)
		switch {
		case err == nil:
			t.tail = t.tail[n:]
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, peerError(err)
		}
	}
	t.begun.Store(false)
	return true, nil
}

// write writes frames, at most socketBatch. taken is how many are done with, the last of them perhaps with its rest in t.tail; unfit
// how many of these are no frames.
func (t *streamWire) write(ctx context.Context, fd int, frames []frame) (taken, unfit int, err error) {
	t.vec = t.vec[:0]
	total := 0
	for i := range frames {
		n := size(frames[i].bufs)
		if !fits(n) {
			frames[i].dropped = true
			unfit++
			continue
		}
		binary.BigEndian.PutUint32(t.heads[i][:], uint32(n)) //nolint:gosec // G115: at most maxSocketFrame
		t.vec = append(t.vec, t.heads[i][:])
		t.vec = append(t.vec, frames[i].bufs...)
		total += lengthSize + n
	}
	for sent := 0; sent < total; {
		n, err := t.out.Write(fd, t.vec, sent)
		switch {
		case err == nil:
			sent += n
		case !errors.Is(err, unix.EAGAIN):
			return 0, 0, peerError(err)
		case !t.room(ctx, fd):
			taken, unfit = t.keep(frames, sent)
			return taken, unfit, nil
		}
	}
	return len(frames), unfit, nil
}

// keep puts the rest of the frame that the first sent bytes end in to t.tail. It returns how many frames are done with, and how many of
// these are unfit.
func (t *streamWire) keep(frames []frame, sent int) (taken, unfit int) {
	for i := range frames {
		n := size(frames[i].bufs)
		switch {
		case !fits(n):
			unfit++
			continue
		case sent == 0:
			return i, unfit
		case sent >= lengthSize+n:
			sent -= lengthSize + n
			continue
		}
		if t.tailBuf == nil {
			t.tailBuf = make([]byte, lengthSize+maxSocketFrame)
		}
		k := 0
		if sent < lengthSize {
			k = copy(t.tailBuf, t.heads[i][sent:])
		}
		k += gather(t.tailBuf[k:], frames[i].bufs, max(0, sent-lengthSize))
		t.tail = t.tailBuf[:k]
		t.begun.Store(true)
		return i + 1, unfit
	}
	return len(frames), unfit
}

// receive implements wire: one read brings several frames, which are copied from there.
func (t *streamWire) receive(fd int, frames []frame) (n int, err error) {
	for reads := 0; n < len(frames); {
		body, err := t.next()
		if err == nil && body == nil {
			if reads++; reads > socketReads {
				break
			}
			if err = t.fill(fd); errors.Is(err, unix.EAGAIN) {
				break
			}
		}
		if err != nil {
			if n > 0 { // it comes back with the next call
				break
			}
			return 0, err
		}
		if body != nil && accept(&frames[n], body, t.counts) {
			n++
		}
	}
	return n, nil
}

// accept copies body to the room of f, if it is a frame that fits.
func accept(f *frame, body []byte, counts *socketCounters) bool {
	switch {
	case len(body) < minFrame:
		counts.rxShort.Add(1)
		return false
	case len(body) > size(f.bufs):
		counts.rxLong.Add(1)
		return false
	}
	scatter(f.bufs, body)
	f.hdr, f.n = header{}, len(body)
	return true
}

// next takes a whole frame from what came; nil: there is none.
func (t *streamWire) next() ([]byte, error) {
	got := t.in[t.r:t.w]
	if len(got) < lengthSize {
		return nil, nil
	}
	n := binary.BigEndian.Uint32(got)
	if n == 0 || n > maxSocketFrame { // shorter ones than a header are dropped, but they break nothing
		return nil, fmt.Errorf("%w: a frame of %d bytes: want 1 to %d", errFraming, n, maxSocketFrame)
	}
	end := lengthSize + int(n)
	if len(got) < end {
		return nil, nil
	}
	t.r += end
	return got[lengthSize:end], nil
}

// buffered implements wire. An end that was not told yet counts too.
func (t *streamWire) buffered() bool {
	got := t.in[t.r:t.w]
	if len(got) < lengthSize {
		return false
	}
	n := binary.BigEndian.Uint32(got)
	return n == 0 || n > maxSocketFrame || len(got) >= lengthSize+int(n)
}

// fill reads once. What is there is less than a frame, so that there is room.
func (t *streamWire) fill(fd int) error {
	if t.in == nil {
		t.in = make([]byte, socketReadSize)
	}
	if t.r > 0 && socketReadSize-t.r < socketReadSize/2 || t.r == t.w {
		t.w = copy(t.in, t.in[t.r:t.w])
		t.r = 0
	}
	for {
		n, err := unix.Read(fd, t.in[t.w:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return err
		case err != nil:
			return peerError(err)
		case n == 0 && t.w > t.r:
			return fmt.Errorf("the peer has closed the connection in the middle of a frame: %w", io.ErrUnexpectedEOF)
		case n == 0:
			return errHungUp
		}
		t.w += n
		return nil
	}
}
