package main

import (
	"encoding/binary"
	"sync"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// message is one control message (VIRTIO 1.2, 5.3.6.2), either way.
type message struct {
	port    uint32
	event   uint16
	value   uint16
	payload []byte
}

// bytes encodes m as the driver reads it.
func (m message) bytes() []byte {
	b := make([]byte, virtio.ConsoleControlSize, virtio.ConsoleControlSize+len(m.payload))
	binary.LittleEndian.PutUint32(b, m.port)
	binary.LittleEndian.PutUint16(b[4:], m.event)
	binary.LittleEndian.PutUint16(b[6:], m.value)
	return append(b, m.payload...)
}

// unsentMax is the most unsent messages of one port: one of each kind, and two PORT_OPEN.
const unsentMax = 6

// controlPort is what the control queues know of one port.
type controlPort struct {
	name    string
	console bool

	// The driver's side, forgotten at a reset.
	added, ready, guestOpen bool
	// The host's side.
	hostOpen   bool
	cols, rows uint16
}

// controlCounters count what passed the control queues.
type controlCounters struct {
	received, sent, ignored uint64
}

// control is the protocol of the control queues without the queues: messages of the driver go in by handle, messages for
// the driver come out by take, in order. A message merges with an unsent one of its port and kind, which tells the driver
// the same, so at most unsentMax messages a port wait. Safe for concurrent use.
type control struct {
	// guest is told when the driver opens or closes a port; under mu, so in order.
	guest func(port int, open bool)
	// refused is told of a port that the driver could not use, or of the whole device (port -1); under mu.
	refused func(port int)
	// rowsFirst: RESIZE carries rows before columns, against 5.3.6.2, as many Linux drivers read it.
	rowsFirst bool
	// save keeps the state for an instance after this one; under mu, so in order. nil: nobody does.
	save func(state []byte)

	mu    sync.Mutex
	ports []controlPort
	// heard: the driver was heard of since the last reset, or evidence found that it went through DEVICE_READY with a
	// former instance of this plugin. exact: no evidence is needed, for this instance was there from the driver's beginning, or has
	// the state of one that was.
	heard, exact bool
	unsent       []message
	sending      *message // taken, and its buffer not finished
	counts       controlCounters

	// wake holds a token when unsent grew.
	wake chan struct{}
}

func newControl(ports []controlPort) *control {
	return &control{
		guest: func(int, bool) {}, refused: func(int) {},
		ports: ports,
		wake:  make(chan struct{}, 1),
	}
}

// handle takes one message of the driver. What makes no sense is counted and ignored.
func (c *control) handle(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.keep()
	c.counts.received++
	if len(b) < virtio.ConsoleControlSize {
		c.counts.ignored++
		return
	}
	id, event, value := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:])
	if event == virtio.ConsoleDeviceReady {
		c.deviceReady(value)
		return
	}
	if !c.heard && !c.exact { // it spoke with a former instance
		c.resume()
	}
	if uint64(id) >= uint64(len(c.ports)) {
		c.counts.ignored++
		return
	}
	p := &c.ports[id]
	switch {
	case event == virtio.ConsolePortReady && p.added:
		c.portReady(int(id), value)
	case event == virtio.ConsolePortOpen && p.ready:
		c.setGuest(int(id), value != 0)
	default:
		c.counts.ignored++
	}
}

// deviceReady begins the handshake, again if the driver says so twice. Value 0: the driver could not set itself up.
func (c *control) deviceReady(value uint16) {
	c.forget()
	c.heard = true
	if value == 0 {
		c.refused(-1)
		return
	}
	for i := range c.ports {
		c.addPort(i)
	}
}

func (c *control) addPort(i int) {
	c.ports[i].added = true
	c.send(i, virtio.ConsoleDeviceAdd, 1, nil)
}

func (c *control) portReady(i int, value uint16) {
	p := &c.ports[i]
	if value == 0 {
		p.ready = false
		c.setGuest(i, false)
		c.refused(i)
		return
	}
	p.ready = true
	if p.console {
		c.send(i, virtio.ConsoleConsolePort, 1, nil)
		c.sendSize(i)
	}
	if p.name != "" {
		c.send(i, virtio.ConsolePortName, 1, []byte(p.name))
	}
	if p.hostOpen {
		c.sendOpen(i)
	}
}

