package devicetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// maxTempDir leaves room for the name of go-plugin's socket: a socket's path has at most 107 bytes.
const maxTempDir = 50

// killAfter is a little less than what go-plugin's Kill waits for a process to end by itself.
const killAfter = 1900 * time.Millisecond

// Program makes instances by starting the plugin at path, which must be absolute, as a launcher does: each is a process of
// its own. env is added to the little environment that a plugin has.
func Program(path string, env ...string) Opener {
	return func(_ context.Context, log hclog.Logger) (Target, error) {
		p := &program{path: path, env: env}
		if err := p.start(log); err != nil {
			return nil, fmt.Errorf("start %s: %w%s", path, errors.Join(err, p.Close()), p.lastWords())
		}
		return p, nil
	}
}

// program is a plugin process.
type program struct {
	*pluginrpc.Client
	path   string
	dir    string // of its socket
	host   *plugin.Client
	cmd    *exec.Cmd
	socket *pluginrpc.Socket
	env    []string
	stderr tail

	// How it ended.
	killed bool     // it did not end by itself
	left   []string // sockets that it did not remove

	closeOnce sync.Once
	closeErr  error
}

func (p *program) start(log hclog.Logger) error {
	var err error
	parent := os.TempDir()
	if len(parent) > maxTempDir {
		parent = "/tmp"
	}
	if p.dir, err = os.MkdirTemp(parent, "vpcheck"); err != nil {
		return err
	}
	var child *os.File
	if p.socket, child, err = pluginrpc.NewSocketPair(); err != nil {
		return err
	}
	defer child.Close()                                       //nolint:errcheck // its copy is the plugin's
	p.cmd = exec.CommandContext(context.Background(), p.path) //nolint:gosec // G204: the program to be tested; Close ends it
	p.cmd.Env = append([]string{"TMPDIR=" + p.dir}, p.env...) // go-plugin adds the cookie
	p.cmd.ExtraFiles, p.cmd.Dir = []*os.File{child}, p.dir    // it cannot rely on a directory
	p.host = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: pluginrpc.Handshake(), Plugins: pluginrpc.LauncherPlugins(p.socket),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, GRPCDialOptions: pluginrpc.DialOptions(),
		Cmd: p.cmd, SkipHostEnv: true, Logger: log, Stderr: &p.stderr, UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: p.dir},
	})
	conn, err := p.host.Client()
	if err != nil {
		return err
	}
	raw, err := conn.Dispense(pluginrpc.PluginName)
	if err != nil {
		return err
	}
	c, ok := raw.(*pluginrpc.Client)
	if !ok {
		return fmt.Errorf("no device service but %T", raw)
	}
	p.Client = c
	return nil
}

// Close implements Target: it asks the process to end, and kills it after two seconds (go-plugin).
func (p *program) Close() error {
	p.closeOnce.Do(func() {
		if p.host != nil {
			begin := time.Now()
			p.host.Kill()
			p.killed = time.Since(begin) > killAfter
			p.left = leftIn(p.dir)
		}
		if p.socket != nil {
			p.closeErr = p.socket.Close()
		}
		if p.dir != "" {
			p.closeErr = errors.Join(p.closeErr, os.RemoveAll(p.dir))
		}
	})
	return p.closeErr
}

func (p *program) PID() int { return p.cmd.Process.Pid }

// kill ends the process at once, as a crash does.
func (p *program) kill() error {
	err := p.cmd.Process.Kill()
	for end := time.Now().Add(closeLimit); !p.host.Exited() && time.Now().Before(end); {
		time.Sleep(pollEvery)
	}
	return err
}

// lastWords are the last lines that the process wrote to standard error.
func (p *program) lastWords() string {
	s := p.stderr.String()
	if s == "" {
		return ""
	}
	return "\nlast words:\n  " + strings.ReplaceAll(s, "\n", "\n  ")
}

// tailBytes is how much a tail keeps: arbitrary, enough for the head of a panic's stack.
const tailBytes = 2048

// tail keeps the last bytes that are written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String gives what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}
