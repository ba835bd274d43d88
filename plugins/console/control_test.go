package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// drain takes all unsent messages.
func drain(c *control) (ms []message) {
	for {
		b, _, ok := c.take(1 << 16)
		if !ok {
			return ms
		}
		ms = append(ms, parseMessage(b))
	}
}

// script renders messages as "port:event=value payload".
func script(ms []message) (s []string) {
	names := map[uint16]string{
		virtio.ConsoleDeviceAdd: "add", virtio.ConsoleConsolePort: "console", virtio.ConsoleResize: "resize",
		virtio.ConsolePortOpen: "open", virtio.ConsolePortName: "name",
	}
	for _, m := range ms {
		line := fmt.Sprintf("%d:%s=%d", m.port, names[m.event], m.value)
		switch m.event {
		case virtio.ConsolePortName:
			line += " " + string(m.payload)
		case virtio.ConsoleResize:
			line += fmt.Sprintf(" %v", m.payload)
		}
		s = append(s, line)
	}
	return s
}

func expect(t *testing.T, c *control, want ...string) {
	t.Helper()
	if got := script(drain(c)); !slices.Equal(got, want) {
		t.Errorf("messages:\n %q\nwant:\n %q", got, want)
	}
}

// told are the driver's messages, in short.
func told(c *control, port uint32, event, value uint16) {
	c.handle(message{port, event, value, nil}.bytes())
}

func twoPorts() *control {
	return newControl([]controlPort{{console: true, cols: 80, rows: 25}, {name: "agent"}})
}

func TestControlHandshake(t *testing.T) {
	t.Parallel()
	c := twoPorts()
	open := map[int]bool{}
	c.guest = func(i int, o bool) { open[i] = o }
	c.setHostOpen(0, true)
	expect(t, c) // nothing before the driver is ready
	told(c, 0, virtio.ConsoleDeviceReady, 1)
	expect(t, c, "0:add=1", "1:add=1")
	told(c, 0, virtio.ConsolePortReady, 1)
	expect(t, c, "0:console=1", "0:resize=0 [80 0 25 0]", "0:open=1")
	told(c, 1, virtio.ConsolePortReady, 1)
	expect(t, c, "1:name=1 agent")
	c.setHostOpen(1, true)
	expect(t, c, "1:open=1")
	told(c, 0, virtio.ConsolePortOpen, 1)
	told(c, 1, virtio.ConsolePortOpen, 1)
	told(c, 1, virtio.ConsolePortOpen, 0)
	if !open[0] || open[1] {
		t.Errorf("open: %v", open)
	}
	c.resize(0, 132, 43)
	c.resize(1, 1, 1) // no console: nothing to tell
	expect(t, c, "0:resize=0 [132 0 43 0]")
	c.rowsFirst = true
	c.resize(0, 100, 30)
	expect(t, c, "0:resize=0 [30 0 100 0]")
	if n := c.counters(); n.ignored != 0 || n.received != 6 {
		t.Errorf("counters: %+v", n)
	}
	c.reset()
	if open[0] || open[1] || c.pending() {
		t.Error("the reset forgot nothing")
	}
	c.setHostOpen(1, false)
	expect(t, c)
}

func TestControlIgnoresNonsense(t *testing.T) {
	t.Parallel()
	c := twoPorts()
	var refused []int
	c.refused = func(i int) { refused = append(refused, i) }
	told(c, 0, virtio.ConsoleDeviceReady, 1)
	drain(c)
	c.handle(nil)
	c.handle(make([]byte, virtio.ConsoleControlSize-1))
	told(c, 2, virtio.ConsolePortReady, 1)
	told(c, 0xffffffff, virtio.ConsolePortOpen, 1)
	told(c, 1, virtio.ConsolePortOpen, 1) // not ready yet
	told(c, 0, virtio.ConsoleDeviceAdd, 1)
	told(c, 0, virtio.ConsolePortName, 1)
	told(c, 0, 0xffff, 1)
	if n := c.counters(); n.ignored != 8 {
		t.Errorf("%d ignored", n.ignored)
	}
	expect(t, c)
	told(c, 1, virtio.ConsolePortReady, 0)
	told(c, 1, virtio.ConsoleDeviceReady, 0)
	if !slices.Equal(refused, []int{1, -1}) {
		t.Errorf("refused: %v", refused)
	}
	expect(t, c)
}

func TestControlDeviceReadyTwice(t *testing.T) {
	t.Parallel()
	c := twoPorts()
	told(c, 0, virtio.ConsoleDeviceReady, 1)
	told(c, 0, virtio.ConsolePortReady, 1)
	told(c, 0, virtio.ConsolePortOpen, 1)
	told(c, 0, virtio.ConsoleDeviceReady, 1)
	expect(t, c, "0:add=1", "1:add=1") // what was meant for the first handshake is gone
	if c.ports[0].guestOpen {
		t.Error("port 0 is still open")
	}
}

