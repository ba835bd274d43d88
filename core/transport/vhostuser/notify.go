package vhostuser

import (
	"fmt"
	"sync"

	"github.com/hashicorp/go-hclog"
)

// notifier tells the front-end of configuration changes, on a goroutine of its own: a front-end that waits for an answer to
// its own request cannot answer ours meanwhile. One message at a time; changes that come meanwhile become one.
type notifier struct {
	log  hclog.Logger
	wake chan struct{}
	done chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex
	conn *Conn // nil: the front-end gave none
	acks bool
}

func newNotifier(log hclog.Logger) *notifier {
	n := &notifier{log: log, wake: make(chan struct{}, 1), done: make(chan struct{})}
	n.wg.Go(n.run)
	return n
}

// use takes over c for further messages; acks: each is acknowledged.
func (n *notifier) use(c *Conn, acks bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		_ = n.conn.Close()
	}
	n.conn, n.acks = c, acks
}

// changed asks for a message. It never blocks.
func (n *notifier) changed() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// close ends the goroutine.
func (n *notifier) close() {
	close(n.done)
	n.use(nil, false)
	n.wg.Wait()
}

func (n *notifier) run() {
	for {
		select {
		case <-n.done:
			return
		case <-n.wake:
		}
		n.mu.Lock()
		c, acks := n.conn, n.acks
		n.mu.Unlock()
		if c == nil {
			n.log.Debug("configuration changed, but the front-end takes no notice of it")
			continue
		}
		if err := tellConfigChange(c, acks); err != nil {
			select {
			case <-n.done: // the connection was closed by us
			default:
				n.log.Warn("front-end not told of a configuration change", "error", err)
			}
		}
	}
}

func tellConfigChange(c *Conn, acks bool) error {
	flags := FlagVersion
	if acks {
		flags |= FlagNeedReply
	}
	if err := c.Send(BackendConfigChange, flags, nil); err != nil || !acks {
		return err
	}
	m, err := c.Receive()
	if err != nil {
		return err
	}
	defer m.closeFDs()
	if m.Request != BackendConfigChange || m.Flags != replyFlags {
		return fmt.Errorf("%w: answer %d with flags %#x to CONFIG_CHANGE_MSG", ErrProtocol, uint32(m.Request), m.Flags)
	}
	status, err := DecodeU64(m.Payload)
	if err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("front-end answered %d", status)
	}
	return nil
}
