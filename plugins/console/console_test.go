package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// stdioPair returns a port's descriptor and the launcher's end.
func stdioPair(t *testing.T) (sdk.File, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "launcher")
	c, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	u, ok := c.(*net.UnixConn)
	if !ok {
		t.Fatal("no unix socket")
	}
	return sdk.File{Path: "terminal", File: os.NewFile(uintptr(fds[1]), "plugin")}, u
}

// readN reads exactly n bytes.
func readN(t *testing.T, r interface {
	Read(p []byte) (int, error)
	SetReadDeadline(t time.Time) error
}, n int,
) []byte {
	t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	for at := 0; at < n; {
		k, err := r.Read(b[at:])
		if at += k; err != nil {
			t.Fatalf("after %d of %d bytes: %v", at, n, err)
		}
	}
	return b
}

func TestOneMebibyteEachWayAtOnce(t *testing.T) {
	t.Parallel()
	file, user := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file})
	g := newGuest(t, c, virtio.FVersion1).start()
	in, out := randomBytes(1, mebibyte), randomBytes(2, mebibyte)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := user.Write(in); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { g.rings[1].send(t, out, 5000) })
	wg.Go(func() { sameBytes(t, "output", readN(t, user, mebibyte), out) })
	sameBytes(t, "input", g.rings[0].receive(t, mebibyte, 4096), in)
	wg.Wait()
	if s := c.Statistics(); s["port0_input_bytes"] != mebibyte || s["port0_output_bytes"] != mebibyte || s["port0_output_lost_bytes"] != 0 {
		t.Errorf("statistics: %v", s)
	}
}

// Stopping and starting the queues at any moment neither loses nor doubles a byte, also in the middle of a chain that is
// larger than the socket takes.
func TestStopAtAnyMoment(t *testing.T) {
	t.Parallel()
	file, user := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file})
	g := newGuest(t, c, virtio.FVersion1).start()
	in, out := randomBytes(3, mebibyte), randomBytes(4, 4*mebibyte)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := user.Write(in); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { g.rings[1].send(t, out, 600<<10) })
	wg.Go(func() {
		defer close(done)
		sameBytes(t, "input", g.rings[0].receive(t, mebibyte, 1000), in)
	})
	stops := 0
	var got []byte
	for len(got) < len(out) {
		got = append(got, readN(t, user, min(len(out)-len(got), 37<<10))...) // slowly: chains are cut
		g.stop()
		g.start()
		stops++
	}
	sameBytes(t, "output", got, out)
	<-done
	wg.Wait()
	if stops < 50 {
		t.Errorf("%d stops", stops)
	}
}

func TestAStuckReaderBlocksItsOwnPortOnly(t *testing.T) {
	t.Parallel()
	file0, stuck := stdioPair(t)
	file1, user := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file0, Ports: []portBlock{{Name: "b", Stdio: file1}}})
	g := newGuest(t, c, virtio.FVersion1|virtio.FConsoleMultiport).start()
	big := randomBytes(5, 2*mebibyte)
	var wg sync.WaitGroup
	wg.Go(func() { g.rings[1].send(t, big, 64<<10) })
	if n := steady(func() uint64 { return c.Statistics()["port0_output_bytes"] }); n == uint64(len(big)) {
		t.Fatal("port 0 is not stuck")
	}
	out := randomBytes(6, mebibyte)
	wg.Go(func() { g.rings[5].send(t, out, 4096) })
	sameBytes(t, "port 1", readN(t, user, len(out)), out)
	g.stop() // promptly, with port 0 stuck
	g.start()
	sameBytes(t, "port 0", readN(t, stuck, len(big)), big)
	wg.Wait()
}

