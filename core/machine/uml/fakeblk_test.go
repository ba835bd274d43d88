package uml

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// fakeBlk is a plugin instance in this process: a block device on a byte slice that answers split rings by hand, so that
// the broker, the protocol and the machine are tested without the SDK's rings.
type fakeBlk struct {
	disk   []byte
	offer  pluginrpc.Offer
	events chan pluginrpc.Event
	done   chan struct{}
	served atomic.Int64 // requests

	mu     sync.Mutex
	mem    *guestmem.Memory
	queues map[int]*fakeQueue
	once   sync.Once
}

type fakeQueue struct {
	blk               *fakeBlk
	start             pluginrpc.QueueStart
	kick, call        int
	desc, avail, used []byte
	next, usedIdx     uint16
	stop              chan struct{}
	wg                sync.WaitGroup
}

// newBlk makes an open device with disk of size bytes and n queues.
func newBlk(t *testing.T, name string, size, n int) (*device.Device, *fakeBlk) {
	t.Helper()
	b := &fakeBlk{
		disk: make([]byte, size), queues: map[int]*fakeQueue{},
		events: make(chan pluginrpc.Event, 8), done: make(chan struct{}),
	}
	b.offer.Features = virtio.FVersion1 | virtio.FBlkFlush
	if n > 1 {
		b.offer.Features |= virtio.FBlkMQ
	}
	for range n {
		b.offer.QueueSizes = append(b.offer.QueueSizes, 256)
	}
	b.offer.Config = b.config(size)
	d := device.New(device.Options{
		Name: name, DeviceID: virtio.IDBlock,
		Start: func(context.Context) (device.Instance, error) { return b, nil },
	})
	if err := d.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, b
}

func (b *fakeBlk) config(size int) []byte {
	c := make([]byte, virtio.BlkCfgSize)
	binary.LittleEndian.PutUint64(c[virtio.BlkCfgCapacity:], uint64(size/virtio.SectorSize))   //nolint:gosec // a test's own
	binary.LittleEndian.PutUint16(c[virtio.BlkCfgNumQueues:], uint16(len(b.offer.QueueSizes))) //nolint:gosec // a few
	return c
}

func (b *fakeBlk) Offer() pluginrpc.Offer { return b.offer }
func (b *fakeBlk) SetFeatures(context.Context, virtio.Features) ([]byte, error) {
	return b.offer.Config, nil
}
func (b *fakeBlk) WriteConfig(context.Context, int, []byte) ([]byte, error) {
	return nil, errors.New("read-only")
}

func (b *fakeBlk) AttachMemory(_ context.Context, regions []guestmem.MapRegion) error {
	m, err := guestmem.Map(regions)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mem != nil {
		_ = b.mem.Close()
	}
	b.mem = m
	return nil
}

func (b *fakeBlk) StartQueue(_ context.Context, s pluginrpc.QueueStart) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := &fakeQueue{blk: b, start: s, next: s.NextAvail, stop: make(chan struct{})}
	var err [5]error
	q.kick, err[0] = unix.FcntlInt(uintptr(s.Kick), unix.F_DUPFD_CLOEXEC, 3)
	q.call, err[1] = unix.FcntlInt(uintptr(s.Call), unix.F_DUPFD_CLOEXEC, 3)
	q.desc, err[2] = b.mem.Slice(s.DescArea, virtio.DescTableBytes(s.Size))
	q.avail, err[3] = b.mem.Slice(s.DriverArea, virtio.AvailRingBytes(s.Size))
	q.used, err[4] = b.mem.Slice(s.DeviceArea, virtio.UsedRingBytes(s.Size))
	if e := errors.Join(err[:]...); e != nil {
		return 0, e
	}
	q.usedIdx = binary.LittleEndian.Uint16(q.used[2:])
	b.queues[s.Index] = q
	q.wg.Go(q.run)
	return 0, nil
}

