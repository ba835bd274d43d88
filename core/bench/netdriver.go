package bench

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// netPair drives a queue pair. With NetEcho one thread has both queues, else one each.
type netPair struct {
	run    *netRun
	index  int
	rx, tx *loopback.Queue

	slots    []netSlot
	free     []int
	byHead   []int
	seq      uint32
	buffers  []netBuffer
	byRxHead []int
	last     [16]uint32 // of each of the sender's pairs, plus one

	sent, received, kicks, calls atomic.Uint64
	damaged, disordered, foreign uint64
	hist                         Histogram
	started                      []time.Time // by sequence number, of those on their way
	oldest                       uint32      // sequence numbers before it are given up
	out                          int         // how many are on their way
	arpAsked                     atomic.Bool // the peer wants to know the driver's address
	arp                          []driver.Buffer
	arpSending                   bool
	giveUp                       atomic.Bool
	sendClock, receiveClock      threadClock
	headerBytes                  int
}

// netSlot is the memory of one frame to send.
type netSlot struct {
	all   []byte
	parts []driver.Buffer
}

// netBuffer is one receive buffer.
type netBuffer struct {
	b        []byte
	writable []driver.Buffer
}

// Sizes of the driver's buffers, as Linux makes them: what fits a page is in one piece, behind its header; of longer frames
// the protocols' headers are, and the rest in pieces of 32 KiB. Receive buffers that can be merged are at most a page.
const (
	netPage       = 4096
	netLinear     = 128
	netPiece      = 32 << 10
	netMinReceive = 1536
	netMaxReceive = 65562
	echoWindow    = 4096 // arbitrary, more than Depth can be
	echoSlots     = 32   // arbitrary, as many as a device is likely to give back late
)

func newNetPair(n *netRun, i int) (*netPair, error) {
	q := n.m.Queues()
	p := &netPair{run: n, index: i, rx: q[2*i], tx: q[2*i+1], headerBytes: virtio.NetHeaderLegacySize}
	f := n.m.Features()
	if f.Has(virtio.FVersion1) || f.Has(virtio.FNetMrgRxBuf) {
		p.headerBytes = virtio.NetHeaderSize
	}
	p.byHead, p.byRxHead = make([]int, p.tx.Size()), make([]int, p.rx.Size())
	p.started = make([]time.Time, echoWindow)
	frame, header := n.ends.frame(false, i), n.ends.header()
	slots := n.l.Depth
	if n.l.Pattern == NetEcho { // a frame may come back before the device has given its slot back
		slots = min(slots+echoSlots, int(p.tx.Size()))
	}
	for s := range slots {
		at, err := n.m.Arena().Alloc(p.headerBytes+len(frame), 64)
		if err != nil {
			return nil, fmt.Errorf("depth %d: %w", n.l.Depth, err)
		}
		whole := driver.Buffer{Addr: at, Len: uint32(p.headerBytes + len(frame))} //nolint:gosec // G115: at most MaxFrame
		slot := netSlot{all: n.m.Arena().Bytes(whole), parts: split(whole)}
		copy(slot.all, header[:p.headerBytes])
		copy(slot.all[p.headerBytes:], frame)
		p.slots, p.free = append(p.slots, slot), append(p.free, s)
	}
	arp, err := n.m.Arena().Buffer(p.headerBytes + arpFrameBytes)
	if err != nil {
		return nil, err
	}
	p.arp = []driver.Buffer{arp}
	return p, p.post(f)
}

// split cuts a frame's memory as Linux would.
func split(b driver.Buffer) []driver.Buffer {
	if b.Len <= netPage {
		return []driver.Buffer{b}
	}
	parts := []driver.Buffer{{Addr: b.Addr, Len: netLinear}}
	for off := uint32(netLinear); off < b.Len; off += netPiece {
		parts = append(parts, driver.Buffer{Addr: b.Addr + guestmem.GPA(off), Len: min(netPiece, b.Len-off)})
	}
	return parts
}

// NetMemory is how much guest memory a queue pair of a load needs at most, bytes: rings, indirect tables, buffers.
func NetMemory(queueSize, frameBytes int) uint64 {
	return uint64(queueSize) * uint64(frameBytes+netMaxReceive+1024) //nolint:gosec // G115: sizes
}

