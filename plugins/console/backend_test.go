package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func listen(t *testing.T) (sdk.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return sdk.Listener{Path: path, UnixListener: l}, path
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func socketGuest(t *testing.T, s settings) (*guest, string) {
	t.Helper()
	l, path := listen(t)
	s.Socket = l
	return newGuest(t, newTestConsole(t, s), virtio.FVersion1).start(), path
}

// openSlave opens a pseudo-terminal's slave as a user would, in the runtime's poller.
func openSlave(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0) //nolint:gosec // G304: our own terminal
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func ptyOf(t *testing.T, g *guest) *pty {
	t.Helper()
	p, ok := g.c.ports[0].be.(*pty)
	if !ok {
		t.Fatal("no pty")
	}
	return p
}

func TestSocketOneMebibyteEachWay(t *testing.T) {
	t.Parallel()
	g, path := socketGuest(t, settings{})
	user := dial(t, path)
	eventually(t, "connection", func() bool { return g.c.Statistics()["port0_connections"] == 1 })
	eachWay(t, g, user)
}

func TestPtyOneMebibyteEachWay(t *testing.T) {
	t.Parallel()
	g := newGuest(t, newTestConsole(t, settings{Backend: "pty"}), virtio.FVersion1).start()
	user := openSlave(t, ptyOf(t, g).slave)
	eachWay(t, g, user)
}

func eachWay(t *testing.T, g *guest, user interface {
	stream
	io.Closer
},
) {
	t.Helper()
	in, out := randomBytes(1, mebibyte), randomBytes(2, mebibyte)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := user.Write(in); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "somebody is connected", func() bool { return connected(g.c.ports[0].be) })
	wg.Go(func() { g.rings[1].send(t, out, 20000) })
	wg.Go(func() { sameBytes(t, "output", readN(t, user, mebibyte), out) })
	sameBytes(t, "input", g.rings[0].receive(t, mebibyte, 4096), in)
	wg.Wait()
	// The last client goes; its last words are not lost.
	if _, err := user.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	sameBytes(t, "input", g.rings[0].receive(t, mebibyte+3, 4096), append(in, "bye"...))
}

func connected(be backend) bool {
	switch b := be.(type) {
	case *pty:
		c, _, _ := b.state()
		return c != nil
	case *socket:
		c, _, _ := b.state()
		return c != nil
	}
	return true
}

func TestUnconnectedOutput(t *testing.T) {
	t.Parallel()
	out := randomBytes(9, 100<<10)
	for policy, want := range map[string][]byte{unconnectedKeep: out[len(out)-1000:], unconnectedDrop: nil, unconnectedBlock: out} {
		for _, kind := range []string{"socket", "pty"} {
			t.Run(policy+"/"+kind, func(t *testing.T) {
				t.Parallel()
				var g *guest
				var connect func() stream
				s := settings{Unconnected: policy, Backlog: 1000}
				if kind == "socket" {
					var path string
					g, path = socketGuest(t, s)
					connect = func() stream { return dial(t, path) }
				} else {
					s.Backend = "pty"
					g = newGuest(t, newTestConsole(t, s), virtio.FVersion1).start()
					connect = func() stream { return openSlave(t, ptyOf(t, g).slave) }
				}
				g.rings[1].send(t, out, 3333)
				chains := (len(out) + 3332) / 3333
				if policy == unconnectedBlock {
					if n := steady(g.rings[1].used); n != 0 {
						t.Errorf("%d chains were finished unwritten", n)
					}
					g.stop() // waiting for a client does not hold it up
					g.start()
				} else {
					eventually(t, "the guest goes on", func() bool { return g.rings[1].used() == chains })
				}
				dropped := len(out) - len(want)
				if n := int(g.c.Statistics()["port0_output_dropped_bytes"]); n != dropped { //nolint:gosec // G115: small
					t.Errorf("%d bytes dropped, want %d", n, dropped)
				}
				user := connect()
				eventually(t, "connection", func() bool { return connected(g.c.ports[0].be) })
				g.rings[1].send(t, []byte("now"), 3)
				sameBytes(t, "output", readN(t, user, len(want)+3), append(bytes.Clone(want), "now"...))
			})
		}
	}
}

