package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/virtplug/virtplug/sdk"
)

// settings are the console's settings; those of port 0 stand at the top.
type settings struct {
	Backend     string       `config:"backend" oneof:"stdio|pty|socket|file|null" help:"What port 0, the first console (hvc0), is connected to. Default: what stdio, socket or file gives."`
	Stdio       sdk.File     `config:"stdio" file:"any_kind,write" help:"A connected stream socket for backend stdio; the launcher gives the one that is connected to its terminal."`
	Socket      sdk.Listener `config:"socket" help:"Path of the unix socket of backend socket; one client at a time, others wait."`
	File        sdk.File     `config:"file" file:"append,create" help:"Log file of backend file; output is appended, there is no input."`
	Link        string       `config:"link" help:"Absolute path of a symbolic link to the pseudo-terminal of backend pty."`
	Unconnected string       `config:"unconnected" default:"keep" oneof:"keep|drop|block" help:"What happens to output of pty and socket while nobody is connected: the newest bytes are kept for whoever comes, or it is dropped, or the port waits (Linux then spins in console output)."`
	Backlog     sdk.Size     `config:"backlog" default:"256KiB" max:"64MiB" help:"How many bytes unconnected = \"keep\" keeps."`
	Name        string       `config:"name" help:"Name of port 0, shown below /dev/virtio-ports; needs multiport."`
	Cols        uint16       `config:"cols" default:"0" help:"Width of port 0 in characters until it is resized; 0: unknown."`
	Rows        uint16       `config:"rows" default:"0" help:"Height of port 0 in characters until it is resized; 0: unknown."`
	Multiport   bool         `config:"multiport" default:"true" several:"false" help:"Offer the control queues (VIRTIO_CONSOLE_F_MULTIPORT). Without them there are no names and no first size, and Linux drops input that arrives while its driver starts. Further ports need them. Linux 6.1, and others without its fix of 2023, mixes up the consoles of several devices that have them: make several consoles ports of one device."`
	ResizeOrder string       `config:"resize_order" default:"specification" oneof:"specification|rows_first" help:"Order of the sizes in the control message that resizes a console: as in VIRTIO 1.2, or as Linux drivers before 2025 read it. Only used with multiport."`
	Ports       []portBlock  `config:"port" max:"30" help:"A further port."`
}

// portBlock is a further port.
type portBlock struct {
	Name        string       `config:"name,label" help:"The port's name, shown below /dev/virtio-ports."`
	Console     bool         `config:"console" default:"false" help:"A console (hvc1, …) instead of a plain port (/dev/vport0p1, …)."`
	Backend     string       `config:"backend" oneof:"stdio|pty|socket|file|null" help:"What the port is connected to; see backend of port 0."`
	Stdio       sdk.File     `config:"stdio" file:"any_kind,write" help:"A connected stream socket for backend stdio."`
	Socket      sdk.Listener `config:"socket" help:"Path of the unix socket of backend socket."`
	File        sdk.File     `config:"file" file:"append,create" help:"Log file of backend file."`
	Link        string       `config:"link" help:"Absolute path of a symbolic link to the pseudo-terminal of backend pty."`
	Unconnected string       `config:"unconnected" default:"keep" oneof:"keep|drop|block" help:"What happens to output while nobody is connected."`
	Backlog     sdk.Size     `config:"backlog" default:"256KiB" max:"64MiB" help:"How many bytes unconnected = \"keep\" keeps."`
	Cols        uint16       `config:"cols" default:"0" help:"Width of a console in characters until it is resized."`
	Rows        uint16       `config:"rows" default:"0" help:"Height of a console in characters until it is resized."`
}

// nameMax is the longest port name: what Linux's sysfs shows without trouble; arbitrary otherwise.
const nameMax = 128

// blocks returns all ports' settings, port 0 first.
func (s *settings) blocks() []portBlock {
	first := portBlock{
		Name: s.Name, Console: true, Backend: s.Backend, Stdio: s.Stdio, Socket: s.Socket, File: s.File, Link: s.Link,
		Unconnected: s.Unconnected, Backlog: s.Backlog, Cols: s.Cols, Rows: s.Rows,
	}
	return append([]portBlock{first}, s.Ports...)
}

// newConsole makes the device.
func newConsole(env *sdk.Env, s settings) (sdk.Device, error) {
	return build(env, s)
}

