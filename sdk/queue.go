package sdk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// Queue is one running virtqueue as a device sees it: the ring, and the notifications around it.
// Pop, Unpop and Wait: the goroutine that serves the queue. Complete, Flush and Finish: any goroutine.
type Queue struct {
	vq      *virtq.Queue
	p       queueParams
	waiter  *eventfd.Waiter
	callFD  int
	spin    spinner
	kicks   atomic.Uint64
	errorsN atomic.Uint64
	errLog  errorLog
	woken   atomic.Bool

	cancel  context.CancelFunc
	served  chan struct{} // closed when the serving goroutine has returned
	stopMu  sync.Mutex
	stopped bool
	final   queueState
}

// queueParams is what the runtime makes a queue of. Descriptors belong to the queue; Inflight and Mem stay the runtime's and
// outlive it.
type queueParams struct {
	Index                            int
	Size                             uint16
	DescArea, DriverArea, DeviceArea guestmem.GPA
	Features                         virtio.Features
	NextAvail                        uint16
	Recover                          bool
	Kick, Call                       *os.File
	Inflight                         []byte
	Mem                              *guestmem.Memory
	Log                              hclog.Logger
	// BusyPoll is how long to look for more work before sleeping; 0: not at all.
	BusyPoll time.Duration
	// OnBroken is called once, when the driver broke the ring's rules; OnError when the device's loop failed.
	OnBroken, OnError func(err error)
}

// queueState is where a stopped queue stands.
type queueState struct {
	NextAvail, UsedIndex uint16
	Broken               error
	// Unserved is how many chains of a former instance the device's loop never popped. NextAvail is behind them; they stay
	// in the in-flight region.
	Unserved int
}

// queueStats are a queue's counters.
type queueStats struct {
	Chains, Completed, ReadableBytes, WrittenBytes uint64
	Kicks, Calls, CallsSuppressed, Errors          uint64
	Broken                                         error
}

// newQueue activates the ring; resubmitted is how many chains a former instance left in flight. On error nothing is closed.
func newQueue(p queueParams) (q *Queue, resubmitted int, err error) {
	vq, err := virtq.Activate(p.Mem, virtq.Config{
		Index: p.Index, Size: p.Size, DescArea: p.DescArea, DriverArea: p.DriverArea, DeviceArea: p.DeviceArea,
		Features: p.Features, NextAvail: p.NextAvail, Inflight: p.Inflight, Recover: p.Recover,
	})
	if err != nil {
		return nil, 0, err
	}
	kick, err := dup(p.Kick)
	if err != nil {
		return nil, 0, fmt.Errorf("queue %d: kick: %w", p.Index, err)
	}
	waiter, err := eventfd.NewWaiter(kick)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("queue %d: %w", p.Index, err), unix.Close(kick))
	}
	call, err := dupCall(p.Call)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("queue %d: call: %w", p.Index, err), waiter.Close())
	}
	q = &Queue{
		vq: vq, p: p, waiter: waiter, callFD: call,
		spin: newSpinner(p.BusyPoll), errLog: errorLog{log: p.Log}, served: make(chan struct{}),
	}
	return q, vq.Resubmitted(), errors.Join(p.Kick.Close(), p.Call.Close())
}

// dup takes the descriptor out of an os.File without changing its flags, as File.Fd would.
func dup(f *os.File) (fd int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctl := conn.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(err, ctl)
}

// dupCall is dup for a descriptor that must never block us. An eventfd blocks only after 2^64-2 unread calls; a pipe or
// socket (User-Mode Linux) when its buffer is full. Our end of those is ours alone, so its flag may be changed.
func dupCall(f *os.File) (int, error) {
	fd, err := dup(f)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, errors.Join(os.NewSyscallError("fstat", err), unix.Close(fd))
	}
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFIFO || kind == unix.S_IFSOCK {
		if err := unix.SetNonblock(fd, true); err != nil {
			return -1, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fd))
		}
	}
	return fd, nil
}

// Index is the queue's number.
func (q *Queue) Index() int { return q.p.Index }

// Size is the number of entries that the driver chose.
func (q *Queue) Size() uint16 { return q.p.Size }

// Features are the negotiated ones.
func (q *Queue) Features() virtio.Features { return q.p.Features }

// Pop takes the next available chain; ok is false if there is none. An error means that the driver broke the rules: return
// it from RunQueue.
func (q *Queue) Pop() (c *virtq.Chain, ok bool, err error) {
	if c, ok, err = q.vq.Pop(); ok {
		q.spin.worked()
	}
	return c, ok, err
}

// Unpop gives back the newest chain that was popped and not completed; called again, the one before it. See virtq.Queue.Unpop.
func (q *Queue) Unpop(c *virtq.Chain) bool { return q.vq.Unpop(c) }

// Resubmitted is how many chains a former instance left in flight that Pop has not returned yet; Pop returns them first, and
// Unpop does not take them back. Called by whoever calls Pop.
func (q *Queue) Resubmitted() int { return q.vq.Resubmitted() }

