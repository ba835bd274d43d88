package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// The state is what a driver says once and an instance that dies must not forget (sdk.StateRestorer):
//
//	0 u8 format = 1 · 1 u8 flags · 2 u8 number of ports · 3 u16 number of unsent messages
//	for each port:     u8 flags · u16 columns · u16 rows
//	for each message:  u8 port · u8 event · u8 value
//
// little-endian. What messages carry besides is made anew from names and sizes.
const (
	stateFormat      = 1
	stateHeader      = 5
	statePortSize    = 5
	stateMessageSize = 3

	stateHeard = 1 << 0 // the driver has said DEVICE_READY

	portAdded     = 1 << 0
	portReady     = 1 << 1
	portGuestOpen = 1 << 2
	portHostOpen  = 1 << 3 // as the driver was told, or is told by an unsent message
)

// state encodes what this side of the control queues knows. A message that was put into a buffer and is not finished counts as
// unsent: the next instance sends it again, at which drivers shrug. The caller holds mu.
func (c *control) state() []byte {
	messages := c.unsent
	if c.sending != nil {
		messages = append([]message{*c.sending}, messages...)
	}
	b := make([]byte, 0, stateHeader+statePortSize*len(c.ports)+stateMessageSize*len(messages))
	b = append(b, stateFormat, flag(c.heard, stateHeard), byte(len(c.ports))) //nolint:gosec // G115: at most 31
	b = binary.LittleEndian.AppendUint16(b, uint16(len(messages)))            //nolint:gosec // G115: at most unsentMax a port, and one
	for _, p := range c.ports {
		b = append(b, flag(p.added, portAdded)|flag(p.ready, portReady)|flag(p.guestOpen, portGuestOpen)|flag(p.hostOpen, portHostOpen))
		b = binary.LittleEndian.AppendUint16(b, p.cols)
		b = binary.LittleEndian.AppendUint16(b, p.rows)
	}
	for _, m := range messages {
		b = append(b, byte(m.port), byte(m.event), byte(m.value)) //nolint:gosec // G115: ours, all small
	}
	return b
}

func flag(set bool, bit byte) byte {
	if set {
		return bit
	}
	return 0
}

// parseState decodes and checks a state of a device with n ports.
func parseState(b []byte, n int) (heard bool, ports []controlPort, messages []message, err error) {
	if len(b) == 0 || b[0] != stateFormat {
		return false, nil, nil, fmt.Errorf("state of %d bytes: its format is not %d: it is of another version of this plugin", len(b), stateFormat)
	}
	if len(b) < stateHeader || int(b[2]) != n {
		return false, nil, nil, fmt.Errorf("state of %d bytes: it is not of a console with %d ports", len(b), n)
	}
	count := int(binary.LittleEndian.Uint16(b[3:]))
	if want := stateHeader + statePortSize*n + stateMessageSize*count; len(b) != want || count > (unsentMax+1)*n {
		return false, nil, nil, fmt.Errorf("state of %d bytes: %d ports and %d messages: want %d", len(b), n, count, want)
	}
	heard = b[1]&stateHeard != 0
	b = b[stateHeader:]
	for range n {
		ports = append(ports, controlPort{
			added: b[0]&portAdded != 0, ready: b[0]&portReady != 0, guestOpen: b[0]&portGuestOpen != 0, hostOpen: b[0]&portHostOpen != 0,
			cols: binary.LittleEndian.Uint16(b[1:]), rows: binary.LittleEndian.Uint16(b[3:]),
		})
		b = b[statePortSize:]
	}
	for ; len(b) > 0; b = b[stateMessageSize:] {
		m := message{port: uint32(b[0]), event: uint16(b[1]), value: uint16(b[2])}
		switch m.event {
		case virtio.ConsoleDeviceAdd, virtio.ConsoleConsolePort, virtio.ConsoleResize, virtio.ConsolePortOpen, virtio.ConsolePortName:
		default:
			return false, nil, nil, fmt.Errorf("state: unsent message of event %d: a device does not send it", m.event)
		}
		if int(m.port) >= n {
			return false, nil, nil, fmt.Errorf("state: unsent message for port %d of %d", m.port, n)
		}
		messages = append(messages, m)
	}
	return heard, ports, messages, nil
}

// restore takes over from a former instance. guest is told of the ports that the driver has open if the driver uses the control
// queues at all.
func (c *control) restore(heard bool, ports []controlPort, messages []message, used bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard, c.exact, c.unsent = heard, true, nil
	for i := range c.ports {
		p, was := &c.ports[i], &ports[i]
		p.added, p.ready, p.guestOpen, p.hostOpen = was.added, was.ready, was.guestOpen, was.hostOpen
		p.cols, p.rows = was.cols, was.rows
		if used && p.guestOpen {
			c.guest(i, true)
		}
	}
	for _, m := range messages {
		switch p := &c.ports[m.port]; m.event {
		case virtio.ConsoleResize:
			m.payload = c.sizeOf(p)
		case virtio.ConsolePortName:
			m.payload = []byte(p.name)
		}
		c.append(m)
	}
}

// keep saves the state. The caller holds mu.
func (c *control) keep() {
	if c.save != nil {
		c.save(c.state())
	}
}

// RestoreState implements sdk.StateRestorer.
func (c *console) RestoreState(b []byte) error {
	heard, ports, messages, err := parseState(b, len(c.ports))
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.cols, c.rows = ports[0].cols, ports[0].rows
	used := c.features.Has(virtio.FConsoleMultiport)
	c.mu.Unlock()
	switch {
	case c.ctl != nil:
		c.ctl.restore(heard, ports, messages, used)
	case heard || len(messages) > 0:
		return errors.New("state: it is of a console with control queues")
	}
	return nil
}

// keep saves the state.
func (c *console) keep() {
	if c.ctl != nil {
		c.ctl.mu.Lock()
		defer c.ctl.mu.Unlock()
		c.ctl.keep()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	only := control{ports: []controlPort{{cols: c.cols, rows: c.rows}}}
	c.save(only.state())
}

func (c *console) save(b []byte) {
	if err := c.env.SaveState(b); err != nil {
		c.env.Fail(fmt.Errorf("a crash will forget which ports are open: %w", err), false)
	}
}