func TestSocketClientsComeOneAfterTheOther(t *testing.T) {
	t.Parallel()
	g, path := socketGuest(t, settings{})
	first := dial(t, path)
	if _, err := first.Write([]byte("first ")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "connection", func() bool { return connected(g.c.ports[0].be) })
	second := dial(t, path)
	if _, err := second.Write([]byte("second")); err != nil {
		t.Fatal(err)
	}
	if n := steady(func() uint64 { return g.c.Statistics()["port0_connections"] }); n != 1 {
		t.Fatalf("%d connections at once", n)
	}
	// The guest has not read a byte when the first client leaves.
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "second connection", func() bool { return g.c.Statistics()["port0_connections"] == 2 })
	if got := g.rings[0].receive(t, 12, 5); string(got) != "first second" {
		t.Errorf("input: %q", got)
	}
	g.rings[1].send(t, []byte("hello"), 5)
	if got := readN(t, second, 5); string(got) != "hello" {
		t.Errorf("output: %q", got)
	}
}

// Many clients that the guest does not listen to must not fill our memory.
func TestSocketInputOfClientsThatHaveGoneIsBounded(t *testing.T) {
	t.Parallel()
	g, path := socketGuest(t, settings{})
	s, ok := g.c.ports[0].be.(*socket)
	if !ok {
		t.Fatal("no socket")
	}
	const clients = 40
	piece := randomBytes(10, 100<<10)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for range clients {
			c := dial(t, path)
			if _, err := c.Write(piece); err != nil {
				t.Error(err)
			}
			_ = c.Close()
		}
	})
	held := func() int {
		s.inTurn <- struct{}{}
		defer func() { <-s.inTurn }()
		return len(s.pending)
	}
	eventually(t, "clients are made to wait", func() bool { return held() > pendingLimit })
	if n := steady(held); n > pendingLimit+len(piece) {
		t.Errorf("%d bytes held", n)
	}
	sameBytes(t, "input", g.rings[0].receive(t, clients*len(piece), 4096), bytes.Repeat(piece, clients))
}

func TestSocketHalfClosedClientStillGetsOutput(t *testing.T) {
	t.Parallel()
	g, path := socketGuest(t, settings{})
	user := dial(t, path)
	if _, err := user.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if err := user.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := g.rings[0].receive(t, 8, 100); string(got) != "question" {
		t.Errorf("input: %q", got)
	}
	g.rings[1].send(t, []byte("answer"), 100)
	if got := readN(t, user, 6); string(got) != "answer" {
		t.Errorf("output: %q", got)
	}
}

// A user who does not read and then goes must not leave the port stuck.
func TestStuckUserWhoGoes(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"socket", "pty"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			var g *guest
			var user io.Closer
			if kind == "socket" {
				var path string
				g, path = socketGuest(t, settings{Unconnected: unconnectedDrop})
				user = dial(t, path)
			} else {
				g = newGuest(t, newTestConsole(t, settings{Backend: "pty", Unconnected: unconnectedDrop}), virtio.FVersion1).start()
				user = openSlave(t, ptyOf(t, g).slave)
			}
			eventually(t, "connection", func() bool { return connected(g.c.ports[0].be) })
			done := make(chan struct{})
			go func() {
				defer close(done)
				g.rings[1].send(t, randomBytes(11, 4*mebibyte), 64<<10)
			}()
			if steady(g.rings[1].used) >= 64 {
				t.Error("not stuck")
			}
			if err := user.Close(); err != nil {
				t.Fatal(err)
			}
			<-done
			eventually(t, "all chains come back", func() bool { return g.rings[1].used() == 64 })
		})
	}
}

