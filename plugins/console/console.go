package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

const (
	// queueSize is the size of every queue, in entries: what Linux and User-Mode Linux take.
	queueSize = 256
	// maxPorts is what fits the 64 queues that User-Mode Linux can have.
	maxPorts = 31
	// controlMax is the longest control message of a driver that is looked at; longer ones are cut.
	controlMax = 64
)

// console is a virtio console device (VIRTIO 1.2, 5.3).
type console struct {
	env       *sdk.Env
	ports     []*port
	multiport bool     // offered
	ctl       *control // nil unless multiport

	mu         sync.Mutex
	cols, rows uint16 // of port 0
	features   virtio.Features
	running    int // queues
	stopPorts  context.CancelFunc
	portLoops  *sync.WaitGroup
}

var _ interface {
	sdk.QueueRunner
	sdk.ConfigReader
	sdk.ConfigWriter
	sdk.FeatureSetter
	sdk.Resetter
	sdk.StateRestorer
	sdk.Commander
	sdk.StatsReader
	io.Closer
} = (*console)(nil)

// Spec implements sdk.Device.
func (c *console) Spec() sdk.Spec {
	f, queues := virtio.FConsoleSize|virtio.FConsoleEmergWrite, 2
	if c.multiport {
		f |= virtio.FConsoleMultiport
		queues = 2 * (len(c.ports) + 1)
	}
	sizes := make([]uint16, queues)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sdk.Spec{Features: f, QueueSizes: sizes}
}

// ReadConfig implements sdk.ConfigReader (5.3.4).
func (c *console) ReadConfig() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := make([]byte, virtio.ConsoleCfgSize)
	binary.LittleEndian.PutUint16(b[virtio.ConsoleCfgCols:], c.cols)
	binary.LittleEndian.PutUint16(b[virtio.ConsoleCfgRows:], c.rows)
	binary.LittleEndian.PutUint32(b[virtio.ConsoleCfgMaxNrPorts:], uint32(len(c.ports))) //nolint:gosec // G115: at most 31
	return b
}

// WriteConfig implements sdk.ConfigWriter: a write to emerg_wr puts its low byte out on port 0 (5.3.4). The other fields
// are read-only; writes to them are ignored, as the driver would see.
func (c *console) WriteConfig(offset int, data []byte) error {
	if offset == virtio.ConsoleCfgEmergWr && len(data) > 0 {
		c.ports[0].emergencyWrite(data[0])
	}
	return nil
}

// SetFeatures implements sdk.FeatureSetter.
func (c *console) SetFeatures(f virtio.Features) error {
	c.mu.Lock()
	c.features = f
	c.mu.Unlock()
	if f.Has(virtio.FConsoleMultiport) {
		return nil // the control queues tell what is open
	}
	c.ports[0].open.set(true)
	return nil
}

// Reset implements sdk.Resetter.
func (c *console) Reset() error {
	for _, p := range c.ports {
		p.reset()
		p.open.set(false)
	}
	if c.ctl != nil {
		c.ctl.reset()
	}
	return nil
}

// RunQueue implements sdk.QueueRunner.
func (c *console) RunQueue(ctx context.Context, q *sdk.Queue) error {
	return c.runQueue(ctx, q, q.Index())
}

func (c *console) runQueue(ctx context.Context, q queue, index int) error {
	c.keep() // the sizes, and that the driver is known from its beginning
	c.enter()
	defer c.leave()
	switch index {
	case virtio.ConsoleQueueControlRx:
		return c.sendControl(ctx, q)
	case virtio.ConsoleQueueControlTx:
		return c.receiveControl(ctx, q)
	}
	p := c.ports[portOf(index)]
	if index%2 == 0 {
		return p.receive(ctx, q)
	}
	return p.transmit(ctx, q)
}

// portOf is the port that a queue, not one of the control queues, belongs to (5.3.2).
func portOf(index int) int {
	if index < 2 {
		return 0
	}
	return (index - 2) / 2
}

// enter runs the back-ends while any queue runs.
func (c *console) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running++; c.running > 1 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.stopPorts, c.portLoops = cancel, &sync.WaitGroup{}
	for i, p := range c.ports {
		c.portLoops.Go(func() {
			p.be.Run(ctx, func(open bool) {
				if c.ctl != nil {
					c.ctl.setHostOpen(i, open)
				}
			})
		})
	}
}

func (c *console) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running--; c.running > 0 {
		return
	}
	c.stopPorts()
	c.portLoops.Wait() // they take no lock of ours
}