func (b *fakeBlk) StopQueue(_ context.Context, i int) (pluginrpc.QueueState, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queues[i]
	if q == nil {
		return pluginrpc.QueueState{}, nil
	}
	delete(b.queues, i)
	close(q.stop)
	q.wg.Wait()
	_ = unix.Close(q.kick)
	_ = unix.Close(q.call)
	return pluginrpc.QueueState{NextAvail: q.next, UsedIndex: q.usedIdx}, nil
}

func (b *fakeBlk) Reset(ctx context.Context) error {
	for i := range b.offer.QueueSizes {
		_, _ = b.StopQueue(ctx, i)
	}
	return nil
}
func (b *fakeBlk) Pause(context.Context) error  { return nil }
func (b *fakeBlk) Resume(context.Context) error { return nil }
func (b *fakeBlk) Health(context.Context) error { return nil }
func (b *fakeBlk) Statistics(context.Context) (pluginrpc.Statistics, error) {
	return pluginrpc.Statistics{}, nil
}
func (b *fakeBlk) Command(context.Context, string, []byte) ([]byte, error) {
	return nil, errors.New("none")
}
func (b *fakeBlk) Events() <-chan pluginrpc.Event { return b.events }
func (b *fakeBlk) Done() <-chan struct{}          { return b.done }
func (b *fakeBlk) Err() error                     { return nil }
func (b *fakeBlk) Close() error {
	b.once.Do(func() { close(b.done); close(b.events) })
	return b.Reset(context.Background())
}

// run serves the ring until stop, looking at it whenever a kick comes.
func (q *fakeQueue) run() {
	p := []unix.PollFd{{Fd: int32(q.kick), Events: unix.POLLIN}} //nolint:gosec // small
	var buf [8]byte
	for {
		q.drain()
		if n, _ := unix.Poll(p, 5); n == 1 { // 5 ms: how soon stop is seen
			_, _ = unix.Read(q.kick, buf[:])
		}
		select {
		case <-q.stop:
			return
		default:
		}
	}
}

func (q *fakeQueue) drain() {
	le, n := binary.LittleEndian, q.start.Size
	for q.next != le.Uint16(q.avail[2:]) {
		head := le.Uint16(q.avail[4+2*(q.next%n):])
		written := q.serve(head)
		e := q.used[4+8*int(q.usedIdx%n):]
		le.PutUint32(e, uint32(head))
		le.PutUint32(e[4:], written)
		q.next++
		q.usedIdx++
		le.PutUint16(q.used[2:], q.usedIdx)
		q.blk.served.Add(1)
		_, _ = unix.Write(q.call, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

// serve does one request: header, data, status.
func (q *fakeQueue) serve(head uint16) (written uint32) {
	le := binary.LittleEndian
	var kind uint32
	var at uint64
	for i, first := head, true; ; first = false {
		d := q.desc[int(i)*virtio.DescSize:]
		flags := le.Uint16(d[12:])
		buf, err := q.blk.mem.Slice(guestmem.GPA(le.Uint64(d)), int(le.Uint32(d[8:])))
		if err != nil {
			panic(err) // a test device for a well-behaved driver
		}
		last := flags&virtio.DescFNext == 0
		switch {
		case first:
			kind, at = le.Uint32(buf), le.Uint64(buf[8:])*virtio.SectorSize
		case last:
			buf[0] = virtio.BlkSOK
			written++
		case kind == virtio.BlkTOut:
			copy(q.blk.disk[at:], buf)
			at += uint64(len(buf))
		case kind == virtio.BlkTIn:
			copy(buf, q.blk.disk[at:])
			at += uint64(len(buf))
			written += uint32(len(buf)) //nolint:gosec // of a le32
		case kind == virtio.BlkTGetID:
			written += uint32(copy(buf, "fake\x00")) //nolint:gosec // 5
		}
		if last {
			return written
		}
		i = le.Uint16(d[14:])
	}
}
