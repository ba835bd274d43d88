package virtq_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

func TestAChainGoesRoundWithItsBytesInEveryRingFormat(t *testing.T) {
	t.Parallel()
	for name, f := range ringFeatures {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, memfdMemory(t, 64), 8, f)
			in, out := p.buffers(t, 3, 700, 5), p.buffers(t, 600, 200)
			for i, b := range in {
				for j := range p.arena.Bytes(b) {
					p.arena.Bytes(b)[j] = byte(i*31+j) & 0xff //nolint:gosec // G115: a pattern
				}
			}
			head, ok := p.drv.Add(in, out)
			if !ok || !p.drv.Publish() && f.Has(virtio.FEventIdx) {
				t.Fatalf("Add = %v, ok %v: want a published chain that wants a kick", head, ok)
			}
			c, ok, err := p.dev.Pop()
			if err != nil || !ok || c.Head() != head || c.ReadableLen() != 708 || c.WritableLen() != 800 {
				t.Fatalf("Pop = head %d, %d readable, %d writable, ok %v, error %v", c.Head(), c.ReadableLen(), c.WritableLen(), ok, err)
			}
			n, err := io.Copy(c.Writer(), c.Reader())
			if n != 708 || err != nil || c.Reader().Len() != 0 || c.Writer().Written() != 708 || c.Writer().Len() != 92 {
				t.Fatalf("copied %d, %v; writer has %d", n, err, c.Writer().Len())
			}
			if !p.dev.Complete(c) || !p.dev.Flush() {
				t.Fatal("the first used buffer must be told")
			}
			if p.dev.Complete(c) {
				t.Error("a chain was completed twice")
			}
			gotHead, written, ok := p.drv.Used()
			if gotHead != head || written != 708 || !ok {
				t.Errorf("Used = %d, %d, %v: want %d, 708", gotHead, written, ok, head)
			}
			var want, got []byte
			for _, b := range in {
				want = append(want, p.arena.Bytes(b)...)
			}
			for _, b := range out {
				got = append(got, p.arena.Bytes(b)...)
			}
			if !bytes.Equal(want, got[:708]) {
				t.Error("other bytes came back")
			}
			if s := p.dev.State(); s.InFlight != 0 || s.NextAvail != 1 || s.UsedIndex != 1 {
				t.Errorf("state %+v", s)
			}
		})
	}
}

func TestABufferMayCrossAdjacentRegions(t *testing.T) {
	t.Parallel()
	mem := heapMemory(t, 16)
	p := newPair(t, mem, 8, virtio.FVersion1)
	border := mem.Regions()[1].Start
	if _, ok := p.drv.Add([]driver.Buffer{{Addr: border - 10, Len: 30}}, nil); !ok {
		t.Fatal("Add failed")
	}
	p.drv.Publish()
	c, ok, err := p.dev.Pop()
	if err != nil || !ok || len(c.Readable()) != 2 || c.ReadableLen() != 30 {
		t.Fatalf("Pop: ok %v, error %v, chain %+v", ok, err, c)
	}
}

