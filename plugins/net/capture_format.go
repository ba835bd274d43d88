package main

import (
	"encoding/binary"
	"time"
)

// The capture's format is pcapng (draft-ietf-opsawg-pcapng), little-endian: unlike pcap it tells a frame's direction. It is written by
// hand, for these three blocks are less code than a library would need to be told about them.

// direction is a frame's, as the guest's interface sees it: the first two bits of the option epb_flags.
type direction uint32

const (
	inbound  direction = 1 // to the guest
	outbound direction = 2 // from the guest
)

// Block types and sizes, in bytes.
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6

	blockOverhead = 12      // type and length before the body, the length again behind it
	packetHead    = 20      // interface, time, captured and original length
	packetOptions = 8 + 4   // epb_flags, end of options
	linkEthernet  = 1       // LINKTYPE_ETHERNET
	maxName       = 1 << 10 // of an interface: arbitrary, a device's is far shorter
)

// Options.
const (
	optEnd          = 0
	optInterface    = 2 // if_name
	optFlags        = 2 // epb_flags
	optUserApp      = 4 // shb_userappl
	optResolution   = 9 // if_tsresol
	nanosecondPower = 9 // 10^-9 s
)

var le = binary.LittleEndian

// captureHeader appends what a file begins with: a section with one interface, named as the device.
func captureHeader(b []byte, device string) []byte {
	b = appendBlock(b, blockSection, func(b []byte) []byte {
		b = le.AppendUint32(b, 0x1a2b3c4d) // tells the byte order
		b = le.AppendUint16(b, 1)          // version 1.0
		b = le.AppendUint16(b, 0)
		b = le.AppendUint64(b, 1<<64-1) // the section goes to the end of the file
		b = appendOption(b, optUserApp, []byte("virtplug"))
		return appendOption(b, optEnd, nil)
	})
	return appendBlock(b, blockInterface, func(b []byte) []byte {
		b = le.AppendUint16(b, linkEthernet)
		b = le.AppendUint16(b, 0)
		b = le.AppendUint32(b, 0) // no limit of a packet's captured length
		b = appendOption(b, optInterface, []byte(device[:min(len(device), maxName)]))
		b = appendOption(b, optResolution, []byte{nanosecondPower})
		return appendOption(b, optEnd, nil)
	})
}

// appendBlock appends a block with the body that fill appends, a multiple of 4 bytes.
func appendBlock(b []byte, kind uint32, fill func([]byte) []byte) []byte {
	start := len(b)
	b = le.AppendUint32(b, kind)
	b = le.AppendUint32(b, 0)
	b = fill(b)
	n := uint32(len(b) - start + 4) //nolint:gosec // G115: a few hundred bytes
	le.PutUint32(b[start+4:], n)
	return le.AppendUint32(b, n)
}

func appendOption(b []byte, code uint16, value []byte) []byte {
	b = le.AppendUint16(b, code)
	b = le.AppendUint16(b, uint16(len(value))) //nolint:gosec // G115: at most maxName
	b = append(b, value...)
	return append(b, make([]byte, padding(len(value)))...)
}

// padding is how many bytes n lacks to a multiple of 4.
func padding(n int) int { return -n & 3 }

// recordSize is the size of the record of a frame of n bytes.
func recordSize(n int) int {
	return blockOverhead + packetHead + n + padding(n) + packetOptions
}

// appendRecord appends the record of the frame in bufs. data is the frame's bytes in it.
func appendRecord(b []byte, at time.Time, d direction, bufs [][]byte) (_, data []byte) {
	n := size(bufs)
	total := uint32(recordSize(n)) //nolint:gosec // G115: a frame's
	length := uint32(n)            //nolint:gosec // G115: a frame's
	stamp := uint64(at.UnixNano())
	b = le.AppendUint32(b, blockPacket)
	b = le.AppendUint32(b, total)
	b = le.AppendUint32(b, 0) // the interface
	b = le.AppendUint32(b, uint32(stamp>>32))
	b = le.AppendUint32(b, uint32(stamp)) //nolint:gosec // G115: its lower half
	b = le.AppendUint32(b, length)
	b = le.AppendUint32(b, length)
	start := len(b)
	for _, p := range bufs {
		b = append(b, p...)
	}
	data = b[start : start+n : start+n]
	b = append(b, 0, 0, 0)[:len(b)+padding(n)]
	b = le.AppendUint16(b, optFlags)
	b = le.AppendUint16(b, 4)
	b = le.AppendUint32(b, uint32(d))
	b = le.AppendUint32(b, optEnd)
	return le.AppendUint32(b, total), data
}
