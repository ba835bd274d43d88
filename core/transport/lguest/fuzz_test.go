package lguest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// FuzzParsePage: no page makes the reader panic or read outside, each record is what stands at its offsets, and a page without
// problems is one that a Builder makes.
func FuzzParsePage(f *testing.F) {
	good := goldenBytes(f)
	f.Add(good, uint32(0x4010))
	f.Add(good[:0x30], uint32(0))
	f.Add(bytes.Repeat([]byte{1, 2, 1, 1, 7}, 820), uint32(100))
	f.Add(bytes.Repeat([]byte{0xff}, PageSize), uint32(0xffffffff))
	f.Add([]byte{}, uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, limit uint32) {
		end := uint64(limit) * PageSize
		holds := func(a guestmem.GPA, n uint64) bool { return n <= end && uint64(a) <= end-n }
		p := Parse(b, Surroundings{Page: goldenPage, Holds: holds})
		at := 0
		var rebuilt Builder
		for i := range p.Records {
			r := &p.Records[i]
			if r.Offset != at || r.Type == 0 || r.End() > min(len(b), PageSize) || r.ConfigOffset()+len(r.Config) != r.End() {
				t.Fatalf("record %d at %d, want %d: %+v", i, r.Offset, at, r)
			}
			if raw := r.append(nil); !bytes.Equal(raw, b[r.Offset:r.End()]) {
				t.Fatalf("record %d is %x, the page has %x", i, raw, b[r.Offset:r.End()])
			}
			at = r.End()
			if len(p.Problems) > 0 {
				continue
			}
			if _, err := rebuilt.Add(r.Descriptor); err != nil {
				t.Fatalf("no problem with record %d, but %v", i, err)
			}
			for k, ring := range r.Rings {
				if l := layoutOf(ring); !holds(l.Desc, l.Bytes()) {
					t.Errorf("no problem with ring %d of record %d, which is outside memory", k, i)
				}
			}
		}
		if p.End >= 0 && (p.End != at || b[p.End] != 0) {
			t.Errorf("the list ends at %d, said to be %d", at, p.End)
		}
		if len(p.Problems) > maxRingProblems+2 || p.End < 0 && len(p.Problems) == 0 {
			t.Errorf("end %d, %d problems", p.End, len(p.Problems))
		}
		for i, q := range p.Problems {
			if q.Text == "" || q.Offset < 0 || q.Offset > PageSize || i > 0 && q.Offset < p.Problems[i-1].Offset {
				t.Errorf("problem %+v", q)
			}
		}
	})
}

// FuzzRequests: no words make the decoder panic, and what it takes is made again, and no other length is.
func FuzzRequests(f *testing.F) {
	for _, size := range []int{4, 8} {
		f.Add(words(size, 0, 1, 2, 3), size == 8)
		f.Add(words(size, 2, 31), size == 8)
		f.Add(words(size, 4, 0x5000, 3), size == 8)
		f.Add(words(size, 1), size == 8)
		f.Add(words(size, 3), size == 8)
		f.Add(words(size, 4, 0, 3), size == 8)
	}
	f.Fuzz(func(t *testing.T, b []byte, wide bool) {
		size := 4
		if wide {
			size = 8
		}
		r, err := DecodeRequest(b, size)
		if err != nil {
			if r != (Request{}) {
				t.Errorf("%x: %+v beside %v", b, r, err)
			}
			return
		}
		back, err := r.Append(nil, size)
		if err != nil || !bytes.Equal(back, b) {
			t.Errorf("%x is %+v, which is %x, %v", b, r, back, err)
		}
		if err := r.Do(newHost()); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
		if _, err := DecodeRequest(append(b, 0), size); err == nil {
			t.Errorf("%x: taken with a byte more", b)
		}
	})
}

