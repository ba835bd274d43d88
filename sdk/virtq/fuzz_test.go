package virtq_test

import (
	"encoding/binary"
	"io"
	"testing"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// FuzzPop lets the input be the whole guest: the ring's addresses and size, never narrowed to valid ones, and all of memory.
// Nothing may panic, run for ever, or leave memory; a chain that comes out obeys the rules.
func FuzzPop(f *testing.F) {
	f.Add(uint16(8), uint64(0x10000), uint64(0x10100), uint64(0x10200), uint8(3), uint16(0), []byte{})
	p := newPair(f, heapMemory(f, 2), 4, virtio.FVersion1)
	bs := p.buffers(f, 16, 32, 1)
	p.drv.Add(bs[:1], bs[1:])
	p.drv.Publish()
	d, a, u := p.drv.Areas()
	f.Add(uint16(4), uint64(d), uint64(a), uint64(u), uint8(0), uint16(0), p.mem.Regions()[0].Data[:2*guestmem.PageSize])
	f.Add(uint16(1), uint64(0x10000), uint64(0x10010), uint64(0x10018), uint8(7), uint16(0xffff), make([]byte, 64))
	f.Fuzz(func(t *testing.T, size uint16, desc, avail, used uint64, flags uint8, next uint16, image []byte) {
		mem := heapMemory(t, 2)
		for i := range mem.Regions() {
			image = image[copy(mem.Regions()[i].Data, image):]
		}
		c := virtq.Config{
			Size: size, DescArea: guestmem.GPA(desc), DriverArea: guestmem.GPA(avail), DeviceArea: guestmem.GPA(used),
			NextAvail: next, Features: virtio.FVersion1,
		}
		if flags&1 != 0 {
			c.Features |= virtio.FIndirectDesc
		}
		if flags&2 != 0 {
			c.Features |= virtio.FEventIdx
		}
		if flags&4 != 0 && size <= virtio.QueueSizeMax {
			c.Inflight = make([]byte, virtq.InflightBytes(size))
			c.Recover = flags&8 != 0
			copy(c.Inflight, image)
		}
		q, err := virtq.Activate(mem, c)
		if err != nil {
			return
		}
		drain(t, q, int(size))
	})
}

// drain serves what the ring has, at most four times around.
func drain(t *testing.T, q *virtq.Queue, size int) {
	t.Helper()
	for range 4 * size {
		c, ok, err := q.Pop()
		if err != nil {
			if _, _, again := q.Pop(); again == nil {
				t.Fatal("a broken queue is well again")
			}
			return
		}
		if !ok {
			break
		}
		if c.ReadableLen()+c.WritableLen() == 0 {
			t.Fatal("a chain without buffers")
		}
		if _, err := io.Copy(c.Writer(), c.Reader()); err != nil && err != io.ErrShortWrite { //nolint:errorlint // bare
			t.Fatal(err)
		}
		q.Complete(c)
		q.Flush()
		q.EnableKicks()
	}
	if s := q.State(); s.InFlight != 0 {
		t.Fatalf("state %+v", s)
	}
}

// FuzzChainIndirect feeds the bytes as an indirect table to a good ring.
func FuzzChainIndirect(f *testing.F) {
	f.Add([]byte{})
	good := make([]byte, 48)
	for i := range 3 {
		binary.LittleEndian.PutUint64(good[16*i:], 0x11000)
		binary.LittleEndian.PutUint32(good[16*i+8:], 64)
		good[16*i+12] = virtio.DescFNext
		good[16*i+14] = byte(i + 1)
	}
	good[44] = virtio.DescFWrite
	f.Add(good)
	f.Fuzz(func(t *testing.T, tbl []byte) {
		p := newPair(t, heapMemory(t, 8), 8, virtio.FVersion1|virtio.FIndirectDesc)
		b, err := p.arena.Buffer(max(1, min(len(tbl), 4096)))
		if err != nil {
			t.Fatal(err)
		}
		copy(p.arena.Bytes(b), tbl)
		head, _ := p.drv.Add(p.buffers(t, 1), nil)
		d := p.drv.Raw().Desc(head)
		binary.LittleEndian.PutUint64(d, uint64(b.Addr))
		binary.LittleEndian.PutUint32(d[8:], b.Len)
		d[12] = virtio.DescFIndirect
		p.drv.Publish()
		drain(t, p.dev, 8)
	})
}
