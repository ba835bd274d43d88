package pluginhost

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/go-plugin/runner"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// handshakeBytes bounds the handshake line.
const handshakeBytes = 4096

// hostRunner runs a plugin's process for go-plugin, which sees of its output the first line only: the handshake.
type hostRunner struct {
	cmd       command
	socketDir string // where the plugin's control socket must be

	line   *io.PipeReader
	toLine *io.PipeWriter

	mu      sync.Mutex
	p       *process // nil until Start
	first   string   // of standard output
	hasLine bool
}

var _ runner.Runner = (*hostRunner)(nil)

func newRunner(cmd command, socketDir string) *hostRunner {
	r := &hostRunner{cmd: cmd, socketDir: socketDir}
	r.line, r.toLine = io.Pipe()
	r.cmd.stdout = r.readStdout
	return r
}

func (r *hostRunner) readStdout(f *os.File) {
	in := bufio.NewReaderSize(f, handshakeBytes)
	line, err := in.ReadSlice('\n')
	if len(line) > 0 {
		r.mu.Lock()
		r.first, r.hasLine = strings.TrimSpace(string(line)), true
		r.mu.Unlock()
	}
	if err == nil {
		_, err = r.toLine.Write(line)
	}
	if err == nil || errors.Is(err, bufio.ErrBufferFull) || errors.Is(err, io.ErrClosedPipe) {
		_, _ = io.Copy(io.Discard, in) // nobody listens, but the writer must not block
	}
	_ = r.toLine.Close()
}

// Start implements runner.Runner.
func (r *hostRunner) Start(context.Context) error {
	p, err := spawn(r.cmd)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.p = p
	return err
}

// process is what Start started, or nil.
func (r *hostRunner) process() *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.p
}

// Wait implements runner.Runner.
func (r *hostRunner) Wait(context.Context) error {
	<-r.process().ended
	return nil
}

// Kill implements runner.Runner.
func (r *hostRunner) Kill(context.Context) error {
	_ = r.line.Close()
	if p := r.process(); p != nil {
		p.kill()
		<-p.ended
	}
	return nil
}

// Stdout implements runner.Runner: the first line.
func (r *hostRunner) Stdout() io.ReadCloser { return r.line }

// Stderr implements runner.Runner: nothing, it is read by the logSink.
func (r *hostRunner) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name implements runner.Runner.
func (r *hostRunner) Name() string { return r.cmd.path }

// ID implements runner.Runner.
func (r *hostRunner) ID() string {
	if p := r.process(); p != nil {
		return strconv.Itoa(p.pid)
	}
	return ""
}

// Diagnose implements runner.Runner.
func (r *hostRunner) Diagnose(context.Context) string { return "" }

// PluginToHost implements runner.Runner: it refuses to connect to anything but a socket in the plugin's own directory.
func (r *hostRunner) PluginToHost(network, addr string) (string, string, error) {
	if network != "unix" || filepath.Dir(filepath.Clean(addr)) != r.socketDir {
		return "", "", fmt.Errorf("%w: it wants to be called at %q %q, which is not in its directory", ErrHandshake,
			clean(network, keptBytes), clean(addr, keptBytes))
	}
	return network, addr, nil
}

// HostToPlugin implements runner.Runner.
func (r *hostRunner) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// judge tells what is wrong with the first line, if something is: CORE|APP|network|address|protocol.
func (r *hostRunner) judge() error {
	r.mu.Lock()
	first, has := r.first, r.hasLine
	r.mu.Unlock()
	if !has {
		return nil
	}
	parts := strings.Split(first, "|")
	core, err := strconv.Atoi(parts[0])
	if err != nil || len(parts) < 5 {
		return fmt.Errorf("%w: it wrote %q there; a plugin must keep its standard output free (logs go to standard error)",
			ErrHandshake, clean(first, keptBytes))
	}
	if app, err := strconv.Atoi(parts[1]); core != 1 || err != nil || app != pluginrpc.APIVersion {
		return fmt.Errorf("%w: it speaks %s (core protocol %d), this launcher %d: rebuild one of them", ErrAPIVersion,
			clean(parts[1], keptBytes), core, pluginrpc.APIVersion)
	}
	return nil
}
