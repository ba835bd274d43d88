package fdpass

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Sender is the launcher's end. Safe for concurrent use.
type Sender struct {
	conn *net.UnixConn

	mu    sync.Mutex
	token uint64
}

// NewSender takes over f, the launcher's end of Pair.
func NewSender(f *os.File) (*Sender, error) {
	c, err := conn(f)
	if err != nil {
		return nil, err
	}
	return &Sender{conn: c}, nil
}

// Send sends copies of the 1 to MaxFDs descriptors and returns their token, never 0 and never the same. The descriptors
// stay the caller's. It waits for room in the socket (a plugin that does not read) until ctx ends.
func (s *Sender) Send(ctx context.Context, fds []int) (token uint64, err error) {
	if len(fds) == 0 || len(fds) > MaxFDs {
		return 0, fmt.Errorf("send descriptors: %d at once: want 1 to %d", len(fds), MaxFDs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("send descriptors: %w", err)
	}
	deadline, _ := ctx.Deadline()
	if err := s.conn.SetWriteDeadline(deadline); err != nil {
		return 0, fmt.Errorf("send descriptors: %w", closedError(err))
	}
	// A context that ends without a deadline interrupts the write all the same.
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	s.token++
	_, _, err = s.conn.WriteMsgUnix(appendHeader(nil, len(fds), s.token), unix.UnixRights(fds...), nil)
	switch {
	case err == nil:
		return s.token, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, fmt.Errorf("send descriptors: the plugin does not read its descriptor socket: %w", context.DeadlineExceeded)
	default:
		return 0, fmt.Errorf("send descriptors: %w", closedError(err))
	}
}

// Close closes the socket: the plugin takes that as the launcher's end. Idempotent.
func (s *Sender) Close() error {
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("descriptor socket: %w", err)
	}
	return nil
}

func closedError(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}