// FuzzBusNotify: whatever a guest writes to the page and its rings, whatever it notifies, the bus keeps the broker's rules (which
// fakeDevice checks), and what a driver may rely on after a reset holds. An operation is 4 bytes: what, where (2), value.
func FuzzBusNotify(f *testing.F) {
	op := func(what byte, where uint16, value byte) []byte {
		return append(binary.LittleEndian.AppendUint16([]byte{what}, where), value)
	}
	start := bytes.Join([][]byte{op(0, 0, 0), op(2, 0, 0), op(1, 0, 2), op(0, 0, 3), op(2, 0, 0), op(0, 0, 7), op(3, 0, 0)}, nil)
	f.Add(start)
	f.Add(append(bytes.Clone(start), start...))
	f.Add(append(bytes.Clone(start), op(2, 0, 0)...))
	f.Add(bytes.Join([][]byte{op(0, 1, 1), op(2, 1, 0), op(0, 1, 3), op(2, 1, 0), op(1, 4, 1), op(0, 1, 7), op(2, 1, 0)}, nil))
	f.Add(bytes.Join([][]byte{op(0, 0, 7), op(7, 0, 0), op(7, 0, 0), op(0, 0, 0), op(2, 0, 0), op(0, 0, 7), op(7, 0, 0)}, nil))
	f.Add(bytes.Join([][]byte{start, op(0, 0, 0x87), op(2, 0, 0), op(5, 3, 0xff), op(4, 0x123, 0), op(6, 1, 9)}, nil))
	f.Add(bytes.Join([][]byte{op(1, 0, 255), op(0, 0, 3), op(2, 0, 0), op(8, 0, 0), op(0, 1, 3), op(2, 1, 0)}, nil))
	f.Fuzz(func(t *testing.T, ops []byte) {
		offers := []virtio.Features{f0 | f9 | 1<<28 | virtio.FVersion1, 2}
		devices := []*fakeDevice{
			newFake(t, "a", virtio.IDBlock, offers[0], []byte{1, 2, 3, 4}, 8, 16),
			newFake(t, "b", virtio.IDConsole, offers[1], nil, 256),
		}
		r := newRig(t, 2, nil, devices...)
		records := []*Record{r.record(0), r.record(1)} // the guest may scribble over the page's own
		for ; len(ops) >= 4; ops = ops[4:] {
			where, value := binary.LittleEndian.Uint16(ops[1:]), ops[3]
			i := int(where & 1)
			rec, dev := records[i], devices[i]
			switch ops[0] % 9 {
			case 0:
				r.page[rec.StatusOffset()] = value
			case 1:
				if n := len(rec.Guest); n > 0 {
					r.page[rec.GuestOffset()+int(where>>1)%n] = value
				}
			case 2:
				r.bus.Notify(t.Context(), r.at+guestmem.GPA(rec.Offset)) //nolint:gosec // G115: small
				r.afterNotify(t, rec, dev, offers[i])
			case 3:
				r.bus.Notify(t.Context(), rec.Rings[int(where>>1)%len(rec.Rings)].Address())
			case 4:
				r.bus.Notify(t.Context(), guestmem.GPA(where)<<(value%49))
			case 5:
				r.page[int(where)%PageSize] = value
			case 6:
				region := r.mem.Regions()[1].Data
				region[PageSize+int(where)%(len(region)-PageSize)] = value
			case 7:
				r.notify(rec.Rings[int(where>>1)%len(rec.Rings)].Address())
			case 8:
				dev.mu.Lock()
				if value%2 == 0 {
					dev.fail["start 0 base=0"] = errBusFuzz
				} else {
					delete(dev.fail, "start 0 base=0")
				}
				dev.mu.Unlock()
				dev.changeConfig([]byte{value, value, value, value})
			}
		}
		if err := r.bus.Release(t.Context()); err != nil {
			t.Error(err)
		}
		for _, d := range devices {
			for i := range d.queues {
				if d.running(i) {
					t.Errorf("%s: queue %d runs after Release", d.name, i)
				}
			}
		}
	})
}

var errBusFuzz = bytes.ErrTooLarge // any will do

// afterNotify checks what holds after a notification of a record, whatever was before.
func (r *rig) afterNotify(t *testing.T, rec *Record, d *fakeDevice, offer virtio.Features) {
	t.Helper()
	status := virtio.Status(r.page[rec.StatusOffset()])
	d.mu.Lock()
	on := 0
	for _, q := range d.queues {
		if q.running {
			on++
		}
	}
	accepted := d.accepted
	d.mu.Unlock()
	if on != 0 && on != len(d.queues) {
		t.Errorf("%s: %d of %d queues run", d.name, on, len(d.queues))
	}
	if on > 0 && (status == 0 || status.Has(virtio.StatusFailed)) {
		t.Errorf("%s: runs with status %#x", d.name, status)
	}
	if on > 0 && accepted&^(offer&0xffff_ffff) != 0 {
		t.Errorf("%s: runs with features %v", d.name, accepted)
	}
	if status != 0 {
		return
	}
	if len(bytes.Trim(r.page[rec.GuestOffset():rec.ConfigOffset()], "\x00")) > 0 {
		t.Errorf("%s: accepted features after a reset", d.name)
	}
	for _, ring := range rec.Rings {
		l := layoutOf(ring)
		b, err := r.mem.Slice(l.Desc, int(l.Bytes())) //nolint:gosec // G115: small
		if err != nil || len(bytes.Trim(b, "\x00")) > 0 {
			t.Errorf("%s: ring at %v after a reset: %v", d.name, l.Desc, err)
		}
	}
}