// hostile is what a driver may do wrong, from a ring that holds one good chain of 2 readable and 1 writable buffer.
var hostile = []struct {
	name string
	f    virtio.Features
	do   func(p *pair, head uint16)
	want error
}{
	{"head outside the table", 0, func(p *pair, _ uint16) { p.drv.Raw().SetAvail(0, 8) }, virtq.ErrHead},
	{"index jumps", 0, func(p *pair, _ uint16) { p.drv.Raw().SetAvailIdx(9) }, virtq.ErrAvailIndex},
	{"index goes back", 0, func(p *pair, _ uint16) { p.drv.Raw().SetAvailIdx(0xffff) }, virtq.ErrAvailIndex},
	{"next outside the table", 0, func(p *pair, h uint16) { patch(p, h, 14, 8) }, virtq.ErrNext},
	{"loop", 0, func(p *pair, h uint16) { patch(p, h, 14, byte(h)) }, virtq.ErrLoop},
	{"address outside memory", 0, func(p *pair, h uint16) { patch(p, h, 6, 0xff) }, virtq.ErrRange},
	{"address wraps", 0, func(p *pair, h uint16) {
		for i := range 8 {
			patch(p, h, i, 0xff)
		}
	}, virtq.ErrRange},
	{"length runs out of memory", 0, func(p *pair, h uint16) { patch(p, h, 10, 0xff) }, virtq.ErrRange},
	{"no bytes", 0, func(p *pair, h uint16) { patch(p, h, 8, 0) }, virtq.ErrEmpty},
	{"readable after writable", 0, func(p *pair, h uint16) { patch(p, h, 12, virtio.DescFNext|virtio.DescFWrite) }, virtq.ErrOrder},
	{"indirect not negotiated", 0, func(p *pair, h uint16) { patch(p, h, 12, virtio.DescFIndirect) }, virtq.ErrIndirect},
	{"indirect with next", virtio.FIndirectDesc, func(p *pair, h uint16) { patch(p, h, 12, virtio.DescFIndirect|virtio.DescFNext) }, virtq.ErrIndirect},
	{"indirect table of odd size", virtio.FIndirectDesc, func(p *pair, h uint16) { patch(p, h, 8, 17) }, virtq.ErrIndirect},
	{"indirect table without entries", virtio.FIndirectDesc, func(p *pair, h uint16) { patch(p, h, 8, 0) }, virtq.ErrIndirect},
	{"indirect table too long", virtio.FIndirectDesc, func(p *pair, h uint16) { patch(p, h, 11, 0xf0) }, virtq.ErrIndirect},
	{"indirect table outside memory", virtio.FIndirectDesc, func(p *pair, h uint16) { patch(p, h, 6, 0xff) }, virtq.ErrRange},
	{"indirect in indirect", virtio.FIndirectDesc, func(p *pair, h uint16) { table(p, h)[12] = virtio.DescFIndirect }, virtq.ErrIndirect},
	{"loop in a table", virtio.FIndirectDesc, func(p *pair, h uint16) { table(p, h)[14] = 0 }, virtq.ErrLoop},
	{"next outside a table", virtio.FIndirectDesc, func(p *pair, h uint16) { table(p, h)[14] = 3 }, virtq.ErrNext},
	{"head twice", 0, func(p *pair, h uint16) {
		p.drv.Raw().SetAvail(1, h)
		p.drv.Raw().SetAvailIdx(2)
		if _, ok, err := p.dev.Pop(); !ok || err != nil {
			panic("the first chain is good")
		}
	}, virtq.ErrHeadBusy},
	{"more than 4 GiB", virtio.FIndirectDesc, func(p *pair, h uint16) {
		for i := range 3 {
			t := table(p, h)[i*16:]
			driver.PutDesc(t, 0x10000, 0x60000000, uint16(t[12]), uint16(t[14]))
		}
	}, virtq.ErrRange},
}

func patch(p *pair, head uint16, off int, v byte) { p.drv.Raw().Desc(head)[off] = v }

func table(p *pair, head uint16) []byte {
	d := p.drv.Raw().Desc(head)
	b, err := p.mem.Slice(guestmem.GPA(d[0])|guestmem.GPA(d[1])<<8|guestmem.GPA(d[2])<<16, 48)
	if err != nil {
		panic(err)
	}
	return b
}

func TestAHostileDriverBreaksItsQueueOnly(t *testing.T) {
	t.Parallel()
	for _, h := range hostile {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, heapMemory(t, 16), 8, virtio.FVersion1|h.f)
			bs := p.buffers(t, 16, 16, 16)
			head, _ := p.drv.Add(bs[:2], bs[2:])
			p.drv.Publish()
			h.do(p, head)
			_, ok, err := p.dev.Pop()
			if ok || !errors.Is(err, h.want) {
				t.Fatalf("Pop = %v, %v: want %v", ok, err, h.want)
			}
			var de *virtq.DriverError
			if !errors.As(err, &de) || de.Section == "" {
				t.Errorf("%v: want a *DriverError that names the section", err)
			}
			p.drv.Raw().SetAvailIdx(1)
			if _, ok, again := p.dev.Pop(); ok || !errors.Is(again, err) {
				t.Errorf("a broken queue answered %v, %v", ok, again)
			}
			if got := p.drv.Raw().UsedIdx(); got != 0 {
				t.Errorf("used index %d", got)
			}
		})
	}
}

