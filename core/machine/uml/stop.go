package uml

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/machine/kernellog"
)

// stop ends a guest whose context ended: it is asked to write its file systems back and to halt, and killed when Grace is
// over.
func (m *Machine) stop(g machine.Guest, p *process, out *kernellog.Log) {
	defer p.kill()
	over := make(chan struct{})
	t := time.AfterFunc(m.opts.Grace, func() { close(over) })
	defer t.Stop()
	end := time.Now().Add(m.opts.Grace)
	for _, step := range []struct{ command, answer string }{
		// With "quiet", or after dmesg -n, the answers would not be printed.
		{"sysrq 9", ""},
		{"sysrq s", "Emergency Sync complete"},
		{"sysrq u", "Emergency Remount complete"},
		{"halt", ""},
	} {
		if err := mconsole(g.RunDir, step.command, end); err != nil {
			m.opts.Log.Debug("guest does not answer", "error", err)
			return
		}
		if step.answer != "" && !out.Await(step.answer, either(over, p.done)) {
			return
		}
	}
	select {
	case <-p.done:
	case <-over:
	}
}

// either is closed when a or b is.
func either(a, b <-chan struct{}) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		select {
		case <-a:
		case <-b:
		}
	}()
	return c
}

// The management console's protocol: one datagram each way (arch/um/drivers/mconsole.h).
const (
	mconsoleMagic   = 0xcafebabe
	mconsoleVersion = 2
	mconsoleMax     = 512
)

// mconsole runs one command of the kernel's management console.
func mconsole(runDir, command string, deadline time.Time) error {
	local := &net.UnixAddr{Name: filepath.Join(runDir, "mc"), Net: "unixgram"}
	c, err := net.ListenUnixgram("unixgram", local)
	if err != nil {
		return fmt.Errorf("mconsole: %w", err)
	}
	defer func() { _ = c.Close(); _ = os.Remove(local.Name) }()
	if err := c.SetDeadline(deadline); err != nil {
		return fmt.Errorf("mconsole: %w", err)
	}
	ne := binary.NativeEndian
	req := ne.AppendUint32(nil, mconsoleMagic)
	req = ne.AppendUint32(req, mconsoleVersion)
	req = ne.AppendUint32(req, uint32(len(command))) //nolint:gosec // ours, short
	req = append(append(req, command...), make([]byte, mconsoleMax-len(command))...)
	peer := &net.UnixAddr{Name: filepath.Join(runDir, umidDir, umid, "mconsole"), Net: "unixgram"}
	if _, err := c.WriteToUnix(req, peer); err != nil {
		return fmt.Errorf("mconsole %s: %w", command, err)
	}
	if command == "halt" {
		return nil // its answer may be lost with the kernel
	}
	reply := make([]byte, 12+mconsoleMax)
	n, _, err := c.ReadFromUnix(reply)
	if err != nil {
		return fmt.Errorf("mconsole %s: %w", command, err)
	}
	if n < 12 || ne.Uint32(reply) != 0 {
		return fmt.Errorf("mconsole %s: refused: %s", command, bytes.TrimRight(reply[min(n, 12):n], "\x00\n"))
	}
	return nil
}