func TestControlMergesWhatTheDriverHasNotSeen(t *testing.T) {
	t.Parallel()
	c := twoPorts()
	told(c, 0, virtio.ConsoleDeviceReady, 1)
	told(c, 1, virtio.ConsolePortReady, 1)
	drain(c)
	for range 1000 {
		c.setHostOpen(1, true)
		c.setHostOpen(1, false)
	}
	c.setHostOpen(1, true)
	expect(t, c, "1:open=1")
	c.setHostOpen(1, false)
	c.setHostOpen(1, true)
	expect(t, c, "1:open=0", "1:open=1")
	told(c, 0, virtio.ConsolePortReady, 1)
	drain(c)
	for i := range 1000 {
		c.resize(0, uint16(i), 1)
	}
	expect(t, c, "0:resize=0 [231 3 1 0]")
}

func TestControlIsBounded(t *testing.T) {
	t.Parallel()
	ports := make([]controlPort, maxPorts)
	for i := range ports {
		ports[i] = controlPort{name: fmt.Sprint("p", i), console: true, cols: 1, rows: 1}
	}
	c := newControl(ports)
	for i := range ports {
		c.setHostOpen(i, true)
	}
	told(c, 0, virtio.ConsoleDeviceReady, 1)
	for range 100 {
		for i := range ports {
			told(c, uint32(i), virtio.ConsolePortReady, 1)
		}
	}
	if n := len(drain(c)); n != 5*maxPorts {
		t.Errorf("%d unsent messages", n)
	}
}

func TestControlTakesOverFromAFormerInstance(t *testing.T) {
	t.Parallel()
	c := twoPorts()
	open := map[int]bool{}
	c.guest = func(i int, o bool) { open[i] = o }
	c.found()
	if !open[0] || !open[1] {
		t.Errorf("open: %v", open)
	}
	expect(t, c, "0:add=1", "1:add=1")
	c.setHostOpen(0, true)
	expect(t, c, "0:open=1")
	c.found()
	expect(t, c)
	told(c, 0, virtio.ConsolePortReady, 1) // as Linux answers a repeated PORT_ADD
	expect(t, c, "0:console=1", "0:resize=0 [80 0 25 0]", "0:open=1")

	c = twoPorts()
	told(c, 1, virtio.ConsolePortOpen, 0) // the first that this instance hears
	if c.ports[1].guestOpen || !c.ports[0].guestOpen {
		t.Errorf("ports: %+v", c.ports)
	}
}

func TestControlTakeLeavesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	c := twoPorts()
	told(c, 0, virtio.ConsoleDeviceReady, 1)
	if _, need, ok := c.take(7); ok || need != 8 {
		t.Errorf("need %d, ok %v", need, ok)
	}
	expect(t, c, "0:add=1", "1:add=1")
	if _, need, ok := c.take(100); ok || need != 0 {
		t.Errorf("need %d, ok %v", need, ok)
	}
}

// FuzzControl feeds the control protocol with a program: each 9 bytes are an operation and a driver's message.
func FuzzControl(f *testing.F) {
	ready := message{0, virtio.ConsoleDeviceReady, 1, nil}.bytes()
	f.Add(append([]byte{0}, ready...))
	f.Add(append(append([]byte{0}, ready...), 3, 1, 0, 0, 0, 3, 0, 1, 0))
	f.Fuzz(func(t *testing.T, program []byte) {
		c := newControl([]controlPort{{console: true, cols: 80, rows: 25}, {name: "agent"}, {name: "log", console: true}})
		open := make([]bool, len(c.ports))
		c.guest = func(i int, o bool) {
			if open[i] == o {
				t.Fatalf("port %d told twice", i)
			}
			open[i] = o
		}
		for len(program) > 0 {
			op := program[0]
			n := min(len(program), 9)
			arg := program[1:n]
			program = program[n:]
			switch op % 8 {
			case 0, 1, 2:
				c.handle(arg)
			case 3:
				if len(arg) > 0 {
					c.setHostOpen(int(arg[0])%len(c.ports), op&8 != 0)
				}
			case 4:
				if len(arg) > 2 {
					c.resize(int(arg[0])%len(c.ports), uint16(arg[1]), uint16(arg[2]))
				}
			case 5:
				if b, need, ok := c.take(int(op)); ok && (len(b) > int(op) || len(b) < virtio.ConsoleControlSize || need != len(b)) {
					t.Fatalf("took %d of %d bytes into %d", len(b), need, op)
				}
			case 6:
				c.found()
			case 7:
				c.reset()
			}
			if len(c.unsent) > unsentMax*len(c.ports) {
				t.Fatalf("%d unsent messages", len(c.unsent))
			}
			for i, p := range c.ports {
				if p.guestOpen != open[i] {
					t.Fatalf("port %d: open %v, told %v", i, p.guestOpen, open[i])
				}
			}
		}
	})
}