// receiveControl serves the control transmitq: messages of the driver.
func (c *console) receiveControl(ctx context.Context, q queue) error {
	var b [controlMax]byte
	for {
		chain, ok, err := q.Pop()
		if err != nil {
			return err
		}
		if !ok {
			if err := q.Wait(ctx); err != nil {
				return stopped(ctx, err)
			}
			continue
		}
		n, _ := chain.Reader().Read(b[:]) // an empty one is a short message
		c.ctl.handle(b[:n])               // saved when it returns: what the driver sees as done is not forgotten
		if err := q.Finish(chain); err != nil {
			return err
		}
	}
}

// sendControl serves the control receiveq: messages for the driver.
func (c *console) sendControl(ctx context.Context, q queue) error {
	for {
		for !c.ctl.pending() {
			select {
			case <-c.ctl.wake:
			case <-ctx.Done():
				return takeOld(q, func(chain *virtq.Chain) error { return c.sendOne(q, chain) })
			}
		}
		chain, ok, err := q.Pop()
		if err != nil {
			return err
		}
		if !ok {
			if err := q.Wait(ctx); err != nil {
				return stopped(ctx, err)
			}
			continue
		}
		if err := c.sendOne(q, chain); err != nil {
			return err
		}
	}
}

func (c *console) sendOne(q queue, chain *virtq.Chain) error {
	w := chain.Writer()
	b, need, ok := c.ctl.take(w.Len())
	switch {
	case ok:
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("fill control buffer: %w", err)
		}
		if err := q.Finish(chain); err != nil {
			return err
		}
		c.ctl.sent()
		return nil
	case need == 0: // the driver began anew meanwhile
		if q.Unpop(chain) {
			return nil
		}
		// One that a former instance left cannot be given back unused. Linux reads what stands in it whatever its length, so it
		// gets a message that says nothing: for a port that there is not. As much as fits.
		_, _ = w.Write(message{port: ^uint32(0), event: virtio.ConsolePortOpen}.bytes())
	default: // too short (5.3.6.2.2): back to the driver unused, the message waits for a better one
		c.ports[0].badBuffers.Add(1)
	}
	return q.Finish(chain)
}

// refused reports that the driver could not use a port, or (-1) the device.
func (c *console) refused(port int) {
	what := "the device"
	if port >= 0 {
		what = fmt.Sprintf("port %d", port)
	}
	c.env.Fail(fmt.Errorf("the guest's driver could not set up %s", what), false)
}

// resizeArgs are the arguments of the command resize.
type resizeArgs struct {
	Port int    `config:"port" default:"0" min:"0" help:"Number of the port; 0 is the first console."`
	Cols uint16 `config:"cols,required" help:"Width in characters."`
	Rows uint16 `config:"rows,required" help:"Height in characters."`
}

// Command implements sdk.Commander.
func (c *console) Command(_ context.Context, name string, args json.RawMessage) (any, error) {
	if name != "resize" {
		return nil, fmt.Errorf("command %s: unknown: want resize", name)
	}
	a, err := sdk.DecodeArgs[resizeArgs](args)
	if err != nil {
		return nil, fmt.Errorf("command resize: %w", err)
	}
	if a.Port >= len(c.ports) {
		return nil, fmt.Errorf("command resize: port %d: there are ports 0 to %d", a.Port, len(c.ports)-1)
	}
	c.resize(a.Port, a.Cols, a.Rows)
	return map[string]int{"port": a.Port, "cols": int(a.Cols), "rows": int(a.Rows)}, nil
}

func (c *console) resize(port int, cols, rows uint16) {
	if c.ctl != nil {
		c.ctl.resize(port, cols, rows)
	}
	if port != 0 {
		return
	}
	c.mu.Lock()
	changed := c.cols != cols || c.rows != rows
	c.cols, c.rows = cols, rows
	c.mu.Unlock()
	if c.ctl == nil {
		c.keep()
	}
	if changed {
		c.env.ConfigChanged()
	}
}

// Statistics implements sdk.StatsReader: port<N>_<counter>, and control_<counter>.
func (c *console) Statistics() map[string]uint64 {
	m := map[string]uint64{}
	for i, p := range c.ports {
		prefix := "port" + strconv.Itoa(i) + "_"
		p.counters(func(name string, v uint64) { m[prefix+name] = v })
	}
	if c.ctl != nil {
		n := c.ctl.counters()
		m["control_received"], m["control_sent"], m["control_ignored"] = n.received, n.sent, n.ignored
	}
	return m
}

// Close implements io.Closer.
func (c *console) Close() error {
	var errs []error
	for _, p := range c.ports {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}
