package main

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// FuzzRequest parses any bytes in any layout and carries out what it accepts on a small file, beside a model of the disk
// in memory. cuts are the lengths of the device-readable buffers, rooms of the device-writable ones (each times 61, so that
// few bytes make both whole and broken sectors).
func FuzzRequest(f *testing.F) {
	one := []byte{1}
	f.Add(header(virtio.BlkTIn, 3), []byte{}, []byte{8, 9}, false)
	f.Add(slices.Concat(header(virtio.BlkTOut, 15), pattern(1, 512)), []byte{16, 200}, one, false)
	f.Add(slices.Concat(header(virtio.BlkTOut, 1<<62), pattern(1, 512)), []byte{1, 1}, one, false)
	f.Add(header(virtio.BlkTFlush, 0), one, one, true)
	f.Add(header(virtio.BlkTGetID, 0), []byte{3, 4}, one, false)
	f.Add(slices.Concat(header(virtio.BlkTDiscard, 0), segment(2, 3, 0), segment(15, 1, 0)), []byte{17, 20}, one, false)
	f.Add(slices.Concat(header(virtio.BlkTWriteZeroes, 0), segment(4, 4, 1)), []byte{}, one, false)
	f.Add(header(virtio.BlkTOut, 0)[:9], []byte{}, []byte{}, true)

	const sectors, size = 16, 16 * 512
	f.Fuzz(func(t *testing.T, payload, cuts, rooms []byte, readOnly bool) {
		if len(payload) > 1<<14 || len(rooms) > 64 {
			return
		}
		l := &rules{sectors: sectors, readOnly: readOnly, discard: true, zeroes: true}
		readable, writable := layOut(slices.Clone(payload), cuts), make([][]byte, 0, len(rooms))
		for _, n := range rooms {
			writable = append(writable, bytes.Repeat([]byte{0xaa}, int(n)*61%1025))
		}
		var r request
		accepted := r.parse(readable, writable, l)
		if !bytes.Equal(slices.Concat(readable...), payload) {
			t.Fatal("the device wrote to device-readable memory")
		}
		all := slices.Concat(writable...)
		if len(r.status) > 1 || (len(r.status) == 1) != (len(all) > 0) {
			t.Fatalf("%d writable bytes, status of %d", len(all), len(r.status))
		}
		if !accepted {
			if r.copied > virtio.BlkIDSize || int(r.copied) > max(len(all)-1, 0) || !slices.Contains([]byte{virtio.BlkSOK, virtio.BlkSIOErr, virtio.BlkSUnsupp}, r.code) {
				t.Fatalf("answer %d, %d bytes", r.code, r.copied)
			}
			return
		}
		if len(r.status) == 0 || (readOnly && r.op != opRead && r.op != opFlush) {
			t.Fatalf("%v was accepted", r.op)
		}
		checkOnDisk(t, &r, size)
		if all := slices.Concat(writable...); all[len(all)-1] != 0xaa {
			t.Fatal("the engine wrote to the status byte")
		}
	})
}

// layOut cuts b into buffers of the given lengths; the last takes the rest.
func layOut(b, cuts []byte) (out [][]byte) {
	for _, n := range cuts {
		k := min(int(n), len(b))
		out, b = append(out, b[:k:k]), b[k:]
	}
	return append(out, b)
}

// checkOnDisk carries r out on a file of size bytes and on a copy in memory, and compares.
func checkOnDisk(t *testing.T, r *request, size int) {
	t.Helper()
	model := pattern(7, size)
	path := imageFile(t, 0)
	if err := os.WriteFile(path, model, 0o600); err != nil {
		t.Fatal(err)
	}
	b, _ := newDisk(t, path, defaultSettings())
	finished := 0
	newInline(b.img, &b.cache.through, func(*request, bool) { finished++ }).submit([]*request{r})
	if finished != 1 || r.err != nil {
		t.Fatalf("%v %+v: finished %d times, %v", r.op, r.extents, finished, r.err)
	}
	data := slices.Concat(r.data...)
	for _, e := range r.extents {
		if e.off < 0 || e.size < 0 || e.end() > int64(size) {
			t.Fatalf("%v: extent %+v is not inside the disk", r.op, e)
		}
		part := model[e.off:e.end()]
		switch r.op {
		case opRead:
			if !bytes.Equal(data, part) || r.copied != e.size {
				t.Fatalf("read %+v: wrong data, %d bytes", e, r.copied)
			}
		case opWrite:
			copy(part, data)
			if int64(len(data)) != e.size {
				t.Fatalf("write %+v: %d bytes of data", e, len(data))
			}
		case opDiscard, opZero:
			clear(part)
		case opFlush, opNone:
		}
	}
	if !bytes.Equal(contents(t, path), model) {
		t.Fatalf("%v %+v: the file is not as the model", r.op, r.extents)
	}
}
