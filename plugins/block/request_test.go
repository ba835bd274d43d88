package main

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

func header(kind uint32, sector uint64) []byte {
	h := make([]byte, virtio.BlkHeaderSize)
	binary.LittleEndian.PutUint32(h, kind)
	binary.LittleEndian.PutUint64(h[8:], sector)
	return h
}

// pieces cuts b into parts of n bytes.
func pieces(b []byte, n int) (out [][]byte) {
	for len(b) > 0 {
		k := min(n, len(b))
		out = append(out, b[:k:k])
		b = b[k:]
	}
	return out
}

func testRules() *rules {
	l := &rules{sectors: 100, discard: true, zeroes: true}
	copy(l.serial[:], "serial-0123456789abcdef")
	return l
}

func TestParseAcceptsAnyLayout(t *testing.T) {
	t.Parallel()
	data := pattern(1, 1024)
	for _, n := range []int{1, 3, 15, 16, 17, 512, 1 << 20} {
		var r request
		readable := pieces(slices.Concat(header(virtio.BlkTOut, 98), data), n)
		status := []byte{0xaa}
		if !r.parse(readable, [][]byte{status}, testRules()) {
			t.Fatalf("pieces of %d: a good write was refused with %d", n, r.code)
		}
		if got := slices.Concat(r.data...); !bytes.Equal(got, data) || r.op != opWrite || r.extents[0] != (extent{off: 98 * 512, size: 1024}) {
			t.Errorf("pieces of %d: %v, extent %+v, data of %d bytes", n, r.op, r.extents, len(got))
		}

		room := make([]byte, 1025)
		if !r.parse(pieces(header(virtio.BlkTIn, 0), n), pieces(room, n), testRules()) {
			t.Fatalf("pieces of %d: a good read was refused with %d", n, r.code)
		}
		if k := scatter(r.data, 0, data); k != 1024 || !bytes.Equal(room[:1024], data) || r.op != opRead {
			t.Errorf("pieces of %d: the data are not the first 1024 writable bytes (%d)", n, k)
		}
		r.status[0] = 7
		if room[1024] != 7 {
			t.Errorf("pieces of %d: the status is not the last writable byte", n)
		}

		segments := slices.Concat(segment(1, 2, 0), segment(50, 50, 0))
		if !r.parse(pieces(slices.Concat(header(virtio.BlkTDiscard, 0), segments), n), [][]byte{status}, testRules()) {
			t.Fatalf("pieces of %d: a good discard was refused with %d", n, r.code)
		}
		if want := []extent{{off: 512, size: 1024}, {off: 25600, size: 25600}}; !slices.Equal(r.extents, want) {
			t.Errorf("pieces of %d: segments %+v, want %+v", n, r.extents, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	readOnly := testRules()
	readOnly.readOnly = true
	plain := testRules()
	plain.discard, plain.zeroes = false, false
	const none = 0xaa // the status byte stays as it was
	for _, c := range []struct {
		name     string
		readable []byte
		writable int
		rules    *rules
		code     byte
	}{
		{"no status byte", header(virtio.BlkTFlush, 0), 0, nil, none},
		{"header too short", header(virtio.BlkTFlush, 0)[:15], 1, nil, virtio.BlkSIOErr},
		{"no header", nil, 513, nil, virtio.BlkSIOErr},
		{"unknown type", header(99, 0), 1, nil, virtio.BlkSUnsupp},
		{"SCSI command", header(2, 0), 1, nil, virtio.BlkSUnsupp},
		{"read of a part of a sector", header(virtio.BlkTIn, 0), 512, nil, virtio.BlkSIOErr},
		{"write of a part of a sector", slices.Concat(header(virtio.BlkTOut, 0), make([]byte, 511)), 1, nil, virtio.BlkSIOErr},
		{"read past the end", header(virtio.BlkTIn, 99), 1025, nil, virtio.BlkSIOErr},
		{"read at the end", header(virtio.BlkTIn, 100), 513, nil, virtio.BlkSIOErr},
		{"read far past the end", header(virtio.BlkTIn, 1<<63), 513, nil, virtio.BlkSIOErr},
		{"read whose end overflows", header(virtio.BlkTIn, 1<<64-1), 1025, nil, virtio.BlkSIOErr},
		{"read whose byte offset overflows", header(virtio.BlkTIn, 1<<55), 513, nil, virtio.BlkSIOErr},
		{"empty read past the end", header(virtio.BlkTIn, 101), 1, nil, virtio.BlkSIOErr},
		{"write past the end", slices.Concat(header(virtio.BlkTOut, 100), make([]byte, 512)), 1, nil, virtio.BlkSIOErr},
		{"write, read-only", slices.Concat(header(virtio.BlkTOut, 0), make([]byte, 512)), 1, readOnly, virtio.BlkSIOErr},
		{"discard, read-only", slices.Concat(header(virtio.BlkTDiscard, 0), segment(0, 1, 0)), 1, readOnly, virtio.BlkSIOErr},
		{"discard, not negotiated", slices.Concat(header(virtio.BlkTDiscard, 0), segment(0, 1, 0)), 1, plain, virtio.BlkSUnsupp},
		{"zeroes, not negotiated", slices.Concat(header(virtio.BlkTWriteZeroes, 0), segment(0, 1, 0)), 1, plain, virtio.BlkSUnsupp},
		{"discard without a range", header(virtio.BlkTDiscard, 0), 1, nil, virtio.BlkSIOErr},
		{"discard, part of a range", slices.Concat(header(virtio.BlkTDiscard, 0), segment(0, 1, 0)[:15]), 1, nil, virtio.BlkSIOErr},
		{"discard, too many ranges", slices.Concat(header(virtio.BlkTDiscard, 0), make([]byte, 16*(maxDiscardSegments+1))), 1, nil, virtio.BlkSIOErr},
		{"discard, unmap flag", slices.Concat(header(virtio.BlkTDiscard, 0), segment(0, 1, 1)), 1, nil, virtio.BlkSUnsupp},
		{"zeroes, unknown flag", slices.Concat(header(virtio.BlkTWriteZeroes, 0), segment(0, 1, 3)), 1, nil, virtio.BlkSUnsupp},
		{"zeroes, two ranges", slices.Concat(header(virtio.BlkTWriteZeroes, 0), make([]byte, 32)), 1, nil, virtio.BlkSIOErr},
		{"discard, second range past the end", slices.Concat(header(virtio.BlkTDiscard, 0), segment(0, 1, 0), segment(99, 2, 0)), 1, nil, virtio.BlkSIOErr},
		{"discard, range that overflows", slices.Concat(header(virtio.BlkTDiscard, 0), segment(1<<64-1, 2, 0)), 1, nil, virtio.BlkSIOErr},
		{"zeroes, more than the limit", slices.Concat(header(virtio.BlkTWriteZeroes, 0), segment(0, maxZeroSectors+1, 0)), 1, bigRules(), virtio.BlkSIOErr},
		{"discard, more than the limit", slices.Concat(header(virtio.BlkTDiscard, 0), segment(0, maxDiscardSectors+1, 0)), 1, bigRules(), virtio.BlkSIOErr},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := c.rules
			if l == nil {
				l = testRules()
			}
			var r request
			room := bytes.Repeat([]byte{none}, c.writable)
			if r.parse([][]byte{c.readable}, [][]byte{room}, l) {
				t.Fatalf("accepted: %v %+v", r.op, r.extents)
			}
			if c.code == none {
				if len(r.status) != 0 {
					t.Error("a status was found where there is none")
				}
				return
			}
			if r.code != c.code || r.copied != 0 {
				t.Errorf("answer %d with %d bytes, want %d", r.code, r.copied, c.code)
			}
		})
	}
}

func bigRules() *rules {
	l := testRules()
	l.sectors = 1 << 40
	return l
}

func TestParseAcceptsTheLastSector(t *testing.T) {
	t.Parallel()
	var r request
	for _, l := range []*rules{testRules(), {sectors: 1<<54 - 1}} {
		if !r.parse([][]byte{header(virtio.BlkTIn, l.sectors-1)}, [][]byte{make([]byte, 513)}, l) {
			t.Errorf("%d sectors: the last is refused", l.sectors)
		} else if e := r.extents[0]; e.off < 0 || e.end() < e.off {
			t.Errorf("%d sectors: extent %+v overflows", l.sectors, e)
		}
	}
}

func TestParseAnswersGetID(t *testing.T) {
	t.Parallel()
	for _, room := range []int{0, 1, 19, 20, 21, 512} {
		var r request
		buf := bytes.Repeat([]byte{0xaa}, room+1)
		if r.parse([][]byte{header(virtio.BlkTGetID, 0)}, pieces(buf, 7), testRules()) || r.code != virtio.BlkSOK {
			t.Fatalf("room %d: code %d", room, r.code)
		}
		want := "serial-0123456789abcdef"[:min(room, 20)]
		if got := string(buf[:len(want)]); got != want || r.copied != int64(len(want)) || buf[len(want)] != 0xaa {
			t.Errorf("room %d: %q, %d bytes; want %q", room, got, r.copied, want)
		}
	}
}