func TestMultiportHandshakeAndInputGate(t *testing.T) {
	t.Parallel()
	file0, _ := stdioPair(t)
	file1, user := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file0, Cols: 80, Rows: 25, Ports: []portBlock{{Name: "org.example.agent", Stdio: file1}}})
	spec := c.Spec()
	if len(spec.QueueSizes) != 6 || !spec.Features.Has(virtio.FConsoleMultiport|virtio.FConsoleSize) {
		t.Fatalf("spec: %+v", spec)
	}
	g := newGuest(t, c, virtio.FVersion1|virtio.FConsoleMultiport).start()
	if _, err := user.Write([]byte("early")); err != nil {
		t.Fatal(err)
	}
	g.say(0, virtio.ConsoleDeviceReady, 1)
	g.heard(2)
	g.say(0, virtio.ConsolePortReady, 1)
	g.say(1, virtio.ConsolePortReady, 1)
	got := script(g.heard(7))
	want := []string{
		"0:add=1", "1:add=1", "0:console=1", "0:resize=0 [80 0 25 0]", "0:open=1", "1:name=1 org.example.agent", "1:open=1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("messages: %q", got)
	}
	rx := g.rings[4]
	rx.post(nil, 100, true)
	if n := steady(rx.used); n != 0 {
		t.Error("input came before the guest opened the port")
	}
	g.say(1, virtio.ConsolePortOpen, 1)
	eventually(t, "input", func() bool { return string(rx.input()) == "early" })
	g.say(1, virtio.ConsolePortOpen, 0)
	eventually(t, "port is closed", func() bool { return !c.ports[1].open.isOpen() })
	rx.post(nil, 100, true)
	if _, err := user.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	if n := steady(rx.used); n != 1 {
		t.Error("input came after the guest closed the port")
	}
	g.say(1, virtio.ConsolePortOpen, 1)
	eventually(t, "more input", func() bool { return string(rx.input()) == "earlylate" })
}

func TestInputGoesOnAfterATakeover(t *testing.T) {
	t.Parallel()
	file0, _ := stdioPair(t)
	file1, user := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file0, Ports: []portBlock{{Name: "a", Stdio: file1}}})
	g := newGuest(t, c, virtio.FVersion1|virtio.FConsoleMultiport)
	g.rings[4].post(nil, 100, true) // the driver has been here for long
	g.start()
	if _, err := user.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "input", func() bool { return string(g.rings[4].input()) == "hello" })
}

// crash makes the ring as a new instance finds it: chains that were popped are in flight.
func (r *ring) crash(t *testing.T, pop int) {
	t.Helper()
	d, a, u := r.drv.Areas()
	cfg := virtq.Config{
		Index: r.dev.Index(), Size: r.dev.Size(), DescArea: d, DriverArea: a, DeviceArea: u, Features: virtio.FVersion1,
		Inflight: make([]byte, virtq.InflightBytes(r.dev.Size())),
	}
	var err error
	if r.dev, err = virtq.Activate(r.arena.Memory(), cfg); err != nil {
		t.Fatal(err)
	}
	for range pop {
		if _, ok, err := r.dev.Pop(); !ok || err != nil {
			t.Fatalf("pop: %v, %v", ok, err)
		}
	}
	cfg.Recover = true
	if r.dev, err = virtq.Activate(r.arena.Memory(), cfg); err != nil {
		t.Fatal(err)
	}
}

