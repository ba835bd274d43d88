package sdk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

const patience = time.Minute // for what must happen; machines are slow

// bench is one queue of a device, with its driver.
type queueRig struct {
	t        *testing.T
	arena    *driver.Arena
	drv      *driver.Queue
	q        *Queue
	kick     *os.File
	call     *eventfd.Waiter
	memfd    *os.File
	broken   chan error
	failed   chan error
	params   queueParams
	inflight []byte
}

func newQueueRig(t *testing.T, dev Device, f virtio.Features) *queueRig {
	t.Helper()
	r := &queueRig{t: t, broken: make(chan error, 1), failed: make(chan error, 1)}
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	r.ok(err)
	r.memfd = os.NewFile(uintptr(fd), "guest")
	const pages = 64
	r.ok(r.memfd.Truncate(pages * guestmem.PageSize))
	mem, err := guestmem.Map([]guestmem.MapRegion{{Start: 0x1000, Size: pages * guestmem.PageSize, FD: fd}})
	r.ok(err)
	r.arena = driver.NewArena(mem)
	r.drv, err = driver.New(r.arena, driver.Config{Size: 16, Features: f})
	r.ok(err)
	r.inflight = make([]byte, virtq.InflightBytes(16))
	r.params = queueParams{
		Size: 16, Features: f, Mem: mem, Log: hclog.NewNullLogger(), BusyPoll: DefaultBusyPoll, Inflight: r.inflight,
		OnBroken: func(err error) { r.broken <- err }, OnError: func(err error) { r.failed <- err },
	}
	r.params.DescArea, r.params.DriverArea, r.params.DeviceArea = r.drv.Areas()
	r.start(dev)
	t.Cleanup(func() {
		r.stop()
		r.ok(mem.Close())
		r.ok(r.memfd.Close())
	})
	return r
}

// start makes a queue as for a new instance and lets dev serve it.
func (r *queueRig) start(dev Device) {
	r.t.Helper()
	var err error
	r.kick, err = eventfd.New()
	r.ok(err)
	r.params.Kick, err = eventfd.New()
	r.ok(err)
	r.kick, err = dupFile(r.params.Kick)
	r.ok(err)
	r.params.Call, err = eventfd.New()
	r.ok(err)
	callFD, err := dup(r.params.Call)
	r.ok(err)
	r.call, err = eventfd.NewWaiter(callFD)
	r.ok(err)
	r.q, _, err = newQueue(r.params)
	r.ok(err)
	r.q.start(dev)
}

func dupFile(f *os.File) (*os.File, error) {
	fd, err := dup(f)
	return os.NewFile(uintptr(fd), f.Name()), err
}

func (r *queueRig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *queueRig) stop() queueState {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := r.q.stop(ctx)
	r.ok(err)
	return s
}

// send puts a chain in and kicks as the device wants it.
func (r *queueRig) send(in, out []driver.Buffer) uint16 {
	r.t.Helper()
	head, ok := r.drv.Add(in, out)
	if !ok {
		r.t.Fatal("the ring is full")
	}
	if r.drv.Publish() {
		fd, err := dup(r.kick)
		r.ok(err)
		r.ok(eventfd.Signal(fd))
		r.ok(unix.Close(fd))
	}
	return head
}

// receive waits for the next used chain, sleeping only as the protocol allows: a lost call hangs it.
func (r *queueRig) receive() (head uint16, written uint32) {
	r.t.Helper()
	timer := time.AfterFunc(patience, func() { panic("no call came for a used buffer") })
	defer timer.Stop()
	for {
		if head, n, ok := r.drv.Used(); ok {
			return head, n
		}
		if !r.drv.EnableCalls() {
			r.ok(r.call.Wait())
		}
	}
}

func (r *queueRig) buffer(n int) []driver.Buffer {
	r.t.Helper()
	b, err := r.arena.Buffer(n)
	r.ok(err)
	return []driver.Buffer{b}
}

