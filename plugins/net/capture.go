package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
)

// captureChunk is how many bytes of frames are recorded, and go on, at once; more only if one frame is longer. Arbitrary: a batch of
// packets of usual size.
const captureChunk = 256 << 10

// capture is a back-end around another one that records all frames in a file, in pcapng (capture_format.go).
//
// What stands in the file is what went out or came in: a frame's bytes are taken from the guest's memory once, to the record, and go
// on from there; a frame for the guest is recorded before the guest has it. So a guest that changes a buffer meanwhile deceives
// nobody, for the price of a copy. What the driver sends is recorded before the back-end has it, dropped or not: a request always
// stands before its answer. Frames with offloads are as they are: longer than the MTU, with partial checksums.
//
// The file is written before the frames go on, so that a capture is complete up to a crash; a slow disk slows down the traffic. When
// it cannot be written, the capture ends, and the traffic goes on.
//
// The launcher keeps the open file for the life of the VM, and its position says how much of it is good: an instance sets it after
// each write. The first instance finds it at 0 and empties the file, one that takes over goes on where it stands. A position that
// the writing itself moved would also count a record that the former instance's death cut short.
type capture struct {
	backend
	env  *sdk.Env
	file sdk.File
	fd   int
	// ports are made once: a port is always the same one.
	ports []*capturePort

	mu      sync.Mutex
	checked bool // what stands behind the position was cut off

	ended                  atomic.Bool
	frames, bytes, dropped atomic.Uint64
}

// newCapture records the frames of b in f, which it takes over. On error b and f stay the caller's.
func newCapture(b backend, f sdk.File, env *sdk.Env) (backend, error) {
	c := &capture{backend: b, env: env, file: f, fd: int(f.Fd())}
	for i := range b.Offer().Pairs {
		c.ports = append(c.ports, &capturePort{c: c, port: b.Port(i)})
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK} // all of it, for as long as the launcher has the file open
	if err := unix.FcntlFlock(uintptr(c.fd), unix.F_OFD_SETLK, &lock); errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, sdk.SettingError("capture", "%s: another device captures there: choose another file", f.Path)
	}
	at, err := unix.Seek(c.fd, 0, io.SeekCurrent)
	if err == nil && at == 0 {
		err = c.record(captureHeader(nil, env.Name))
	}
	if err != nil {
		return nil, sdk.SettingError("capture", "%s: %w", f.Path, err)
	}
	return c, nil
}

// Port implements backend.
func (c *capture) Port(i int) port { return c.ports[i] }

// Statistics implements backend.
func (c *capture) Statistics() map[string]uint64 {
	m := map[string]uint64{}
	maps.Copy(m, c.backend.Statistics())
	m["capture_frames"], m["capture_bytes"], m["capture_dropped"] = c.frames.Load(), c.bytes.Load(), c.dropped.Load()
	return m
}