// Chains that a crashed instance had in flight cannot be given back: stopping must still be prompt and lose nothing.
func TestStopWithChainsOfACrashedInstance(t *testing.T) {
	t.Parallel()
	for _, f := range []virtio.Features{virtio.FVersion1, virtio.FVersion1 | virtio.FConsoleMultiport} {
		file, user := stdioPair(t)
		c := newTestConsole(t, settings{Stdio: file, Multiport: f.Has(virtio.FConsoleMultiport)})
		g := newGuest(t, c, f)
		out := randomBytes(7, 900<<10)
		g.rings[0].post(nil, 4096, true)
		g.rings[0].post(nil, 4096, true)
		g.rings[1].post(out[:800<<10], 800<<10, false)
		g.rings[1].post(out[800<<10:], 100<<10, false)
		g.rings[0].crash(t, 2)
		g.rings[1].crash(t, 1)
		g.start()
		eventually(t, "output", func() bool { return c.ports[0].out.Load() > 0 })
		g.stop() // no input came, output is stuck
		g.start()
		if _, err := user.Write([]byte("typed")); err != nil {
			t.Fatal(err)
		}
		sameBytes(t, "output", readN(t, user, len(out)), out)
		g.rings[0].post(nil, 4096, true)
		eventually(t, "input", func() bool { return string(g.rings[0].input()) == "typed" })
		g.rings[0].post(nil, 4096, true) // both buffers from before the stop came back empty
		if _, err := user.Write([]byte(" more")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "input", func() bool { return string(g.rings[0].input()) == "typed more" })
		g.stop()
		if n := c.Statistics()["port0_output_lost_bytes"]; n != 0 {
			t.Errorf("%d bytes lost", n)
		}
	}
}

func TestResizeCommand(t *testing.T) {
	t.Parallel()
	file, _ := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file, Multiport: true})
	g := newGuest(t, c, virtio.FVersion1|virtio.FConsoleMultiport).start()
	g.say(0, virtio.ConsoleDeviceReady, 1)
	g.say(0, virtio.ConsolePortReady, 1)
	g.heard(3)
	if _, err := c.Command(t.Context(), "resize", json.RawMessage(`{"cols":132,"rows":43}`)); err != nil {
		t.Fatal(err)
	}
	cfg := c.ReadConfig()
	if len(cfg) != virtio.ConsoleCfgSize || binary.LittleEndian.Uint16(cfg) != 132 || binary.LittleEndian.Uint16(cfg[2:]) != 43 || cfg[4] != 1 {
		t.Errorf("config: %v", cfg)
	}
	if got := script(g.heard(4)); got[3] != "0:resize=0 [132 0 43 0]" {
		t.Errorf("messages: %q", got)
	}
	for _, args := range []string{`{"cols":1}`, `{"cols":1,"rows":70000}`, `{"cols":1,"rows":-1}`, `{"port":1,"cols":1,"rows":1}`, `{"port":-1,"cols":1,"rows":1}`, `[]`, ``} {
		if r, err := c.Command(t.Context(), "resize", json.RawMessage(args)); err == nil {
			t.Errorf("%s: %v", args, r)
		}
	}
	if _, err := c.Command(t.Context(), "nonsense", nil); err == nil {
		t.Error("a command that does not exist")
	}
}

func TestHostileBuffers(t *testing.T) {
	t.Parallel()
	file, user := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file, Multiport: true})
	g := newGuest(t, c, virtio.FVersion1|virtio.FConsoleMultiport).start()
	ctlRx, ctlTx := g.rings[virtio.ConsoleQueueControlRx], g.rings[virtio.ConsoleQueueControlTx]
	ctlTx.post(nil, 1, false)
	ctlTx.post(nil, 100, true) // nothing to read in it
	eventually(t, "control messages are taken", func() bool { return ctlTx.used() == 2 })
	g.say(0, virtio.ConsoleDeviceReady, 1)
	ctlRx.post(nil, 3, true)   // too short
	ctlRx.post(nil, 64, false) // nothing to write to
	eventually(t, "bad control buffers come back", func() bool { return ctlRx.used() == 2 })
	g.heard(3) // the message was not lost with them
	g.rings[0].post(nil, 10, false)
	g.say(0, virtio.ConsolePortReady, 1)
	g.say(0, virtio.ConsolePortOpen, 1)
	g.rings[0].post(nil, 10, true)
	if _, err := user.Write([]byte("in")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "input", func() bool { return string(g.rings[0].input()) == "in" })
	g.rings[1].post(nil, 10, true) // no output in it
	eventually(t, "empty output", func() bool { return g.rings[1].used() == 1 })
	if s := c.Statistics(); s["port0_bad_buffers"] != 3 || s["control_ignored"] != 2 {
		t.Errorf("statistics: %v", s)
	}
}

