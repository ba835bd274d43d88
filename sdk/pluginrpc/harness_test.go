package pluginrpc_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

const patience = time.Minute // machines are slow; nothing here needs it

// instance is a plugin process and the launcher's half to it.
type instance struct {
	*pluginrpc.Client
	socket *pluginrpc.Socket
	host   *plugin.Client
	cmd    *exec.Cmd
	log    *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs the test binary as a plugin through go-plugin, with a real descriptor socket.
func start(t *testing.T) *instance {
	t.Helper()
	return startIn(t, shortTemp(t))
}

// startIn is start with the directory for go-plugin's socket: t.TempDir for a plugin that will be killed and cannot clean up.
func startIn(t *testing.T, tmp string) *instance {
	t.Helper()
	return startProgram(t, tmp, os.Args[0])
}

func startProgram(t *testing.T, tmp, program string) *instance {
	t.Helper()
	socket, child, err := pluginrpc.NewSocketPair()
	if err != nil {
		t.Fatal(err)
	}
	in := &instance{socket: socket, log: &lockedBuffer{}}
	in.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), program) //nolint:gosec // G204, G702: ourselves, or what a test built
	in.cmd.Env = []string{asPlugin + "=1", "TMPDIR=" + tmp}
	in.cmd.ExtraFiles = []*os.File{child}
	in.host = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: pluginrpc.Handshake(), Plugins: pluginrpc.LauncherPlugins(socket),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, GRPCDialOptions: pluginrpc.DialOptions(),
		Cmd: in.cmd, SkipHostEnv: true,
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: in.log}),
	})
	t.Cleanup(func() {
		in.host.Kill()
		_ = socket.Close()
		if t.Failed() {
			t.Logf("log of the plugin:\n%s", in.log)
		}
	})
	conn, err := in.host.Client()
	if err != nil {
		t.Fatalf("start: %v\n%s", err, in.log)
	}
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := conn.Dispense(pluginrpc.PluginName)
	if err != nil {
		t.Fatal(err)
	}
	client, ok := raw.(*pluginrpc.Client)
	if !ok {
		t.Fatalf("Dispense returned %T", raw)
	}
	in.Client = client
	return in
}

// shortTemp is a temporary directory whose name leaves room for a socket's.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vp") //nolint:usetesting // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("the plugin left %v, %v", left, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (in *instance) configure(t *testing.T, json string, files ...pluginrpc.FileGrant) pluginrpc.Offer {
	t.Helper()
	o, err := in.Configure(t.Context(), pluginrpc.Settings{DeviceName: "m0", ConfigJSON: []byte(json), Files: files})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func memfd(t *testing.T, size int64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// guest is guest memory in two regions with one virtqueue, and the driver of it.
type guest struct {
	regions    []guestmem.MapRegion
	arena      *driver.Arena
	q          *driver.Queue
	features   virtio.Features
	kick, call *os.File
	inflight   *os.File
}

func newGuest(t *testing.T, features virtio.Features) *guest {
	t.Helper()
	ram := memfd(t, 3<<20)
	g := &guest{features: features, regions: []guestmem.MapRegion{
		{Start: 0x100000, Size: 1 << 20, FD: int(ram.Fd()), Offset: 1 << 20},
		{Start: 0x400000, Size: 1 << 20, FD: int(ram.Fd()), Offset: 2 << 20},
	}}
	mem, err := guestmem.Map(g.regions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mem.Close(); err != nil {
			t.Error(err)
		}
	})
	g.arena = driver.NewArena(mem)
	if g.q, err = driver.New(g.arena, driver.Config{Size: 8, Features: features, IndirectEntries: 4}); err != nil {
		t.Fatal(err)
	}
	for _, f := range []**os.File{&g.kick, &g.call} {
		if *f, err = eventfd.New(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*f).Close() })
	}
	g.inflight = memfd(t, int64(virtq.InflightBytes(8)))
	return g
}

func (g *guest) queue() pluginrpc.QueueStart {
	d, a, u := g.q.Areas()
	return pluginrpc.QueueStart{
		Size: 8, DescArea: d, DriverArea: a, DeviceArea: u,
		Kick: int(g.kick.Fd()), Call: int(g.call.Fd()), Inflight: int(g.inflight.Fd()),
	}
}

// attach brings in to a running queue 0.
func (g *guest) attach(t *testing.T, in *instance) {
	t.Helper()
	if _, err := in.SetFeatures(t.Context(), g.features); err != nil {
		t.Fatal(err)
	}
	if err := in.AttachMemory(t.Context(), g.regions); err != nil {
		t.Fatal(err)
	}
	if _, err := in.StartQueue(t.Context(), g.queue()); err != nil {
		t.Fatal(err)
	}
}

func (g *guest) send(t *testing.T, text string) (read func() string) {
	t.Helper()
	out, err := g.arena.Buffer(len(text))
	if err != nil {
		t.Fatal(err)
	}
	back, err := g.arena.Buffer(len(text))
	if err != nil {
		t.Fatal(err)
	}
	copy(g.arena.Bytes(out), text)
	if _, ok := g.q.Add([]driver.Buffer{out}, []driver.Buffer{back}); !ok {
		t.Fatal("the ring is full")
	}
	if g.q.Publish() {
		if err := eventfd.Signal(int(g.kick.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	return func() string { return string(g.arena.Bytes(back)) }
}

// wait polls until n chains came back.
func (g *guest) wait(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d used chains", n), func() bool {
		if _, _, ok := g.q.Used(); ok {
			n--
		}
		return n == 0
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for: %s", what)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (g *guest) roundTrip(t *testing.T, text, want string) {
	t.Helper()
	read := g.send(t, text)
	g.wait(t, 1)
	if got := read(); got != want {
		t.Fatalf("the device answered %q: want %q", got, want)
	}
}
