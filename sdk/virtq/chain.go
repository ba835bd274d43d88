package virtq

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// indirectMax is the most entries of an indirect table that are followed: an arbitrary bound above any queue size in use
// (Linux makes tables of up to seg_max+2 entries, also longer than the queue, against 2.7.5.3.1).
const indirectMax = 1024

// state is who has a chain.
type state uint8

const (
	free   state = iota // the driver, or nobody
	taken               // whoever popped it
	staged              // completed, not yet published
)

// Chain is one request of the driver: device-readable buffers, then device-writable ones (2.7.4.2). It belongs to its
// queue; whoever popped it may use it until Complete, one goroutine at a time.
type Chain struct {
	q                  *Queue
	head               uint16
	state              state  // under q.mu
	nth                uint64 // which one of those out of the available ring; 0: a former instance took it
	readable, writable [][]byte
	readLen, writeLen  uint32
	written            uint32
	reader             Reader
	writer             Writer
}

// Head is the index of the chain's first descriptor: unique among the chains in flight, below the queue's size.
func (c *Chain) Head() uint16 { return c.head }

// Readable returns the device-readable buffers, in order. They alias guest memory, which the driver may change at any
// time: read each byte once. Valid until Complete; not to be kept, changed or written through.
func (c *Chain) Readable() [][]byte { return c.readable }

// Writable returns the device-writable buffers, in order. Whoever writes through them tells Writer().Advance how much.
func (c *Chain) Writable() [][]byte { return c.writable }

// ReadableLen and WritableLen are the buffers' total lengths, in bytes.
func (c *Chain) ReadableLen() int { return int(c.readLen) }

// WritableLen is the total length of the device-writable buffers, in bytes.
func (c *Chain) WritableLen() int { return int(c.writeLen) }

// Reader reads the device-readable part. Always the same one; it goes on where it stopped.
func (c *Chain) Reader() *Reader { return &c.reader }

// Writer fills the device-writable part and counts what it wrote. Always the same one.
func (c *Chain) Writer() *Writer { return &c.writer }

// desc is a validated copy of one descriptor's bytes.
type desc struct {
	addr  guestmem.GPA
	len   uint32
	flags uint16
	next  uint16
}

func readDesc(b []byte) desc {
	lo, hi := binary.LittleEndian.Uint64(b[:8]), binary.LittleEndian.Uint64(b[8:16])
	return desc{guestmem.GPA(lo), uint32(hi), uint16(hi >> 32), uint16(hi >> 48)} //nolint:gosec // G115: fields of the word
}

// load copies the chain at c.head out of shared memory and validates it.
func (c *Chain) load() error {
	c.readable, c.writable = c.readable[:0], c.writable[:0]
	c.readLen, c.writeLen, c.written = 0, 0, 0
	q := c.q
	if section, err := c.walk(q.desc, c.head, int(q.size), false); err != nil {
		return q.driverError(c.head, section, err)
	}
	c.reader = Reader{bufs: c.readable, left: int(c.readLen)}
	c.writer = Writer{c: c, bufs: c.writable}
	return nil
}

// keptBuffers bounds the room that all chains of a queue keep for their lists of buffers, in entries of 24 bytes: arbitrary,
// 24 MiB. Otherwise a driver that makes each head of a long queue a long chain once would have it for ever.
const keptBuffers = 1 << 20

// release gives the chain back, and lets go of lists so long that all heads having such would be too much.
func (c *Chain) release() {
	c.state = free
	if (cap(c.readable)+cap(c.writable))*int(c.q.size) > keptBuffers {
		c.readable, c.writable, c.reader, c.writer = nil, nil, Reader{}, Writer{}
	}
}

// walk follows a chain through a table, at most limit entries. It returns the violated section with the error.
func (c *Chain) walk(table []byte, at uint16, limit int, inIndirect bool) (string, error) {
	entries := len(table) / virtio.DescSize
	for range limit {
		if int(at) >= entries {
			return "2.7.5", fmt.Errorf("%d: %w", at, ErrNext)
		}
		d := readDesc(table[int(at)*virtio.DescSize:])
		if d.flags&virtio.DescFIndirect != 0 {
			return c.walkIndirect(d, inIndirect)
		}
		if section, err := c.add(d); err != nil {
			return section, err
		}
		if d.flags&virtio.DescFNext == 0 {
			return "", nil
		}
		at = d.next
	}
	return "2.7.5.2", ErrLoop
}

func (c *Chain) walkIndirect(d desc, nested bool) (string, error) {
	const section = "2.7.5.3"
	switch {
	case !c.q.indirect:
		return section, fmt.Errorf("%w: VIRTIO_F_INDIRECT_DESC was not negotiated", ErrIndirect)
	case nested:
		return section, fmt.Errorf("%w: a table within a table", ErrIndirect)
	case d.flags&virtio.DescFNext != 0:
		return section, fmt.Errorf("%w: INDIRECT and NEXT together", ErrIndirect)
	case d.len == 0 || d.len%virtio.DescSize != 0 || d.len > virtio.QueueSizeMax*virtio.DescSize:
		return section, fmt.Errorf("%w: a table of %d bytes", ErrIndirect, d.len)
	}
	table, err := c.q.mem.Slice(d.addr, int(d.len))
	if err != nil {
		return section, fmt.Errorf("%w: table: %w", ErrRange, err)
	}
	return c.walk(table, 0, min(len(table)/virtio.DescSize, max(indirectMax, int(c.q.size))), true)
}

// add appends one buffer.
func (c *Chain) add(d desc) (string, error) {
	if d.len == 0 {
		return "2.7.4", ErrEmpty
	}
	if uint64(c.readLen)+uint64(c.writeLen)+uint64(d.len) > math.MaxUint32 {
		return "2.7.5.2", fmt.Errorf("%w: more than 2^32-1 bytes", ErrTooLong)
	}
	var err error
	if d.flags&virtio.DescFWrite != 0 {
		c.writable, err = c.q.mem.Append(c.writable, d.addr, d.len)
		c.writeLen += d.len
	} else {
		if len(c.writable) > 0 {
			return "2.7.4.2", ErrOrder
		}
		c.readable, err = c.q.mem.Append(c.readable, d.addr, d.len)
		c.readLen += d.len
	}
	if err != nil {
		return "2.7.5", fmt.Errorf("%w: %w", ErrRange, err)
	}
	return "", nil
}