func (r *queueRig) bytes(b []driver.Buffer) []byte { return r.arena.Bytes(b[0]) }

// spec is embedded by the test's devices.
type oneQueue struct{}

func (oneQueue) Spec() Spec { return Spec{QueueSizes: []uint16{16}} }

type upper struct{ oneQueue }

func (upper) HandleChain(_ context.Context, _ *Queue, c *virtq.Chain) error {
	b, err := io.ReadAll(c.Reader())
	if err != nil {
		return err
	}
	if string(b) == "fail" {
		return errors.New("asked to fail")
	}
	_, err = c.Writer().Write(bytes.ToUpper(b))
	return err
}

var bothNotifications = map[string]virtio.Features{
	"flags": virtio.FVersion1, "event index": virtio.FVersion1 | virtio.FEventIdx | virtio.FIndirectDesc,
}

func TestAChainHandlerNeedsNoMoreThanItself(t *testing.T) {
	t.Parallel()
	for name, f := range bothNotifications {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newQueueRig(t, upper{}, f)
			in, out := r.buffer(4), r.buffer(8)
			for i := range 2000 {
				word := []string{"abcd", "fail", "wxyz"}[i%3]
				copy(r.bytes(in), word)
				head := r.send(in, out)
				got, n := r.receive()
				want := map[string]string{"abcd": "ABCD", "wxyz": "WXYZ"}[word]
				if got != head || string(r.bytes(out)[:n]) != want {
					t.Fatalf("round %d: head %d, %q: want %d, %q", i, got, r.bytes(out)[:n], head, want)
				}
				if i%100 == 0 {
					time.Sleep(200 * time.Microsecond) // past the busy-poll: the next one needs a kick
				}
			}
			s := r.q.statistics()
			if s.Chains != 2000 || s.Completed != 2000 || s.Errors != 667 || s.Kicks == 0 || s.ReadableBytes != 8000 {
				t.Errorf("statistics %+v", s)
			}
			if st := r.stop(); st.NextAvail != 2000 || st.UsedIndex != 2000 || st.Broken != nil {
				t.Errorf("state %+v", st)
			}
		})
	}
}

// keeper keeps every chain and finishes them elsewhere.
type keeper struct {
	oneQueue
	kept chan *virtq.Chain
}

func (k keeper) HandleChain(_ context.Context, _ *Queue, c *virtq.Chain) error {
	k.kept <- c
	return ErrLater
}