// Close implements backend. Idempotent if the back-end is.
func (c *capture) Close() error {
	err := c.backend.Close()
	if e := c.file.Close(); !errors.Is(e, os.ErrClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// add records n frames, or ends the capture.
func (c *capture) add(records []byte, n int) {
	if n == 0 {
		return
	}
	if c.ended.Load() {
		c.dropped.Add(uint64(n)) //nolint:gosec // G115: a number of frames
		return
	}
	if err := c.record(records); err != nil {
		c.dropped.Add(uint64(n)) //nolint:gosec // G115: a number of frames
		if !c.ended.Swap(true) {
			c.env.Fail(fmt.Errorf("capture to %s: %w: the capture has ended, the traffic goes on", c.file.Path, err), false)
		}
		return
	}
	c.frames.Add(uint64(n)) //nolint:gosec // G115: a number of frames
	c.bytes.Add(uint64(len(records)))
}

// record appends p and then moves the position. What was written halfway is cut off.
func (c *capture) record(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, err := unix.Seek(c.fd, 0, io.SeekCurrent)
	if err == nil && !c.checked {
		err = unix.Ftruncate(c.fd, at)
		c.checked = err == nil
	}
	if err != nil {
		return err
	}
	for done := 0; done < len(p); {
		n, err := unix.Pwrite(c.fd, p[done:], at+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			err = io.ErrShortWrite
			fallthrough
		case err != nil:
			_ = unix.Ftruncate(c.fd, at) // where it fails the reader finds a record that is cut short
			return err
		}
		done += n
	}
	_, err = unix.Seek(c.fd, at+int64(len(p)), io.SeekStart)
	return err
}

// capturePort is a port around another one.
type capturePort struct {
	port
	c *capture

	out, in copies
}

// copies are frames of our own. out: their bytes are in records; in: in room.
type copies struct {
	records []byte
	room    []byte
	frames  []frame
	bufs    [][1][]byte
}

// take makes the next n frames ready, empty.
func (p *copies) take(n int) {
	for len(p.frames) < n {
		p.frames = append(p.frames, frame{})
		p.bufs = append(p.bufs, [1][]byte{})
	}
}

// set makes b the bytes of frame i.
func (p *copies) set(i int, b []byte) {
	p.bufs[i][0] = b
	p.frames[i].bufs = p.bufs[i][:]
}

// Send implements port.
func (p *capturePort) Send(ctx context.Context, frames []frame) (dropped int, err error) {
	if p.c.ended.Load() {
		p.c.add(nil, len(frames))
		return p.port.Send(ctx, frames)
	}
	for len(frames) > 0 && err == nil {
		var k, d int
		k = p.copyOut(frames)
		p.c.add(p.out.records, k)
		d, err = p.port.Send(ctx, p.out.frames[:k])
		dropped += d
		for i := range k {
			frames[i].dropped = p.out.frames[i].dropped
		}
		frames = frames[k:]
	}
	return dropped + markDropped(frames), err
}

// copyOut records the first frames, and makes p.out.frames of the records' bytes.
func (p *capturePort) copyOut(frames []frame) (n int) {
	o := &p.out
	o.take(len(frames))
	need := 0
	for ; n < len(frames); n++ {
		k := recordSize(size(frames[n].bufs))
		if n > 0 && need+k > captureChunk {
			break
		}
		need += k
	}
	if cap(o.records) < need { // the bytes must not move any more
		o.records = make([]byte, 0, max(need, captureChunk))
	}
	o.records = o.records[:0]
	now := time.Now()
	for i := range n {
		var data []byte
		o.records, data = appendRecord(o.records, now, outbound, frames[i].bufs)
		o.set(i, data)
		o.frames[i].hdr, o.frames[i].n, o.frames[i].dropped = frames[i].hdr, len(data), false
	}
	return n
}

// Receive implements port.
func (p *capturePort) Receive(frames []frame) (int, error) {
	if p.c.ended.Load() {
		n, err := p.port.Receive(frames)
		p.c.add(nil, n)
		return n, err
	}
	in := &p.in
	n, err := p.port.Receive(in.frames[:p.makeRoom(frames)])
	if n == 0 {
		return 0, err
	}
	in.records = in.records[:0]
	now := time.Now()
	for i := range n {
		f := &in.frames[i]
		data := f.bufs[0][:f.n]
		in.set(i, data)
		in.records, _ = appendRecord(in.records, now, inbound, in.bufs[i][:])
		scatter(frames[i].bufs, data)
		frames[i].hdr, frames[i].n = f.hdr, f.n
	}
	p.c.add(in.records, n)
	return n, err
}

// makeRoom gives the first frames room of our own, as much as theirs is, and returns how many.
func (p *capturePort) makeRoom(frames []frame) (n int) {
	in := &p.in
	in.take(len(frames))
	if in.room == nil {
		in.room = make([]byte, captureChunk)
	}
	room := in.room
	for ; n < len(frames); n++ {
		k := min(size(frames[n].bufs), len(in.room)) // no frame is longer
		if k > len(room) {
			break
		}
		in.set(n, room[:k])
		room = room[k:]
	}
	return n
}