func build(env *sdk.Env, s settings) (_ *console, err error) {
	blocks := s.blocks()
	c := &console{env: env, multiport: s.Multiport || len(blocks) > 1, cols: s.Cols, rows: s.Rows}
	if s.Name != "" && !c.multiport {
		return nil, sdk.SettingError("name", "only ports of a console with multiport = true have names")
	}
	undo := func() {
		for _, p := range c.ports {
			err = errors.Join(err, p.close())
		}
	}
	ctl := make([]controlPort, len(blocks))
	seen := map[string]bool{}
	for i, b := range blocks {
		prefix := ""
		if i > 0 {
			prefix = fmt.Sprintf("port.%d.", i-1)
		}
		if err := checkName(b.Name, i > 0, seen); err != nil {
			undo()
			return nil, sdk.SettingError(prefix+"name", "%w", err)
		}
		be, err := newBackend(env, i, prefix, b)
		if err != nil {
			undo()
			return nil, err
		}
		p := newPort(i, be, func(err error) { env.Fail(err, false) })
		c.ports = append(c.ports, p)
		ctl[i] = controlPort{name: b.Name, console: b.Console, cols: b.Cols, rows: b.Rows}
	}
	if c.multiport {
		c.control(ctl, s.ResizeOrder == "rows_first")
	}
	return c, nil
}

// control makes the control protocol and ties it to the ports.
func (c *console) control(ports []controlPort, rowsFirst bool) {
	c.ctl = newControl(ports)
	c.ctl.rowsFirst = rowsFirst
	c.ctl.guest = func(i int, open bool) { c.ports[i].open.set(open) }
	c.ctl.refused = c.refused
	c.ctl.save = c.save
	c.ctl.exact = c.env.KeepsState() // a former instance would have left its state
	for _, p := range c.ports {
		p.inUse = c.ctl.found
	}
}

func checkName(name string, required bool, seen map[string]bool) error {
	switch {
	case name == "" && required:
		return errors.New(`a port needs a name: port "org.example.agent" { … }`)
	case len(name) > nameMax || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }):
		return fmt.Errorf("port name %q: want at most %d printable characters without spaces and slashes", name, nameMax)
	case name != "" && seen[name]:
		return fmt.Errorf("port name %q: used twice", name)
	}
	seen[name] = true
	return nil
}

// chosen is the back-end that b names, or that its other settings imply.
func chosen(prefix string, b portBlock) (string, error) {
	given := map[string]bool{"stdio": b.Stdio.File != nil, "socket": b.Socket.UnixListener != nil, "file": b.File.File != nil, "pty": b.Link != ""}
	name := b.Backend
	for _, attr := range []string{"stdio", "socket", "file", "pty"} {
		switch {
		case !given[attr] || name == attr:
		case name == "":
			name = attr
		default:
			if attr == "pty" {
				attr = "link"
			}
			return "", sdk.SettingError(prefix+attr, "%s: backend %q does not use it", attr, name)
		}
	}
	switch {
	case name == "":
		return "", sdk.SettingError(prefix+"backend", "backend: want one of stdio, pty, socket, file, null")
	case name == "stdio" && !given["stdio"]:
		return "", sdk.SettingError(prefix+"backend", "backend stdio: the launcher has given no terminal; only one port can have it")
	case name != "pty" && name != "null" && !given[name]:
		return "", sdk.SettingError(prefix+name, "%s: backend %q needs it", name, name)
	case b.Link != "" && !filepath.IsAbs(b.Link):
		return "", sdk.SettingError(prefix+"link", "link %s: want an absolute path", b.Link)
	}
	return name, nil
}

func newBackend(env *sdk.Env, port int, prefix string, b portBlock) (backend, error) {
	name, err := chosen(prefix, b)
	if err != nil {
		return nil, err
	}
	limit := int(b.Backlog) //nolint:gosec // G115: at most 64 MiB
	switch name {
	case "stdio":
		be, err := newStdio(b.Stdio.File)
		if err != nil {
			return nil, sdk.SettingError(prefix+"stdio", "stdio: %w", err)
		}
		return be, nil
	case "socket":
		return newSocket(newOutlet(b.Unconnected, limit), b.Socket.UnixListener, limited(func(err error) {
			env.Fail(fmt.Errorf("port %d: %w", port, err), false)
		})), nil
	case "file":
		return &logFile{f: b.File.File, path: b.File.Path}, nil
	case "pty":
		be, err := newPty(newOutlet(b.Unconnected, limit), b.Link)
		if errors.Is(err, os.ErrExist) {
			return nil, sdk.SettingError(prefix+"link", "link %s: exists and is no link to a terminal: remove it or choose another path", b.Link)
		}
		if err != nil {
			return nil, sdk.SettingError(prefix+"backend", "backend pty: %w", err)
		}
		env.Notice(fmt.Sprintf("port %d is %s", port, be.slave), map[string]string{"port": fmt.Sprint(port), "pty": be.slave})
		return be, nil
	}
	return null{}, nil
}

// limited passes on an error at most every failEvery. One goroutine at a time.
func limited(fail func(error)) func(error) {
	var last time.Time
	return func(err error) {
		if now := time.Now(); last.IsZero() || now.Sub(last) >= failEvery {
			last = now
			fail(err)
		}
	}
}
