// Command echo is a made-up virtio device that shows what entropy does not need: settings, chains that are completed later,
// a queue whose chains wait for something outside, a configuration space, and commands.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// Queue 0 gives back what the driver puts in. Queue 1 holds the driver's buffers for announcements.
const (
	queueEcho = iota
	queueNews
)

// newsMax is how many announcements may wait for the driver's buffers.
const newsMax = 64

// settings are what a configuration may say of an echo.
type settings struct {
	Delay  time.Duration `config:"delay" default:"0s" max:"10s" help:"How long an echo takes."`
	Prefix string        `config:"prefix" help:"What announcements begin with."`
}

type echo struct {
	env *sdk.Env
	cfg settings

	mu   sync.Mutex
	news []string
	told uint32
	wake chan struct{} // holds a token when news grew
}

func newEcho(env *sdk.Env, cfg settings) (sdk.Device, error) {
	if len(cfg.Prefix) > 64 {
		return nil, sdk.SettingError("prefix", "%d bytes: at most 64", len(cfg.Prefix))
	}
	return &echo{env: env, cfg: cfg, wake: make(chan struct{}, 1)}, nil
}

func (*echo) Spec() sdk.Spec { return sdk.Spec{QueueSizes: []uint16{64, 16}} }

// RunQueue serves one queue until ctx ends.
func (e *echo) RunQueue(ctx context.Context, q *sdk.Queue) error {
	if q.Index() == queueEcho {
		return sdk.Serve(ctx, q, e.handle)
	}
	return e.announce(ctx, q)
}

// handle answers a chain, at once or later. The driver may change its bytes at any time, so they are read once.
func (e *echo) handle(_ context.Context, q *sdk.Queue, c *virtq.Chain) error {
	_, err := c.Writer().ReadFrom(c.Reader())
	if err != nil || e.cfg.Delay == 0 {
		return err
	}
	time.AfterFunc(e.cfg.Delay, func() {
		if err := q.Finish(c); err != nil {
			e.env.Fail(fmt.Errorf("finish an echo: %w", err), true)
		}
	})
	return sdk.ErrLater
}

// announce fills the driver's buffers when there is something to tell. A buffer is taken only then: what is not taken is the
// next instance's, should this one die.
func (e *echo) announce(ctx context.Context, q *sdk.Queue) error {
	for {
		text, ok := e.next()
		if !ok {
			select {
			case <-e.wake:
				continue
			case <-ctx.Done():
				return leave(q)
			}
		}
		c, ok, err := q.Pop()
		if err != nil {
			return err
		}
		if !ok {
			if err := q.Wait(ctx); err != nil {
				return err // mostly that the queue is to stop; the announcement waits for the next start
			}
			continue
		}
		// A buffer that is too short gets as much as fits.
		_, _ = c.Writer().Write([]byte(text))
		if err := q.Finish(c); err != nil {
			return err
		}
		e.delivered()
	}
}

// leave returns, empty, the buffers that a former instance had taken: whoever starts the queue next would not get them.
func leave(q *sdk.Queue) error {
	for q.Resubmitted() > 0 {
		c, _, err := q.Pop()
		if err != nil {
			return err
		}
		if err := q.Finish(c); err != nil {
			return err
		}
	}
	return nil
}

func (e *echo) next() (string, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.news) == 0 {
		return "", false
	}
	return e.news[0], true
}

// delivered drops the announcement and counts it in the configuration space.
func (e *echo) delivered() {
	e.mu.Lock()
	e.news, e.told = e.news[1:], e.told+1
	err := e.env.SaveState(append([]byte{stateFormat}, binary.LittleEndian.AppendUint32(nil, e.told)...))
	e.mu.Unlock()
	if err != nil {
		e.env.Fail(err, false)
	}
	e.env.ConfigChanged()
}

// stateFormat begins the state; another version of this program may find it.
const stateFormat = 1

// RestoreState goes on counting where an instance that died had stopped.
func (e *echo) RestoreState(b []byte) error {
	if len(b) != 5 || b[0] != stateFormat {
		return fmt.Errorf("state of %d bytes is not of this version: want format %d", len(b), stateFormat)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = binary.LittleEndian.Uint32(b[1:])
	return nil
}

// ReadConfig is the configuration space: le32, the number of announcements so far.
func (e *echo) ReadConfig() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	return binary.LittleEndian.AppendUint32(nil, e.told)
}

// sayArgs are the arguments of the command say.
type sayArgs struct {
	Text string `config:"text,required" help:"What to announce."`
}

// Command runs say.
func (e *echo) Command(_ context.Context, name string, args json.RawMessage) (any, error) {
	a, err := sdk.DecodeArgs[sayArgs](args)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.news) == newsMax {
		return nil, fmt.Errorf("command %s: %d announcements wait for the driver already", name, newsMax)
	}
	e.news = append(e.news, e.cfg.Prefix+a.Text)
	select {
	case e.wake <- struct{}{}:
	default:
	}
	return map[string]int{"waiting": len(e.news)}, nil
}

func plugin() sdk.Plugin[settings] {
	return sdk.Plugin[settings]{
		Name: "echo", Version: "0.1.0", Device: 4000, // not assigned by the specification
		Description: "Gives back what it gets, and announces what it is told.",
		State:       true,
		Commands:    []sdk.CommandSpec{{Name: "say", Description: "Announce something to the driver.", Args: sayArgs{}}},
		New:         newEcho,
	}
}

func main() { sdk.Main(plugin()) }