// A driver that talks and does not listen makes nothing grow.
func TestControlFloodWithoutReceiveBuffers(t *testing.T) {
	t.Parallel()
	c := newTestConsole(t, settings{Backend: "null", Multiport: true, Name: "a"})
	g := newGuest(t, c, virtio.FVersion1|virtio.FConsoleMultiport).start()
	for range 5000 {
		g.say(0, virtio.ConsoleDeviceReady, 1)
		g.say(0, virtio.ConsolePortReady, 1)
	}
	eventually(t, "the flood is taken", func() bool { return g.rings[virtio.ConsoleQueueControlTx].used() == 2*5000 })
	if n := len(script(g.heard(1))); n == 0 || n > unsentMax {
		t.Errorf("%d messages", n)
	}
}

func TestABrokenRingEndsItsQueueOnly(t *testing.T) {
	t.Parallel()
	file, user := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file})
	g := newGuest(t, c, virtio.FVersion1)
	g.rings[0].mu.Lock()
	g.rings[0].drv.Raw().SetAvailIdx(3000)
	g.rings[0].mu.Unlock()
	var broken *virtq.DriverError
	if err := c.runQueue(t.Context(), g.rings[0], 0); !errors.As(err, &broken) {
		t.Fatalf("broken ring: %v", err)
	}
	g.rings = g.rings[1:]
	done := make(chan error)
	ctx := t.Context()
	go func() { done <- c.runQueue(ctx, g.rings[0], 1) }()
	g.rings[0].send(t, []byte("still here"), 100)
	if got := readN(t, user, 10); string(got) != "still here" {
		t.Errorf("output: %q", got)
	}
	g.rings[0].mu.Lock()
	g.rings[0].drv.Raw().SetAvailIdx(3000)
	g.rings[0].mu.Unlock()
	signal(g.rings[0].kick)
	if err := <-done; !errors.As(err, &broken) {
		t.Errorf("broken ring: %v", err)
	}
}

func TestEmergencyWrite(t *testing.T) {
	t.Parallel()
	file, user := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file})
	newGuest(t, c, virtio.FVersion1) // no queue runs: the driver is not there yet
	for _, b := range []byte("early\n") {
		if err := c.WriteConfig(virtio.ConsoleCfgEmergWr, []byte{b, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WriteConfig(virtio.ConsoleCfgCols, []byte{1, 1}); err != nil || c.ReadConfig()[0] != 0 {
		t.Errorf("a read-only field: %v, %v", err, c.ReadConfig())
	}
	if got := readN(t, user, 6); string(got) != "early\n" {
		t.Errorf("output: %q", got)
	}
	for range 2 * mebibyte { // nobody reads: it must not wait
		if err := c.WriteConfig(virtio.ConsoleCfgEmergWr, []byte{'x'}); err != nil {
			t.Fatal(err)
		}
	}
	if c.Statistics()["port0_emergency_dropped_bytes"] == 0 {
		t.Error("nothing was dropped")
	}
}

func TestEndOfInputLeavesOutputOpen(t *testing.T) {
	t.Parallel()
	file, user := stdioPair(t)
	c := newTestConsole(t, settings{Stdio: file})
	g := newGuest(t, c, virtio.FVersion1).start()
	if _, err := user.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := user.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := g.rings[0].receive(t, 4, 64); string(got) != "last" {
		t.Errorf("input: %q", got)
	}
	g.rings[1].send(t, []byte("out"), 10)
	if got := readN(t, user, 3); string(got) != "out" {
		t.Errorf("output: %q", got)
	}
	// The launcher is gone: output is counted as lost, the guest goes on.
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	g.rings[1].send(t, []byte("gone"), 10)
	eventually(t, "chain comes back", func() bool { return g.rings[1].used() == 2 })
	if s := c.Statistics(); s["port0_output_lost_bytes"] != 4 || !strings.Contains(g.failures(), "port 0: write to the terminal: ") {
		t.Errorf("statistics: %v, failures: %s", s, g.failures())
	}
}

func TestLogFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "console.log")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600) //nolint:gosec // G304: the test's own file
	if err != nil {
		t.Fatal(err)
	}
	c := newTestConsole(t, settings{File: sdk.File{Path: path, File: f}})
	g := newGuest(t, c, virtio.FVersion1).start()
	out := randomBytes(8, mebibyte)
	g.rings[1].send(t, out, 30000)
	eventually(t, "output", func() bool { return g.rings[1].used() == (len(out)+29999)/30000 })
	got, err := os.ReadFile(path) //nolint:gosec // G304: the test's own file
	if err != nil {
		t.Fatal(err)
	}
	sameBytes(t, "log", got, out)
}

