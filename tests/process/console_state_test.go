package process

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// consoleDriver is a driver of a console with control queues, just enough to open and close ports.
type consoleDriver struct {
	t *testing.T
	m *loopback.Machine
	// buffers are those that the device may fill, by queue and head.
	buffers map[int]map[uint16]driver.Buffer
	input   map[int]string
	heard   []string // control messages: "port:event=value"
}

func newConsoleDriver(t *testing.T, m *loopback.Machine) *consoleDriver {
	t.Helper()
	d := &consoleDriver{t: t, m: m, buffers: map[int]map[uint16]driver.Buffer{}, input: map[int]string{}}
	for i := 0; i < len(m.Queues()); i += 2 { // receiveqs
		d.buffers[i] = map[uint16]driver.Buffer{}
		for range 16 {
			d.offer(i)
		}
	}
	return d
}

// offer gives the device a buffer.
func (d *consoleDriver) offer(queue int) {
	d.t.Helper()
	b, err := d.m.Arena().Buffer(256)
	check(d.t, err)
	q := d.m.Queues()[queue]
	head, ok := q.Add(nil, []driver.Buffer{b})
	if !ok {
		d.t.Fatalf("queue %d is full", queue)
	}
	d.buffers[queue][head] = b
	check(d.t, q.Send())
}

// say sends a control message and waits until the device has finished it.
func (d *consoleDriver) say(port uint32, event, value uint16) {
	d.t.Helper()
	b, err := d.m.Arena().Buffer(virtio.ConsoleControlSize)
	check(d.t, err)
	p := d.m.Arena().Bytes(b)
	binary.LittleEndian.PutUint32(p, port)
	binary.LittleEndian.PutUint16(p[4:], event)
	binary.LittleEndian.PutUint16(p[6:], value)
	q := d.m.Queues()[virtio.ConsoleQueueControlTx]
	if _, ok := q.Add([]driver.Buffer{b}, nil); !ok {
		d.t.Fatal("the control transmitq is full")
	}
	check(d.t, q.Send())
	d.until("a control message to be taken", func() bool { _, _, ok := q.Used(); return ok })
}

// collect takes what the device filled.
func (d *consoleDriver) collect() {
	d.t.Helper()
	for i, buffers := range d.buffers {
		for {
			head, n, ok := d.m.Queues()[i].Used()
			if !ok {
				break
			}
			got := d.m.Arena().Bytes(buffers[head])[:n]
			delete(buffers, head)
			if i == virtio.ConsoleQueueControlRx {
				d.heard = append(d.heard, fmt.Sprintf("%d:%d=%d", binary.LittleEndian.Uint32(got), binary.LittleEndian.Uint16(got[4:]), binary.LittleEndian.Uint16(got[6:])))
			} else {
				d.input[i] += string(got)
			}
			d.offer(i)
		}
	}
}

func (d *consoleDriver) until(what string, ok func() bool) {
	d.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		d.collect()
		if time.Now().After(end) {
			d.t.Fatalf("never happened: %s; control messages %q, input %v", what, d.heard, d.input)
		}
	}
}

func (d *consoleDriver) hears(message string) {
	d.t.Helper()
	d.until("control message "+message, func() bool { return slices.Contains(d.heard, message) })
}

const (
	openedByHost = virtio.ConsolePortOpen
	portName     = virtio.ConsolePortName
)

// killAndAwait kills the plugin and waits until another serves the device.
func (r *rig) killAndAwait() {
	r.t.Helper()
	before := r.inst.Load()
	check(r.t, syscall.Kill(before.PID(), syscall.SIGKILL))
	for end := time.Now().Add(time.Minute); r.inst.Load() == before || r.dev.State() != device.StateReady; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("no other instance: %v, %v", r.dev.State(), r.dev.Cause())
		}
	}
}