func TestActivateRefusesBadAreas(t *testing.T) {
	t.Parallel()
	p := newPair(t, heapMemory(t, 16), 8, virtio.FVersion1)
	for name, change := range map[string]func(c *virtq.Config){
		"size 0":               func(c *virtq.Config) { c.Size = 0 },
		"size not a power":     func(c *virtq.Config) { c.Size = 6 },
		"size over 32768":      func(c *virtq.Config) { c.Size = 65535 },
		"table misaligned":     func(c *virtq.Config) { c.DescArea += 8 },
		"available misaligned": func(c *virtq.Config) { c.DriverArea++ },
		"used misaligned":      func(c *virtq.Config) { c.DeviceArea += 2 },
		"table outside":        func(c *virtq.Config) { c.DescArea = 0 },
		"used over the end":    func(c *virtq.Config) { c.DeviceArea = 0x10000 + 32*4096 - 4 },
		"used across regions":  func(c *virtq.Config) { c.DeviceArea = 0x10000 + 16*4096 - 4 },
		"in-flight too short":  func(c *virtq.Config) { c.Inflight = make([]byte, 8) },
		"nothing to recover":   func(c *virtq.Config) { c.Inflight, c.Recover = make([]byte, 4096), true },
	} {
		c := p.cfg
		change(&c)
		if q, err := virtq.Activate(p.mem, c); err == nil || q != nil {
			t.Errorf("%s: accepted", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func TestUnpopGivesTheLastChainBack(t *testing.T) {
	t.Parallel()
	p := newPair(t, heapMemory(t, 16), 8, virtio.FVersion1)
	bs := p.buffers(t, 8, 8)
	p.drv.Add(bs[:1], nil)
	p.drv.Add(bs[1:], nil)
	p.drv.Publish()
	a, _, _ := p.dev.Pop()
	b, _, _ := p.dev.Pop()
	if p.dev.Unpop(a) {
		t.Error("Unpop took a chain that was not the last")
	}
	if !p.dev.Unpop(b) || p.dev.Unpop(b) {
		t.Error("Unpop refused the last chain, or took it twice")
	}
	if again, ok, err := p.dev.Pop(); !ok || err != nil || again.Head() != b.Head() {
		t.Errorf("Pop after Unpop = %v, %v", ok, err)
	}
	if s := p.dev.State(); s.InFlight != 2 || s.NextAvail != 2 {
		t.Errorf("state %+v", s)
	}
}

// What a device holds for input goes back as a run, and the next device of the queue gets it in the old order.
func TestUnpopGivesARunOfTheNewestChainsBack(t *testing.T) {
	t.Parallel()
	for name, f := range ringFeatures {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, heapMemory(t, 16), 8, f)
			bs := p.buffers(t, 8, 8, 8, 8, 8)
			for round := range 20 { // the ring wraps
				for i := range bs {
					p.drv.Add(bs[i:i+1], nil)
				}
				p.drv.Publish()
				var cs [5]*virtq.Chain
				if n, err := p.dev.PopBatch(cs[:]); n != len(cs) || err != nil {
					t.Fatal(n, err)
				}
				p.dev.CompleteBatch([]*virtq.Chain{cs[1]})
				for i := len(cs) - 1; i > 1; i-- {
					if !p.dev.Unpop(cs[i]) {
						t.Fatalf("round %d: Unpop refused chain %d, the newest", round, i)
					}
				}
				if p.dev.Unpop(cs[1]) || p.dev.Unpop(cs[0]) {
					t.Fatal("Unpop took a chain that is completed, or an older one")
				}
				want := []uint16{cs[0].Head(), cs[2].Head(), cs[3].Head(), cs[4].Head()}
				if s := p.dev.State(); s.InFlight != 1 || s.NextAvail != s.UsedIndex+1 {
					t.Fatalf("state %+v", s)
				}
				p.cfg.Recover = true
				p.activate(t)
				if n := p.dev.Resubmitted(); n != 1 {
					t.Fatalf("%d resubmitted, want the one that was not given back", n)
				}
				var got []uint16
				for {
					c, ok, err := p.dev.Pop()
					if err != nil {
						t.Fatal(err)
					}
					if !ok {
						break
					}
					got = append(got, c.Head())
					p.dev.Complete(c)
				}
				p.dev.Flush()
				if !slices.Equal(got, want) {
					t.Fatalf("round %d: popped %v, want %v", round, got, want)
				}
				for range bs {
					if _, _, ok := p.drv.Used(); !ok {
						t.Fatal("a chain did not come back")
					}
				}
			}
		})
	}
}

// One goroutine is the driver, one the device, with nothing between them but the ring: the race detector watches the heap.
func TestDriverAndDeviceRunAtTheSameTime(t *testing.T) {
	t.Parallel()
	const rounds = 3000
	for name, f := range ringFeatures {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, heapMemory(t, 64), 16, f)
			bs := p.buffers(t, 8, 8)
			var wg sync.WaitGroup
			wg.Go(func() {
				var batch [4]*virtq.Chain
				for done := 0; done < rounds; {
					n, err := p.dev.PopBatch(batch[:])
					if err != nil {
						t.Error(err)
						return
					}
					for _, c := range batch[:n] {
						_, _ = io.Copy(c.Writer(), c.Reader())
					}
					p.dev.CompleteBatch(batch[:n])
					done += n
					if n == 0 {
						p.dev.EnableKicks()
						p.dev.SpinUntilMore(8)
						p.dev.DisableKicks()
					}
				}
			})
			for sent, got := 0, 0; got < rounds; {
				for sent < rounds && sent-got < 1 { // one at a time: the buffers are shared
					p.arena.Bytes(bs[0])[0] = byte(sent) //nolint:gosec // G115: a pattern
					if _, ok := p.drv.Add(bs[:1], bs[1:]); !ok {
						t.Fatal("the ring is full")
					}
					p.drv.Publish()
					sent++
				}
				p.drv.EnableCalls()
				if _, n, ok := p.drv.Used(); ok {
					if n != 8 || p.arena.Bytes(bs[1])[0] != byte(got) {
						t.Fatalf("round %d: %d bytes, first %d", got, n, p.arena.Bytes(bs[1])[0])
					}
					got++
				}
				if t.Failed() {
					break
				}
			}
			wg.Wait()
		})
	}
}