func (c *control) setGuest(i int, open bool) {
	if c.ports[i].guestOpen != open {
		c.ports[i].guestOpen = open
		c.guest(i, open)
	}
}

// found is called when a port's queue shows that the driver uses it already.
func (c *control) found() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.heard && !c.exact {
		c.resume()
		c.keep()
	}
}

// resume is for a device whose driver shook hands with a former instance of this plugin that left no state. The
// handshake is repeated, which drivers answer or ignore, and the ports are taken to be open, since a driver that has a
// port open will not say so again.
func (c *control) resume() {
	c.heard = true
	for i := range c.ports {
		c.addPort(i)
		c.ports[i].ready = true
		if c.ports[i].hostOpen {
			c.sendOpen(i)
		}
		c.setGuest(i, true)
	}
}

// reset forgets the driver's side and all unsent messages.
func (c *control) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget()
	c.exact = true
}

func (c *control) forget() {
	c.heard = false
	c.unsent, c.sending = nil, nil
	for i := range c.ports {
		c.setGuest(i, false)
		c.ports[i].added, c.ports[i].ready = false, false
	}
}

// setHostOpen says whether somebody is at the host's end of a port.
func (c *control) setHostOpen(i int, open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &c.ports[i]
	if p.hostOpen == open {
		return
	}
	p.hostOpen = open
	if p.ready {
		c.sendOpen(i)
	}
	c.keep()
}

// resize sets a port's size, in characters.
func (c *control) resize(i int, cols, rows uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &c.ports[i]
	p.cols, p.rows = cols, rows
	if p.ready && p.console {
		c.sendSize(i)
	}
	c.keep()
}

func (c *control) sendSize(i int) {
	p := &c.ports[i]
	if p.cols == 0 && p.rows == 0 {
		return
	}
	c.send(i, virtio.ConsoleResize, 0, c.sizeOf(p))
}

// sizeOf is the payload of RESIZE.
func (c *control) sizeOf(p *controlPort) []byte {
	first, second := p.cols, p.rows
	if c.rowsFirst {
		first, second = second, first
	}
	return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, first), second)
}

// sendOpen tells the host's side of port i. Two unsent ones (a close and an open) show the driver that something
// happened; a third would undo the second, so it removes it.
func (c *control) sendOpen(i int) {
	value := uint16(0)
	if c.ports[i].hostOpen {
		value = 1
	}
	last, n := -1, 0
	for k, m := range c.unsent {
		if m.port == uint32(i) && m.event == virtio.ConsolePortOpen { //nolint:gosec // G115: at most 31 ports
			last, n = k, n+1
		}
	}
	switch {
	case n > 0 && c.unsent[last].value == value:
		return
	case n >= 2:
		c.unsent = append(c.unsent[:last], c.unsent[last+1:]...)
	default:
		c.append(message{uint32(i), virtio.ConsolePortOpen, value, nil}) //nolint:gosec // G115: at most 31 ports
	}
}

// send queues a message; an unsent one of the same port and event takes the new contents instead.
func (c *control) send(i int, event, value uint16, payload []byte) {
	m := message{uint32(i), event, value, payload} //nolint:gosec // G115: at most 31 ports
	for k := range c.unsent {
		if c.unsent[k].port == m.port && c.unsent[k].event == event {
			c.unsent[k] = m
			return
		}
	}
	c.append(m)
}

func (c *control) append(m message) {
	c.unsent = append(c.unsent, m)
	signal(c.wake)
}

// pending tells whether take would return a message.
func (c *control) pending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.unsent) > 0
}

// take removes the oldest unsent message and returns its bytes. ok is false, and nothing removed, if there is none or it
// is longer than room bytes; need is then its length, 0 for none. To be followed by sent when the driver has it.
func (c *control) take(room int) (b []byte, need int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.unsent) == 0 {
		return nil, 0, false
	}
	b = c.unsent[0].bytes()
	if len(b) > room {
		return nil, len(b), false
	}
	m := c.unsent[0]
	c.sending, c.unsent = &m, c.unsent[1:]
	c.counts.sent++
	return b, len(b), true
}

// sent tells that the driver has the message that take returned.
func (c *control) sent() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sending = nil
	c.keep()
}

// counters returns the counts so far.
func (c *control) counters() controlCounters {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts
}

// signal leaves a token for whoever waits on ch.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