// NetOffloads are the features of checksums and segmentation.
const NetOffloads = virtio.FNetCSum | virtio.FNetGuestCSum | virtio.FNetCtrlOffloads |
	virtio.FNetHostTSO4 | virtio.FNetHostTSO6 | virtio.FNetHostECN | virtio.FNetHostUFO | virtio.FNetHostUSO |
	virtio.FNetGuestTSO4 | virtio.FNetGuestTSO6 | virtio.FNetGuestECN | virtio.FNetGuestUFO | virtio.FNetGuestUSO4 | virtio.FNetGuestUSO6

// post fills the receive queue.
func (p *netPair) post(f virtio.Features) error {
	size := max(netMinReceive, p.run.l.FrameBytes+virtio.NetHeaderSize+64)
	switch {
	case f.Has(virtio.FNetMrgRxBuf):
		size = min(size, netPage)
	case f.Has(virtio.FNetGuestTSO4):
		size = netMaxReceive
	}
	for p.rx.Free() > 0 {
		at, err := p.run.m.Arena().Alloc(size, 64)
		if err != nil {
			return err
		}
		b := driver.Buffer{Addr: at, Len: uint32(size)}
		s := netBuffer{b: p.run.m.Arena().Bytes(b), writable: []driver.Buffer{b}}
		head, ok := p.rx.Add(nil, s.writable)
		if !ok {
			break
		}
		p.byRxHead[head] = len(p.buffers)
		p.buffers = append(p.buffers, s)
	}
	return p.kick(p.rx)
}

// kick publishes what was added to q and tells the device, if it wants that.
func (p *netPair) kick(q *loopback.Queue) error {
	if !q.Publish() {
		return nil
	}
	p.kicks.Add(1)
	return q.Kick()
}

// lock ties the calling goroutine to a thread, and that to a processor if so asked.
func (p *netPair) lock() (unlock func(), err error) {
	runtime.LockOSThread()
	if p.run.l.PinDriver {
		var set unix.CPUSet
		set.Set(p.index % runtime.NumCPU())
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return runtime.UnlockOSThread, fmt.Errorf("pin the driver: %w", os.NewSyscallError("sched_setaffinity", err))
		}
		return func() {}, nil // the thread ends with its goroutine: nobody else gets a pinned one
	}
	return runtime.UnlockOSThread, nil
}

// send is the transmit queue's thread. Without flood it only answers for the driver's address.
func (p *netPair) send(flood bool) error {
	unlock, err := p.lock()
	defer unlock()
	if err != nil {
		return err
	}
	if !flood && p.index == 0 && p.run.ends.resolve && p.put() { // whoever is behind a translation learns the way back by it
		if err := p.kick(p.tx); err != nil {
			return err
		}
	}
	for !p.run.stopTx.Load() {
		p.sendClock.follow(p.run.phase.Load())
		added := p.answer()
		for flood && added < p.run.l.Batch && p.put() {
			added++
		}
		if added > 0 {
			if err := p.kick(p.tx); err != nil {
				return err
			}
		}
		if p.reapSent() > 0 || added > 0 || p.run.l.Poll {
			continue
		}
		if err := p.sleep(p.tx, uint16(max(1, (len(p.slots)-len(p.free))*3/4))); err != nil { //nolint:gosec // G115: at most a queue
			return err
		}
	}
	return p.finish()
}

// finish waits for what the device has of the transmit queue.
func (p *netPair) finish() error {
	for len(p.free) < len(p.slots) {
		p.sendClock.follow(p.run.phase.Load())
		if p.giveUp.Load() {
			return fmt.Errorf("queue pair %d: %d frames never came back from the transmit queue: the device lost them, or hangs", p.index, len(p.slots)-len(p.free))
		}
		if p.reapSent() == 0 {
			if err := p.sleep(p.tx, 1); err != nil {
				return err
			}
		}
	}
	p.sendClock.follow(netAfter)
	return nil
}

// sleep waits until the device has used n buffers more of q, or somebody wakes the thread.
func (p *netPair) sleep(q *loopback.Queue, n uint16) error {
	if q.CallAfter(n) {
		return nil
	}
	p.calls.Add(1)
	return q.WaitCall()
}

// put adds the next frame to the transmit queue; false: it is full.
func (p *netPair) put() bool {
	if len(p.free) == 0 {
		return false
	}
	i := p.free[len(p.free)-1]
	s := &p.slots[i]
	mark := s.all[p.headerBytes+p.run.ends.markOffset():]
	binary.BigEndian.PutUint32(mark[4:], p.seq)
	head, ok := p.tx.Add(s.parts, nil)
	if !ok {
		return false
	}
	p.seq++
	p.byHead[head] = i
	p.free = p.free[:len(p.free)-1]
	return true
}

