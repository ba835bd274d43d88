package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// NetPeer is the other end of a network device's back-end: it takes, makes or returns frames. Make one by NewTapPeer,
// NewSocketPeer or NewUserPeer.
type NetPeer interface {
	// address fills in the peer's addresses.
	address(e *netEnds) error
	// start begins to do its part; what it counts begins at zero. received tells how many frames the driver has got.
	start(pattern NetPattern, e netEnds, received func() uint64) error
	// stop ends that; what it has counted stays. A second time does nothing.
	stop() error
	counts() netCounts
	// Close frees what the peer holds.
	Close() error
}

// netCounts are a peer's counters since start.
type netCounts struct {
	sent, received, dropped uint64
	cpu                     time.Duration
}

// peerLoop is a thread that does a peer's part. Its file descriptor is blocking with a time limit, so that it sees the end.
type peerLoop struct {
	sent, received, cpuTime atomic.Int64
	quit                    atomic.Bool
	wg                      sync.WaitGroup
	err                     error
}

// peerLimit is how long a system call of a peer may wait.
const peerLimit = 100 * time.Millisecond

// run calls turn until stop. turn does some frames and returns; it may wait for as long as peerLimit.
func (l *peerLoop) run(turn func() error) {
	l.sent.Store(0)
	l.received.Store(0)
	l.cpuTime.Store(0)
	l.quit.Store(false)
	l.err = nil
	l.wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		begin := threadTime()
		for !l.quit.Load() && l.err == nil {
			l.err = turn()
			l.cpuTime.Store(int64(threadTime() - begin))
		}
	})
}

func (l *peerLoop) stop() error {
	l.quit.Store(true)
	l.wg.Wait()
	err := l.err
	l.err = nil
	return err
}

func (l *peerLoop) counts() netCounts {
	return netCounts{
		sent: uint64(l.sent.Load()), received: uint64(l.received.Load()), //nolint:gosec // G115: counts
		cpu: time.Duration(l.cpuTime.Load()),
	}
}

// limit makes a descriptor's calls return after peerLimit.
func limit(fd int) error {
	t := unix.NsecToTimeval(int64(peerLimit))
	err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &t))
	if err != nil {
		return fmt.Errorf("setsockopt: %w", err)
	}
	return nil
}

// nothing tells whether an error of a system call only says that there was nothing to do for a while.
func nothing(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)
}

func call(name string, err error) error { return os.NewSyscallError(name, err) }