// Which ports the driver has open is what it said to an instance that is dead.
func TestProcessConsolePortsStayAsTheyAreWhenThePluginIsKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	r := open(t, "console", map[string]any{"backend": "null", "port": []any{
		map[string]any{"name": "closed", "socket": path("closed")},
		map[string]any{"name": "open", "socket": path("open")},
		map[string]any{"name": "never", "socket": path("never")},
	}})
	const closed, opened, never = 1, 2, 3
	rx := func(port int) int { return 2 * (port + 1) }
	d := newConsoleDriver(t, r.drive(loopback.Options{QueueSize: 64}))
	dial := func(name string) net.Conn {
		t.Helper()
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path(name))
		check(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	write := func(c net.Conn, s string) {
		t.Helper()
		_, err := io.WriteString(c, s)
		check(t, err)
	}

	d.say(0, virtio.ConsoleDeviceReady, 1)
	for port := range uint32(3) { // all but the last
		d.say(port, virtio.ConsolePortReady, 1)
	}
	d.say(closed, virtio.ConsolePortOpen, 1)
	d.say(opened, virtio.ConsolePortOpen, 1)
	d.say(closed, virtio.ConsolePortOpen, 0)
	_, err := r.dev.Command(t.Context(), "resize", []byte(`{"port":0,"cols":132,"rows":43}`))
	check(t, err)
	first := dial("open")
	d.hears(fmt.Sprintf("%d:%d=1", opened, openedByHost))
	write(first, "before")
	d.until("input", func() bool { return d.input[rx(opened)] == "before" })
	d.until("all names", func() bool { return slices.Contains(d.heard, fmt.Sprintf("%d:%d=1", opened, portName)) })

	for round := range 3 {
		d.heard = nil
		r.killAndAwait()
		// The client of the socket is gone with the process, and somebody else comes.
		d.hears(fmt.Sprintf("%d:%d=0", opened, openedByHost))
		a, b, c := dial("closed"), dial("open"), dial("never")
		d.hears(fmt.Sprintf("%d:%d=1", opened, openedByHost))
		d.hears(fmt.Sprintf("%d:%d=1", closed, openedByHost))
		write(a, "to the closed port")
		write(c, "to the port that is not ready")
		write(b, "after")
		want := "before" + strings.Repeat("after", round+1)
		d.until("input", func() bool { return d.input[rx(opened)] == want })
		if len(d.input[rx(closed)])+len(d.input[rx(never)]) > 0 {
			t.Fatalf("round %d: input came through ports that are not open: %v", round, d.input)
		}
		for _, m := range d.heard { // nothing of the handshake again, and nothing for the port that is not ready
			if m[2] != '0'+openedByHost || m[0] == '0'+never {
				t.Errorf("round %d: the device told %q", round, d.heard)
				break
			}
		}
		if s := r.dev.ConfigSpace(); binary.LittleEndian.Uint16(s) != 132 || binary.LittleEndian.Uint16(s[2:]) != 43 {
			t.Errorf("round %d: configuration space %v", round, s)
		}
		_, _ = a.Close(), c.Close() // b stays, until the next death
		d.hears(fmt.Sprintf("%d:%d=0", closed, openedByHost))
	}

	// What the driver does now is heard as ever.
	d.heard = nil
	c := dial("closed")
	d.say(closed, virtio.ConsolePortOpen, 1)
	write(c, ".")
	d.until("input of the port that was opened", func() bool { return len(d.input[rx(closed)]) > 0 })
	d.say(never, virtio.ConsolePortReady, 1)
	d.hears(fmt.Sprintf("%d:%d=1", never, portName))

	// A reset forgets it all, although the plugin dies after it.
	check(t, r.dev.Reset(t.Context()))
	r.killAndAwait()
	if _, ok := r.dev.Negotiated(); ok {
		t.Error("features survive a reset")
	}
}

// After a reset nothing is open, whichever instance served before: another driver begins.
func TestProcessConsoleForgetsItsPortsAtAReset(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]func(t *testing.T, r *rig, m *loopback.Machine){
		"reset, then killed": func(t *testing.T, r *rig, m *loopback.Machine) {
			t.Helper()
			check(t, m.Close(t.Context())) // resets
			r.killAndAwait()
		},
		"killed, then reset": func(t *testing.T, r *rig, m *loopback.Machine) {
			t.Helper()
			r.killAndAwait()
			check(t, m.Close(t.Context()))
		},
		"reset while no instance is there": func(t *testing.T, r *rig, m *loopback.Machine) {
			t.Helper()
			before := r.inst.Load()
			check(t, syscall.Kill(before.PID(), syscall.SIGKILL))
			check(t, r.dev.Reset(t.Context())) // at once: nobody is there to hear of it
			check(t, m.Close(t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			r := open(t, "console", map[string]any{"backend": "null", "port": []any{map[string]any{"name": "p", "socket": path}}})
			m, err := loopback.Open(t.Context(), r.dev, loopback.Options{QueueSize: 64})
			check(t, err)
			d := newConsoleDriver(t, m)
			d.say(0, virtio.ConsoleDeviceReady, 1)
			d.say(1, virtio.ConsolePortReady, 1)
			d.say(1, virtio.ConsolePortOpen, 1)
			d.hears(fmt.Sprintf("1:%d=1", portName))
			between(t, r, m)

			d = newConsoleDriver(t, r.drive(loopback.Options{QueueSize: 64}))
			c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
			check(t, err)
			defer func() { _ = c.Close() }()
			_, err = io.WriteString(c, "x")
			check(t, err)
			for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
				d.collect() // of what must not come
			}
			if len(d.input)+len(d.heard) > 0 {
				t.Errorf("a driver that has said nothing yet has input %v, control messages %q", d.input, d.heard)
			}
			d.say(0, virtio.ConsoleDeviceReady, 1)
			d.hears(fmt.Sprintf("1:%d=1", virtio.ConsoleDeviceAdd))
			d.say(1, virtio.ConsolePortReady, 1)
			d.hears(fmt.Sprintf("1:%d=1", portName))
			d.hears(fmt.Sprintf("1:%d=1", openedByHost))
			if len(d.input) > 0 {
				t.Errorf("input before the new driver has opened the port: %v", d.input)
			}
			d.say(1, virtio.ConsolePortOpen, 1)
			d.until("input", func() bool { return d.input[4] == "x" })
		})
	}
}