func TestChainsMayBeFinishedLaterElsewhereAndOutOfOrder(t *testing.T) {
	t.Parallel()
	for name, f := range bothNotifications {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dev := keeper{kept: make(chan *virtq.Chain, 16)}
			r := newQueueRig(t, dev, f)
			want := map[uint16]byte{}
			outs := map[uint16][]driver.Buffer{}
			for i := range byte(8) {
				in, out := r.buffer(1), r.buffer(1)
				r.bytes(in)[0] = i
				head := r.send(in, out)
				want[head], outs[head] = i, out
			}
			var chains []*virtq.Chain
			for range 8 {
				chains = append(chains, <-dev.kept)
			}
			stopped := make(chan queueState)
			go func() { stopped <- r.stop() }()
			var wg sync.WaitGroup
			for i := range chains {
				c := chains[len(chains)-1-i]
				wg.Go(func() {
					b, _ := io.ReadAll(c.Reader())
					_, _ = c.Writer().Write(b)
					if err := r.q.Finish(c); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for range 8 {
				head, n := r.receive()
				if n != 1 || r.bytes(outs[head])[0] != want[head] {
					t.Errorf("head %d: %d bytes, %d", head, n, r.bytes(outs[head])[0])
				}
			}
			if s := <-stopped; s.NextAvail != 8 || s.UsedIndex != 8 {
				t.Errorf("the queue stopped at %+v with chains in flight", s)
			}
		})
	}
}

func TestStopWaitsForTheDrainNoLongerThanItsContext(t *testing.T) {
	t.Parallel()
	dev := keeper{kept: make(chan *virtq.Chain, 1)}
	r := newQueueRig(t, dev, virtio.FVersion1)
	r.send(r.buffer(1), nil)
	c := <-dev.kept
	first := r.q
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := first.stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("stop = %v: want to be told that a chain is in flight", err)
	}
	<-first.served
	// What was in flight is found by the next instance, and once it is finished after all, the stop succeeds.
	t.Cleanup(func() {
		if err := first.Finish(c); err != nil {
			t.Error(err)
		}
		if _, err := first.stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	r.params.Recover = true
	r.start(upper{})
	if head, n := r.receive(); head != c.Head() || n != 0 {
		t.Errorf("head %d with %d bytes came back", head, n)
	}
}

func TestAnIdleQueueStopsAtOnce(t *testing.T) {
	t.Parallel()
	r := newQueueRig(t, upper{}, virtio.FVersion1|virtio.FEventIdx)
	for range 50 {
		r.stop()
		r.params.NextAvail = 0
		r.params.Recover = true
		r.start(upper{})
	}
}

func TestABrokenRingIsToldOnceAndTheQueueStillStops(t *testing.T) {
	t.Parallel()
	r := newQueueRig(t, upper{}, virtio.FVersion1)
	r.drv.Raw().SetAvail(0, 999)
	r.drv.Raw().SetAvailIdx(1)
	fd, err := dup(r.kick)
	r.ok(err)
	r.ok(eventfd.Signal(fd))
	r.ok(unix.Close(fd))
	select {
	case err := <-r.broken:
		if !errors.Is(err, virtq.ErrHead) {
			t.Errorf("broken by %v", err)
		}
	case <-time.After(patience):
		t.Fatal("nobody was told")
	}
	if s := r.stop(); !errors.Is(s.Broken, virtq.ErrHead) {
		t.Errorf("state %+v", s)
	}
}

func TestMemoryThatIsTakenAwayBreaksTheQueueNotTheProcess(t *testing.T) {
	t.Parallel()
	r := newQueueRig(t, upper{}, virtio.FVersion1)
	r.ok(r.memfd.Truncate(0))
	fd, err := dup(r.kick)
	r.ok(err)
	r.ok(eventfd.Signal(fd))
	r.ok(unix.Close(fd))
	select {
	case err := <-r.broken:
		if !errors.Is(err, virtq.ErrMemory) {
			t.Errorf("broken by %v", err)
		}
	case <-time.After(patience):
		t.Fatal("nobody was told")
	}
	r.ok(r.memfd.Truncate(64 * guestmem.PageSize))
}

// ticker is a QueueRunner that sends by itself.
type ticker struct {
	oneQueue
	words chan string
}

func (d ticker) RunQueue(ctx context.Context, q *Queue) error {
	for {
		var word string
		select {
		case <-ctx.Done():
			return nil
		case word = <-d.words:
		}
		for {
			c, ok, err := q.Pop()
			if err != nil {
				return err
			}
			if ok {
				if _, err := c.Writer().Write([]byte(word)); err != nil {
					return err
				}
				if err := q.Finish(c); err != nil {
					return err
				}
				break
			}
			if err := q.Wait(ctx); err != nil {
				return err
			}
		}
	}
}

func TestAQueueRunnerOwnsItsLoop(t *testing.T) {
	t.Parallel()
	dev := ticker{words: make(chan string)}
	r := newQueueRig(t, dev, virtio.FVersion1|virtio.FEventIdx)
	for _, word := range []string{"one", "two", "three"} {
		dev.words <- word // before the driver has a buffer: the runner waits for one
		out := r.buffer(8)
		r.send(nil, out)
		if _, n := r.receive(); string(r.bytes(out)[:n]) != word {
			t.Errorf("got %q, want %q", r.bytes(out)[:n], word)
		}
	}
	dev.words <- "lost in the stop" // the runner waits for a buffer while it is stopped
	r.stop()
	select {
	case err := <-r.failed:
		t.Error(err)
	default:
	}
}
