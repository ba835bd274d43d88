package main

import (
	"encoding/binary"

	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// op is what the engine does for a request.
type op uint8

const (
	opNone op = iota
	opRead
	opWrite
	opFlush
	opDiscard
	opZero
)

// String names the operation as messages to the user do.
func (o op) String() string {
	switch o {
	case opRead:
		return "read"
	case opWrite:
		return "write"
	case opFlush:
		return "flush"
	case opDiscard:
		return "discard"
	case opZero:
		return "write zeroes"
	case opNone:
	}
	return "nothing"
}

// Limits of one DISCARD or WRITE_ZEROES request, told in the configuration space. They bound how long one request can
// keep its queue: zeroes may have to be written, and Linux sends them one segment a request.
const (
	maxDiscardSegments = 32
	maxDiscardSectors  = 1 << 21 // 1 GiB a segment
	maxZeroSegments    = 1
	maxZeroSectors     = 1 << 17 // 64 MiB
)

// extent is a range of the image, in bytes. It lies inside the disk.
type extent struct {
	off, size int64
	// unmap: the driver allows WRITE_ZEROES to deallocate.
	unmap bool
}

// end is the first byte after e.
func (e extent) end() int64 { return e.off + e.size }

// request is one request of the driver. It is reused: its slices keep their capacity.
type request struct {
	// ring is where chain came from and is answered.
	ring  completer
	chain *virtq.Chain
	op    op
	// data aliases guest memory: where opRead puts bytes and opWrite finds them, all of extents[0].
	data [][]byte
	// extents is one for opRead and opWrite, any number for opDiscard and opZero.
	extents []extent
	// status aliases the last device-writable byte; empty if the driver gave none.
	status []byte

	// code is what goes to status, valid when the request needs no engine or is finished.
	code byte
	// copied is how many bytes of data were written for the driver to read.
	copied int64
	// err is why the engine failed; the code is then VIRTIO_BLK_S_IOERR.
	err error
}

// rules are what requests are checked against: constant between two resets, but for the capacity.
type rules struct {
	// sectors is the capacity, in sectors of 512 bytes.
	sectors  uint64
	readOnly bool
	// discard and zeroes: the driver negotiated these requests.
	discard, zeroes bool
	serial          [virtio.BlkIDSize]byte
}

// parse fills r from a chain's device-readable and device-writable buffers (5.2.6), with no assumption about how the
// driver spread them over descriptors (2.7.4.1). True: r is for the engine. False: r.code is the answer already.
// Each byte of guest memory is read once. Allocates nothing once r's slices have grown.
func (r *request) parse(readable, writable [][]byte, l *rules) bool {
	r.op, r.code, r.copied, r.err = opNone, virtio.BlkSIOErr, 0, nil
	r.data, r.extents, r.status = r.data[:0], r.extents[:0], nil

	room := total(writable) - 1
	if room < 0 {
		return false
	}
	last := len(writable) - 1
	for len(writable[last]) == 0 {
		last--
	}
	r.status = writable[last][len(writable[last])-1:]

	var header [virtio.BlkHeaderSize]byte
	if gather(header[:], readable, 0) < len(header) {
		return false
	}
	kind, sector := binary.LittleEndian.Uint32(header[0:]), binary.LittleEndian.Uint64(header[8:])
	payload := total(readable) - virtio.BlkHeaderSize
	switch kind {
	case virtio.BlkTIn:
		r.data = window(r.data, writable, 0, room)
		return r.transfer(opRead, sector, room, l)
	case virtio.BlkTOut:
		if l.readOnly {
			return false
		}
		r.data = window(r.data, readable, virtio.BlkHeaderSize, payload)
		return r.transfer(opWrite, sector, payload, l)
	case virtio.BlkTFlush:
		r.op = opFlush
		return true
	case virtio.BlkTGetID:
		r.data = window(r.data, writable, 0, min(room, virtio.BlkIDSize))
		r.copied, r.code = int64(scatter(r.data, 0, l.serial[:])), virtio.BlkSOK
		return false
	case virtio.BlkTDiscard:
		if l.discard {
			return r.ranges(opDiscard, readable, payload, maxDiscardSegments, maxDiscardSectors, l)
		}
	case virtio.BlkTWriteZeroes:
		if l.zeroes {
			return r.ranges(opZero, readable, payload, maxZeroSegments, maxZeroSectors, l)
		}
	}
	r.code = virtio.BlkSUnsupp
	return false
}

// transfer checks a read or write of size bytes at sector. Nothing to transfer is a success.
func (r *request) transfer(o op, sector uint64, size int64, l *rules) bool {
	if size%virtio.SectorSize != 0 {
		return false
	}
	e, ok := l.extent(sector, uint64(size)/virtio.SectorSize) //nolint:gosec // G115: a sum of lengths
	if !ok {
		return false
	}
	if size == 0 {
		r.code = virtio.BlkSOK
		return false
	}
	r.op, r.extents = o, append(r.extents, e)
	return true
}

// ranges reads and checks all segments of a DISCARD or WRITE_ZEROES request before any is carried out.
func (r *request) ranges(o op, readable [][]byte, payload, maxSegments int64, maxSectors uint32, l *rules) bool {
	if l.readOnly || payload == 0 || payload%virtio.BlkRangeSize != 0 || payload/virtio.BlkRangeSize > maxSegments {
		return false
	}
	var seg [virtio.BlkRangeSize]byte
	for at := int64(0); at < payload; at += virtio.BlkRangeSize {
		gather(seg[:], readable, virtio.BlkHeaderSize+at)
		sector, n := binary.LittleEndian.Uint64(seg[0:]), binary.LittleEndian.Uint32(seg[8:])
		flags := binary.LittleEndian.Uint32(seg[12:])
		if flags&^virtio.BlkRangeFUnmap != 0 || (flags != 0 && o == opDiscard) { // 5.2.6.2
			r.code = virtio.BlkSUnsupp
			return false
		}
		e, ok := l.extent(sector, uint64(n))
		if !ok || n > maxSectors {
			return false
		}
		e.unmap = flags != 0
		r.extents = append(r.extents, e)
	}
	r.op = o
	return true
}

// extent turns sectors into bytes. False if they do not lie inside the disk.
func (l *rules) extent(sector, n uint64) (extent, bool) {
	if sector > l.sectors || n > l.sectors-sector {
		return extent{}, false
	}
	// An image's size is an int64 of bytes, so sectors within it fit.
	return extent{off: int64(sector) * virtio.SectorSize, size: int64(n) * virtio.SectorSize}, true //nolint:gosec // G115: see above
}

// total is the number of bytes in bufs. It cannot overflow: a chain holds at most 2^32 (2.7.5.2).
func total(bufs [][]byte) int64 {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// window appends to dst the n bytes of bufs after the first skip.
func window(dst, bufs [][]byte, skip, n int64) [][]byte {
	for _, b := range bufs {
		if n == 0 {
			break
		}
		if skip >= int64(len(b)) {
			skip -= int64(len(b))
			continue
		}
		b = b[skip:]
		skip = 0
		if int64(len(b)) > n {
			b = b[:n]
		}
		n -= int64(len(b))
		dst = append(dst, b)
	}
	return dst
}

// gather copies bytes of bufs, after the first skip, to dst and returns how many there were.
func gather(dst []byte, bufs [][]byte, skip int64) int {
	n := 0
	for _, b := range bufs {
		if skip >= int64(len(b)) {
			skip -= int64(len(b))
			continue
		}
		n += copy(dst[n:], b[skip:])
		skip = 0
		if n == len(dst) {
			break
		}
	}
	return n
}

// scatter copies src to bufs, after the first skip bytes, as far as there is room, and returns how many bytes it copied.
func scatter(bufs [][]byte, skip int64, src []byte) int {
	n := 0
	for _, b := range bufs {
		if skip >= int64(len(b)) {
			skip -= int64(len(b))
			continue
		}
		n += copy(b[skip:], src[n:])
		skip = 0
		if n == len(src) {
			break
		}
	}
	return n
}