// Complete stages c as used with what its Writer wrote; Flush publishes it.
func (q *Queue) Complete(c *virtq.Chain) { q.vq.Complete(c) }

// Flush publishes what was completed and calls the driver if it wants that.
func (q *Queue) Flush() error {
	if q.vq.Flush() {
		return q.call()
	}
	return nil
}

// Finish is Complete and Flush: for chains that are done outside the loop. Any goroutine.
func (q *Queue) Finish(c *virtq.Chain) error {
	q.vq.Complete(c)
	return q.Flush()
}

func (q *Queue) call() error {
	if err := eventfd.Signal(q.callFD); err != nil {
		return fmt.Errorf("queue %d: call: %w", q.p.Index, err)
	}
	return nil
}

// Wait blocks until chains may be available or Wake was called; it returns at once if some are. When the queue is to stop it
// returns ctx.Err(). After work it first looks for more, as Serve does.
func (q *Queue) Wait(ctx context.Context) error {
	if ctx.Err() == nil && q.spin.wait(q.vq) {
		return nil
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if q.vq.EnableKicks() || q.woken.Swap(false) {
			break
		}
		if err := q.waiter.Wait(); err != nil {
			if errors.Is(err, eventfd.ErrClosed) {
				<-ctx.Done() // nobody can kick any more: all that is left is being stopped
				return ctx.Err()
			}
			return fmt.Errorf("queue %d: wait for a kick: %w", q.p.Index, err)
		}
		q.kicks.Add(1)
		if q.vq.HasMore() {
			break
		}
	}
	q.vq.DisableKicks()
	return nil
}

// Wake makes a Wait under way, or else the next one, return: for a loop that has something else to do too. Any goroutine.
func (q *Queue) Wake() error {
	q.woken.Store(true)
	if err := q.waiter.Wake(); err != nil {
		return fmt.Errorf("queue %d: wake: %w", q.p.Index, err)
	}
	return nil
}

// failed counts a handler's error and logs it, not each.
func (q *Queue) failed(err error) {
	q.errorsN.Add(1)
	q.errLog.add(err)
}

func (q *Queue) statistics() queueStats {
	c, s := q.vq.Counters(), q.vq.State()
	return queueStats{
		Chains: c.Chains, Completed: c.Completed, ReadableBytes: c.ReadableBytes, WrittenBytes: c.WrittenBytes,
		Kicks: q.kicks.Load(), Calls: c.Calls, CallsSuppressed: c.Suppressed, Errors: q.errorsN.Load(), Broken: s.Broken,
	}
}

// start serves the queue on a goroutine of its own.
func (q *Queue) start(dev Device) {
	ctx, cancel := context.WithCancel(context.Background())
	wake := context.AfterFunc(ctx, func() {
		if err := q.waiter.Wake(); err != nil {
			q.p.Log.Error("stop queue", "queue", q.p.Index, "error", err)
		}
	})
	q.cancel = func() { cancel() }
	go func() {
		defer close(q.served)
		defer wake()
		q.serve(ctx, dev)
	}()
}

// stop ends the serving, waits for the chains in flight, and closes the descriptors. If ctx ends first the error says what
// it waited for, and stop may be called again; chains that are left stay in the in-flight region. Idempotent.
func (q *Queue) stop(ctx context.Context) (queueState, error) {
	q.stopMu.Lock()
	defer q.stopMu.Unlock()
	if q.stopped {
		return q.final, nil
	}
	q.cancel()
	select {
	case <-q.served:
	case <-ctx.Done():
		return queueState{}, fmt.Errorf("stop queue %d: the device's loop does not end: %w", q.p.Index, ctx.Err())
	}
	select {
	case <-q.vq.Idle():
	case <-ctx.Done():
		return queueState{}, fmt.Errorf("stop queue %d: %d chains are still in flight: %w", q.p.Index, q.vq.State().InFlight, ctx.Err())
	}
	s := q.vq.State()
	q.stopped, q.final = true, queueState{s.NextAvail, s.UsedIndex, s.Broken, q.vq.Resubmitted()}
	return q.final, errors.Join(q.waiter.Close(), os.NewSyscallError("close", unix.Close(q.callFD)))
}

// errorLog logs the first errors of a second and counts the others.
type errorLog struct {
	log     hclog.Logger
	mu      sync.Mutex
	since   time.Time
	logged  int
	skipped int
}

const errorsPerSecond = 5 // arbitrary: enough to see what is wrong, too few to flood

func (l *errorLog) add(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.since) > time.Second {
		if l.skipped > 0 {
			l.log.Error("more requests failed", "count", l.skipped)
		}
		l.since, l.logged, l.skipped = now, 0, 0
	}
	if l.logged == errorsPerSecond {
		l.skipped++
		return
	}
	l.logged++
	l.log.Error("request failed", "error", err)
}