func TestSocketTellsTheGuestWhoIsThere(t *testing.T) {
	t.Parallel()
	l, path := listen(t)
	c := newTestConsole(t, settings{Backend: "null", Ports: []portBlock{{Name: "a", Socket: l}}})
	g := newGuest(t, c, virtio.FVersion1|virtio.FConsoleMultiport).start()
	g.say(0, virtio.ConsoleDeviceReady, 1)
	g.say(1, virtio.ConsolePortReady, 1)
	g.heard(3)
	user := dial(t, path)
	if got := script(g.heard(4))[3]; got != "1:open=1" {
		t.Errorf("message: %s", got)
	}
	g.stop() // the client survives a pause
	g.start()
	_ = user.Close() // though the guest never opened the port
	if got := script(g.heard(5))[4]; got != "1:open=0" {
		t.Errorf("message: %s", got)
	}
	dial(t, path)
	if got := script(g.heard(6))[5]; got != "1:open=1" {
		t.Errorf("message: %s", got)
	}
}

func TestPtyUsersComeAndGo(t *testing.T) {
	t.Parallel()
	g := newGuest(t, newTestConsole(t, settings{Backend: "pty"}), virtio.FVersion1).start()
	p := ptyOf(t, g)
	want := ""
	for i := range 3 {
		user := openSlave(t, p.slave)
		m, err := unix.IoctlGetTermios(slaveFD(t, user), unix.TCGETS)
		if err != nil || m.Lflag&(unix.ECHO|unix.ICANON) != 0 {
			t.Fatalf("the terminal echoes: %v", err)
		}
		eventually(t, "connection", func() bool { return connected(p) })
		word := strconv.Itoa(i)
		if _, err := user.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		want += word
		g.rings[1].send(t, []byte("\n"+word), 2)
		if got := readN(t, user, 2); string(got) != "\n"+word {
			t.Errorf("output: %q", got)
		}
		if got := g.rings[0].receive(t, len(want), 10); string(got) != want {
			t.Errorf("input: %q, want %q", got, want)
		}
		if err := user.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "hang-up", func() bool { return !connected(p) })
	}
}

func slaveFD(t *testing.T, f *os.File) (fd int) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestPtyLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "console")
	if err := os.Symlink("/dev/pts/99999", link); err != nil { // a crashed instance's
		t.Fatal(err)
	}
	p, err := newPty(newOutlet(unconnectedKeep, 10), link)
	if err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(link); err != nil || to != p.slave {
		t.Errorf("link: %s, %v", to, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(link); !os.IsNotExist(err) {
		t.Errorf("the link is left behind: %v", err)
	}
	if err := os.WriteFile(link, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := build(&sdk.Env{}, settings{Link: link}); err == nil {
		t.Error("a file was replaced")
	}
	if st, err := os.Lstat(link); err != nil || !st.Mode().IsRegular() {
		t.Error("the file is gone")
	}
}

func TestKeep(t *testing.T) {
	t.Parallel()
	var all []byte
	k := keep{limit: 100}
	dropped := 0
	for i := range 500 {
		p := bytes.Repeat([]byte{byte(i)}, i*7%230)
		all = append(all, p...)
		dropped += k.add(p)
		if i%5 == 0 {
			n := len(k.bytes()) / 3
			if !bytes.HasSuffix(all, k.bytes()) {
				t.Fatal("not the newest bytes")
			}
			k.remove(n)
			dropped += n
		}
		if !bytes.HasSuffix(all, k.bytes()) || len(k.bytes()) > 100 || dropped+len(k.bytes()) != len(all) || cap(k.buf) > 1000 {
			t.Fatalf("step %d: %d bytes, %d dropped of %d", i, len(k.bytes()), dropped, len(all))
		}
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	g := newGate()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := g.enter(ctx); err == nil {
		t.Error("passed a closed gate")
	}
	g.set(true)
	open, leave, err := g.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	g.set(true)
	if open.Err() != nil {
		t.Error("ended while open")
	}
	g.set(false)
	<-open.Done()
}