// reapSent takes back what the device has sent.
func (p *netPair) reapSent() (n int) {
	var frames uint64
	for {
		head, _, ok := p.tx.Used()
		if !ok {
			break
		}
		n++
		if i := p.byHead[head]; i >= 0 {
			p.free = append(p.free, i)
			frames++
		} else {
			p.arpSending = false
		}
	}
	if frames > 0 {
		p.sent.Add(frames)
	}
	return n
}

// receive is the receive queue's thread.
func (p *netPair) receive() error {
	unlock, err := p.lock()
	defer unlock()
	if err != nil {
		return err
	}
	p.rx.DisableCalls()
	for !p.run.stopRx.Load() {
		p.receiveClock.follow(p.run.phase.Load())
		n, err := p.take(time.Time{})
		if err != nil {
			return err
		}
		if n > 0 || p.run.l.Poll {
			continue
		}
		if err := p.sleep(p.rx, 1); err != nil {
			return err
		}
		p.rx.DisableCalls()
	}
	p.receiveClock.follow(netAfter)
	return nil
}

// take takes received frames, at most Batch, and gives their buffers back. now is when, if times are measured.
func (p *netPair) take(now time.Time) (n int, err error) {
	var own uint64
	for ; n < p.run.l.Batch; n++ {
		ok, mine, err := p.takeFrame(now)
		if err != nil {
			return n, err
		}
		if !ok {
			break
		}
		if mine {
			own++
		}
	}
	if n > 0 {
		p.received.Add(own)
		err = p.kick(p.rx)
	}
	return n, err
}

// takeFrame takes one frame, which may be in several buffers (VIRTIO 1.2, 5.1.6.4).
func (p *netPair) takeFrame(now time.Time) (ok, own bool, err error) {
	head, written, ok := p.rx.Used()
	if !ok {
		return false, false, nil
	}
	first := p.byRxHead[head]
	b := p.buffers[first].b
	count := 1
	if p.run.m.Features().Has(virtio.FNetMrgRxBuf) {
		count = int(binary.LittleEndian.Uint16(b[virtio.NetHeaderNumBuffers:]))
	}
	if int(written) < p.headerBytes || count < 1 {
		return true, false, fmt.Errorf("queue pair %d: the device wrote %d bytes and says that the frame has %d buffers", p.index, written, count)
	}
	seq, from, own, arp := p.run.ends.kind(b[p.headerBytes:min(int(written), len(b))])
	if arp && isARPRequest(b[p.headerBytes:]) {
		p.arpAsked.Store(true)
		if err := p.tx.Wake(); err != nil {
			return true, false, err
		}
	}
	length, tail := int(written), b[min(int(written), len(b))-1]
	p.giveBack(first)
	for range count - 1 {
		head, written, ok := p.rx.Used()
		if !ok {
			return true, false, fmt.Errorf("queue pair %d: the device says that a frame has %d buffers, and used fewer", p.index, count)
		}
		length += int(written)
		tail = p.buffers[p.byRxHead[head]].b[max(0, int(written)-1)]
		p.giveBack(p.byRxHead[head])
	}
	if !own {
		p.foreign++
		return true, false, nil
	}
	p.check(seq, from, length-p.headerBytes, tail)
	if !now.IsZero() && seq-p.oldest < 1<<31 && p.seq-seq <= echoWindow && p.out > 0 {
		p.out--
		if p.run.phase.Load() == netMeasure {
			p.hist.Add(now.Sub(p.started[seq%echoWindow]))
		}
	}
	return true, true, nil
}

// check looks whether the bench's own frame is as it was sent.
func (p *netPair) check(seq uint32, from uint16, length int, tail byte) {
	want := p.run.l.FrameBytes
	if length != want || tail != byte(want-p.run.ends.markOffset()-1) { //nolint:gosec // G115: the low byte is meant
		p.damaged++
	}
	if int(from) < len(p.last) {
		if seq < p.last[from] {
			p.disordered++
		}
		p.last[from] = seq + 1
	}
}

// giveBack puts a receive buffer back; there is always room for it.
func (p *netPair) giveBack(i int) {
	head, ok := p.rx.Add(nil, p.buffers[i].writable)
	if !ok {
		panic("BUG: no room for a buffer that was in the queue")
	}
	p.byRxHead[head] = i
}

// cpu is what the driver's threads used while it was measured.
func (p *netPair) cpu() time.Duration { return p.sendClock.used + p.receiveClock.used }