func TestNothingIsAllocatedForARequest(t *testing.T) { //nolint:paralleltest // it counts the process's allocations
	for name, f := range ringFeatures {
		p := newPair(t, memfdMemory(t, 64), 64, f)
		bs := p.buffers(t, 16, 4096, 1)
		round := func() {
			var batch [8]*virtq.Chain
			for range 8 {
				p.drv.Add(bs[:1], bs[1:])
			}
			p.drv.Publish()
			n, err := p.dev.PopBatch(batch[:])
			if n != 8 || err != nil {
				t.Fatal(n, err)
			}
			for _, c := range batch[:n] {
				var hdr [16]byte
				if err := c.Reader().ReadFull(hdr[:]); err != nil {
					t.Fatal(err)
				}
				c.Writer().Advance(4097)
			}
			p.dev.CompleteBatch(batch[:n])
			for range 8 {
				p.drv.Used()
			}
		}
		for range 64 {
			round()
		}
		if n := testing.AllocsPerRun(100, round); n != 0 {
			t.Errorf("%s: %v allocations for 8 requests", name, n)
		}
	}
}

func TestLongChainsOfALongQueueAreNotKept(t *testing.T) { //nolint:paralleltest // it looks at the process's heap
	const size, entries = 32768, 1024
	mem := memfdMemory(t, 4096)
	p := newPair(t, mem, size, virtio.FVersion1)
	p.cfg.Features |= virtio.FIndirectDesc
	p.activate(t)
	tbl := p.buffers(t, entries*virtio.DescSize)[0]
	for i := range uint16(entries) {
		var flags uint16
		if i < entries-1 {
			flags = virtio.DescFNext
		}
		driver.PutDesc(p.arena.Bytes(tbl)[int(i)*virtio.DescSize:], 0x10000, 1, flags, i+1)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range uint16(8192) {
		driver.PutDesc(p.drv.Raw().Desc(i), tbl.Addr, tbl.Len, virtio.DescFIndirect, 0)
		p.drv.Raw().SetAvail(i, i)
		p.drv.Raw().SetAvailIdx(i + 1)
		c, ok, err := p.dev.Pop()
		if !ok || err != nil || len(c.Readable()) != entries {
			t.Fatalf("Pop = %v, %v", ok, err)
		}
		p.dev.Complete(c)
		p.dev.Flush()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 { //nolint:gosec // G115: sizes of a heap
		t.Errorf("%d MiB are kept", grown>>20)
	}
	runtime.KeepAlive(p)
}

// A former instance may have stopped or died while it had asked for no kicks. Its successor must not sleep behind that.
func TestKicksAreEnabledAfterAnInstanceThatDisabledThem(t *testing.T) {
	t.Parallel()
	for name, f := range ringFeatures {
		p := newPair(t, heapMemory(t, 16), 8, f)
		p.dev.DisableKicks()
		p.activate(t)
		if p.dev.EnableKicks() {
			t.Errorf("%s: the ring is not empty", name)
		}
		p.drv.Add(p.buffers(t, 4), nil)
		if !p.drv.Publish() {
			t.Errorf("%s: the driver was asked for no kick, and the device sleeps", name)
		}
	}
}

// A chain that a former instance left has no place in the available ring: taking it back would give out the next one twice.
func TestUnpopRefusesAResubmittedChain(t *testing.T) {
	t.Parallel()
	p := newPair(t, heapMemory(t, 16), 8, virtio.FVersion1)
	bs := p.buffers(t, 8, 8)
	p.drv.Add(bs[:1], nil)
	p.drv.Publish()
	if _, ok, err := p.dev.Pop(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	p.cfg.Recover = true
	p.activate(t)
	old, _, _ := p.dev.Pop()
	if p.dev.Unpop(old) {
		t.Error("Unpop took the resubmitted chain")
	}
	p.drv.Add(bs[1:], nil)
	p.drv.Publish()
	last, ok, err := p.dev.Pop()
	if !ok || err != nil || last == old {
		t.Fatal(ok, err)
	}
	if p.dev.Unpop(old) {
		t.Error("Unpop took the resubmitted chain, which is not the last")
	}
	if s := p.dev.State(); s.InFlight != 2 || s.NextAvail != 2 {
		t.Errorf("state %+v", s)
	}
}