func TestLogFileOnAFullDisk(t *testing.T) {
	t.Parallel()
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := newTestConsole(t, settings{File: sdk.File{Path: "/logs/vm.log", File: f}})
	g := newGuest(t, c, virtio.FVersion1).start()
	for range 20 {
		g.rings[1].send(t, []byte("0123456789"), 10)
	}
	eventually(t, "the guest goes on", func() bool { return g.rings[1].used() == 20 })
	s := c.Statistics()
	if s["port0_output_lost_bytes"] != 200 || s["port0_host_errors"] != 20 {
		t.Errorf("statistics: %v", s)
	}
	if want := "port 0: write console log: /logs/vm.log: no space left on device"; g.failures() != want {
		t.Errorf("reported: %q, want once %q", g.failures(), want)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	file := sdk.File{Path: "x", File: os.Stdin}
	for want, s := range map[string]settings{
		"backend: backend: want one of":              {},
		"name: only ports of a console with":         {Backend: "null", Name: "x"},
		"backend: backend stdio: the launcher has":   {Backend: "stdio"},
		"socket: socket: backend \"socket\" needs":   {Backend: "socket"},
		"stdio: stdio: backend \"file\" does not":    {Backend: "file", Stdio: file, File: file},
		"file: file: backend \"stdio\" does not":     {Stdio: file, File: file},
		"link: link: backend \"null\" does not":      {Backend: "null", Link: "/x"},
		"link: link x: want an absolute path":        {Link: "x"},
		"port.0.name: a port needs a name":           {Backend: "null", Ports: []portBlock{{Backend: "null"}}},
		"port.1.name: port name \"a\": used twice":   {Backend: "null", Ports: []portBlock{{Name: "a", Backend: "null"}, {Name: "a", Backend: "null"}}},
		"port.0.name: port name \"a b\": want at":    {Backend: "null", Ports: []portBlock{{Name: "a b", Backend: "null"}}},
		"port.0.backend: backend: want one of stdio": {Backend: "null", Ports: []portBlock{{Name: "a"}}},
	} {
		_, err := build(&sdk.Env{}, s)
		var se *pluginrpc.SettingError
		if !errors.As(err, &se) || !strings.HasPrefix(se.Attribute+": "+se.Message, want) {
			t.Errorf("%v, want %s…", err, want)
		}
	}
	regular, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := build(&sdk.Env{}, settings{Stdio: sdk.File{Path: "f", File: regular}}); err == nil || !strings.Contains(err.Error(), "want a socket") {
		t.Errorf("a regular file as stdio: %v", err)
	}
}

func TestSchemaIsValid(t *testing.T) {
	t.Parallel()
	if _, err := sdk.SchemaOf[settings](); err != nil {
		t.Error(err)
	}
	if _, err := sdk.SchemaOf[resizeArgs](); err != nil {
		t.Error(err)
	}
}

func TestPortOf(t *testing.T) {
	t.Parallel()
	for queue, port := range map[int]int{0: 0, 1: 0, 4: 1, 5: 1, 6: 2, 63: 30} {
		if got := portOf(queue); got != port {
			t.Errorf("queue %d: port %d, want %d", queue, got, port)
		}
	}
}
