package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/devicetest"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// socketKinds make the settings of both ends of every kind that has two of ours.
var socketKinds = map[string]func(t *testing.T) (a, b *settings){
	"unix": func(t *testing.T) (a, b *settings) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "s")
		return &settings{Listen: listenAt(t, path)}, &settings{Connect: "unix:" + path}
	},
	"tcp": func(t *testing.T) (a, b *settings) {
		t.Helper()
		at := ownAddress()
		return &settings{Bind: "tcp:" + at}, &settings{Connect: "tcp:" + at}
	},
	"udp": func(t *testing.T) (a, b *settings) {
		t.Helper()
		x, y := "udp:"+ownAddress(), "udp:"+ownAddress()
		return &settings{Bind: x, Connect: y}, &settings{Bind: y, Connect: x}
	},
	"udp from any address": func(t *testing.T) (a, b *settings) {
		t.Helper()
		port, y := strconv.Itoa(20000+os.Getpid()%10000), "udp:"+ownAddress()
		return &settings{Bind: "udp::" + port, Connect: y}, &settings{Bind: y, Connect: "udp:127.0.0.1:" + port}
	},
	"unixgram": func(t *testing.T) (a, b *settings) {
		t.Helper()
		x, y := "unixgram:"+filepath.Join(t.TempDir(), "x"), "unixgram:"+filepath.Join(t.TempDir(), "y")
		return &settings{Bind: x, Connect: y}, &settings{Bind: y, Connect: x}
	},
}

func TestFramesGoBothWaysBetweenTwoSockets(t *testing.T) {
	t.Parallel()
	for name, kind := range socketKinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sa, sb := kind(t)
			sa.MTU, sb.MTU = 65400, 65400
			b := newSocketRig(t, sb) // the one that connects first
			a := newSocketRig(t, sa)
			a.up(t)
			b.up(t)
			if o := a.Offer(); o.MTU != 65400 || o.Pairs != 1 || o.Host != 0 || o.Guest != 0 {
				t.Errorf("offer %+v", o)
			}
			for round := range 20 {
				out := bodies(uint64(round), 4, 65400+14)
				if n := a.send(t, out...); n != 0 {
					t.Fatalf("%d dropped: %v", n, a.Statistics())
				}
				back := bodies(uint64(100+round), 4, 1514)
				if n := b.send(t, back...); n != 0 {
					t.Fatalf("%d dropped: %v", n, b.Statistics())
				}
				sameFrames(t, b.receive(t, len(out), 65550), out)
				sameFrames(t, a.receive(t, len(back), 1514), back)
			}
		})
	}
}

func TestThePeerOfASeqpacketSocket(t *testing.T) {
	t.Parallel()
	p := newRawPeer(t, "unixpacket", "seqpacket")
	c := p.accept(t)
	p.r.up(t)
	out := bodies(1, 5, 1514)
	p.r.send(t, out...)
	buf := make([]byte, 2000)
	for _, want := range out {
		n, err := c.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], want) {
			t.Fatalf("%d bytes, %v: want %d", n, err, len(want))
		}
		if _, err := c.Write(buf[:n]); err != nil {
			t.Fatal(err)
		}
	}
	sameFrames(t, p.r.receive(t, len(out), 1514), out)
	defer p.r.serve(t)()
	_ = c.Close()
	p.r.down(t)
	p.accept(t)
	p.r.up(t)
}

func TestAPeerThatSendsAByteAtATime(t *testing.T) {
	t.Parallel()
	p := newRawPeer(t, "unix", "unix")
	c := p.accept(t)
	want := bodies(1, 6, 300)
	sent := make(chan error, 1)
	go func() {
		for _, b := range want {
			for _, x := range framed(b) {
				if _, err := c.Write([]byte{x}); err != nil {
					sent <- err
					return
				}
			}
		}
		sent <- nil
	}()
	sameFrames(t, p.r.receive(t, len(want), 1514), want)
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestFramesThatDoNotFitAreDroppedAndCounted(t *testing.T) {
	t.Parallel()
	p := newRawPeer(t, "unix", "unix")
	c := p.accept(t)
	p.r.up(t)
	var all []byte
	for _, n := range []int{1, 13, 1515, maxSocketFrame, 60, 1514} {
		all = append(all, framed(make([]byte, n))...)
	}
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	got := p.r.receive(t, 2, 1514)
	if len(got[0]) != 60 || len(got[1]) != 1514 {
		t.Errorf("frames of %d and %d bytes", len(got[0]), len(got[1]))
	}
	if long, short := p.r.count("socket_rx_dropped_long"), p.r.count("socket_rx_dropped_short"); long != 2 || short != 2 {
		t.Errorf("%d too long, %d too short: want 2 of both", long, short)
	}
	// To the peer: nothing that would break the framing.
	if n := p.r.send(t, make([]byte, 13), make([]byte, 20), nil, make([]byte, maxSocketFrame+1), make([]byte, 21)); n != 3 {
		t.Errorf("%d dropped: want 3", n)
	}
	for _, want := range []int{20, 21} {
		if b, err := readFramed(c); err != nil || len(b) != want {
			t.Errorf("%d bytes, %v: want %d", len(b), err, want)
		}
	}
}

func TestDatagramsThatDoNotFitAreDroppedAndCounted(t *testing.T) {
	t.Parallel()
	sa, sb := socketKinds["unixgram"](t)
	a, b := newSocketRig(t, sa), newSocketRig(t, sb)
	a.up(t)
	b.up(t)
	if n := a.send(t, make([]byte, 1515), make([]byte, 13), make([]byte, 1514)); n != 1 {
		t.Errorf("%d dropped: want the short one", n)
	}
	if got := b.receive(t, 1, 1514); len(got[0]) != 1514 {
		t.Errorf("%d bytes", len(got[0]))
	}
	if b.count("socket_rx_dropped_long") != 1 {
		t.Error(b.Statistics())
	}
}

func TestFramesInMoreBuffersThanACallTakes(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"unix", "unixgram"} {
		sa, sb := socketKinds[kind](t)
		a, b := newSocketRig(t, sa), newSocketRig(t, sb)
		a.up(t)
		b.up(t)
		body := bodies(3, 1, minFrame)[0]
		body = append(body, bytes.Repeat([]byte("x y"), 1000)...)
		if n, err := a.Port(0).Send(t.Context(), []frame{{bufs: split(body, 2500)}, {bufs: split(body, 1)}}); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		rooms := [][]byte{make([]byte, 4000), make([]byte, 4000)}
		got := 0
		socketUntil(t, "both frames are there", func() bool {
			n, err := b.Port(0).Receive([]frame{{bufs: split(rooms[got], 2000)}})
			if err != nil {
				t.Fatal(err)
			}
			got += n
			return got == 2
		})
		for _, room := range rooms {
			if !bytes.Equal(room[:len(body)], body) {
				t.Errorf("%s: another frame", kind)
			}
		}
	}
}

func TestAPeerThatBreaksTheFramingIsDisconnected(t *testing.T) {
	t.Parallel()
	for name, garbage := range map[string][]byte{
		"length 0":          {0, 0, 0, 0},
		"a long frame":      binary.BigEndian.AppendUint32(nil, maxSocketFrame+1),
		"4 GiB":             {255, 255, 255, 255},
		"a web browser":     []byte("GET / HTTP/1.1\r\n\r\n"),
		"half a frame":      framed(make([]byte, 100))[:50],
		"a length's half":   {0, 0},
		"nothing, and ends": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newRawPeer(t, "unix", "unix")
			defer p.r.serve(t)()
			for round := range 2 {
				c := p.accept(t)
				if _, err := c.Write(garbage); err != nil {
					t.Fatal(err)
				}
				if broken := len(garbage) == 4 || len(garbage) == 18; broken {
					if _, err := c.Read(make([]byte, 1)); err == nil {
						t.Fatal("the connection goes on")
					}
					socketUntil(t, "it is counted", func() bool { return p.r.count("socket_bad_peers") == uint64(round)+1 }) //nolint:gosec // G115: 0 or 1
				}
				_ = c.Close()
			}
			p.accept(t)
			p.r.up(t)
		})
	}
}

func TestAPeerThatDoesNotReadHoldsUpNobodyForLong(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"unix", "unixgram", "tcp"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			sa, sb := socketKinds[kind](t)
			a, b := newSocketRig(t, sa), newSocketRig(t, sb)
			a.up(t)
			b.up(t)
			out := bodies(1, 64, 1514)
			for a.send(t, out...) == 0 { //nolint:revive // until it is full
			}
			// A sender that has run out of patience does not wait any more: this would take five minutes. (TCP's window grows by itself.)
			began, dropped := time.Now(), 0
			for range 3000 {
				dropped += a.send(t, out...)
			}
			if d := time.Since(began); d > socketPatience {
				t.Errorf("3000 batches took %v", d)
			}
			if dropped < 2500*64 || a.count("socket_tx_dropped_full") < uint64(dropped) {
				t.Errorf("%d dropped: %v", dropped, a.Statistics())
			}
			// The other direction goes on meanwhile.
			back := bodies(2, 10, 1514)
			if n := b.send(t, back...); n != 0 {
				t.Fatalf("%d dropped", n)
			}
			sameFrames(t, a.receive(t, len(back), 1514), back)
			// When there is room again, whole frames come, and then the next ones.
			mark := bytes.Repeat([]byte{'m'}, 77)
			marked := false
			socketUntil(t, "the peer gets a frame", func() bool {
				if !marked {
					marked = a.send(t, mark) == 0
				}
				frames := []frame{{bufs: [][]byte{make([]byte, 1514)}}}
				n, err := b.Port(0).Receive(frames)
				if err != nil {
					t.Fatal(err)
				}
				got := frames[0].bufs[0][:frames[0].n]
				if n == 1 && !bytes.Equal(got, mark) && !containsFrame(out, got) {
					t.Fatalf("a frame of %d bytes that nobody sent", len(got))
				}
				return n == 1 && bytes.Equal(got, mark)
			})
		})
	}
}

// The peer gets all of a frame that it has the beginning of, although nothing more is sent and nobody receives.
func TestAHalfWrittenFrameIsFinishedByItself(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"unix", "tcp"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			address := ownAddress()
			if kind == "unix" {
				address = filepath.Join(t.TempDir(), "s")
			}
			l, err := net.Listen(kind, address) //nolint:noctx // it waits for nothing
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close() //nolint:errcheck // a test's
			p := rawPeer{l: l, r: newSocketRig(t, &settings{Connect: kind + ":" + address, MTU: 65520})}
			c := p.accept(t)
			p.r.up(t)
			s, ok := p.r.backend.(*socket)
			if !ok {
				t.Fatalf("%T", p.r.backend)
			}
			body, sent := make([]byte, 65001), 0
			for !s.cur.Load().wire.unfinished() {
				for p.r.send(t, body) == 0 {
					sent++
				}
				if s.cur.Load().wire.unfinished() {
					break
				}
				if b, err := readFramed(c); err != nil || len(b) != len(body) { // no frame was cut: make room for a part of one
					t.Fatal(len(b), err)
				}
				sent--
			}
			for range sent {
				if b, err := readFramed(c); err != nil || len(b) != len(body) {
					t.Fatalf("%d of %d bytes: %v", len(b), len(body), err)
				}
			}
			socketUntil(t, "nothing is left", func() bool { return !s.cur.Load().wire.unfinished() })
		})
	}
}

func containsFrame(all [][]byte, b []byte) bool {
	for _, x := range all {
		if bytes.Equal(x, b) {
			return true
		}
	}
	return false
}

func TestASendersPatienceEndsWithItsContext(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0]) //nolint:errcheck // a test's
	defer unix.Close(fds[1]) //nolint:errcheck // a test's
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	frames := []frame{{bufs: [][]byte{make([]byte, 1514)}}}
	s := &streamWire{counts: &socketCounters{}}
	began := time.Now()
	for dropped := 0; dropped < 1000; { // which would take 100 s
		n, err := s.send(ctx, fds[0], frames)
		if err != nil {
			t.Fatal(err)
		}
		dropped += n
		s.full, s.tail = false, nil // as if it had not been told
	}
	if d := time.Since(began); d > socketPatience {
		t.Errorf("1000 frames took %v", d)
	}
}

func TestALostPeerComesBack(t *testing.T) {
	t.Parallel()
	for name, kind := range socketKinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sa, sb := kind(t)
			a, b := newSocketRig(t, sa), newSocketRig(t, sb)
			defer a.serve(t)()
			for round := range 3 {
				a.up(t)
				b.up(t)
				out := bodies(uint64(round), 3, 1514)
				if n := a.send(t, out...); n != 0 {
					t.Fatalf("%d dropped", n)
				}
				sameFrames(t, b.receive(t, 3, 1514), out)
				changes := a.changes.Load()
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				if !strings.HasPrefix(name, "udp") { // which cannot know
					a.down(t)
					socketUntil(t, "the device was told", func() bool { return a.changes.Load() > changes })
					if n := a.send(t, out...); n != 3 || a.count("socket_tx_dropped_no_peer") == 0 {
						t.Errorf("%d dropped without a peer: want 3: %v", n, a.Statistics())
					}
				}
				b = newSocketRig(t, sb)
			}
			a.up(t)
			b.up(t)
		})
	}
}

// The launcher keeps the listening socket when a plugin ends; the next one gets it.
func TestAPeerOfAListenerThatBeganAnewComesBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	launchers := listenAt(t, path)
	defer launchers.Close() //nolint:errcheck // a test's
	instance := func() sdk.Listener {
		f, err := launchers.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() //nolint:errcheck // the listener has its own
		l, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		ul, _ := l.(*net.UnixListener)
		ul.SetUnlinkOnClose(false)
		return sdk.Listener{Path: path, UnixListener: ul}
	}
	peer := newSocketRig(t, &settings{Connect: "unix:" + path})
	defer peer.serve(t)()
	for range 3 {
		a := newSocketRig(t, &settings{Listen: instance()})
		a.up(t)
		peer.up(t)
		out := bodies(1, 3, 1514)
		peer.send(t, out...)
		sameFrames(t, a.receive(t, 3, 1514), out)
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		peer.down(t)
	}
}

func TestWhatAPeerSentBeforeItHungUpArrives(t *testing.T) {
	t.Parallel()
	p := newRawPeer(t, "unix", "unix")
	want := bodies(1, 40, 1514)
	c := p.accept(t)
	p.r.up(t)
	for _, b := range want {
		if _, err := c.Write(framed(b)); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Close()
	sameFrames(t, p.r.receive(t, len(want), 1514), want)
}

func TestASecondPeerIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	a := newSocketRig(t, &settings{Listen: listenAt(t, path)})
	b := newSocketRig(t, &settings{Connect: "unix:" + path})
	a.up(t)
	b.up(t)
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // a test's
	if err := c.SetDeadline(time.Now().Add(socketPatience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the second peer: %v", err)
	}
	if a.count("socket_refused") != 1 || !a.Link() {
		t.Error(a.Statistics())
	}
	out := bodies(1, 3, 1514)
	b.send(t, out...)
	sameFrames(t, a.receive(t, 3, 1514), out)
}

// Nobody receives, as before the driver is there: the next peer must not wait for that.
func TestAPeerThatHungUpMakesRoomAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	a := newSocketRig(t, &settings{Listen: listenAt(t, path)})
	for range 3 {
		c, err := net.Dial("unix", path) //nolint:noctx // it waits for nothing
		if err != nil {
			t.Fatal(err)
		}
		a.up(t)
		if _, err := c.Write(framed(make([]byte, 60))); err != nil { // which nobody takes
			t.Fatal(err)
		}
		_ = c.Close()
	}
	b := newSocketRig(t, &settings{Connect: "unix:" + path})
	b.up(t)
	out := bodies(1, 3, 1514)
	socketUntil(t, "the last peer is served", func() bool { return a.count("socket_connections") == 4 })
	b.send(t, out...)
	sameFrames(t, a.receive(t, 3, 1514), out)
}

func TestWaitEndsByWakeByItsContextAndByAPeer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	a := newSocketRig(t, &settings{Listen: listenAt(t, path)})
	p := a.Port(0)
	p.Wake()
	if err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, connected := range []bool{false, true} {
		if connected {
			newSocketRig(t, &settings{Connect: "unix:" + path})
			a.up(t)
		}
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			done, begun := make(chan error), make(chan struct{})
			go func() {
				close(begun)
				for {
					if err := p.Wait(ctx); err != nil {
						done <- err
						return
					}
				}
			}()
			<-begun
			time.AfterFunc(5*time.Millisecond, cancel) // most likely it waits by then
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
	}
}

// One read of a stream brings several frames: what was not taken yet is not in the socket any more.
func TestWaitReturnsForFramesThatWereReadWithOthers(t *testing.T) {
	t.Parallel()
	p := newRawPeer(t, "unix", "unix")
	c := p.accept(t)
	p.r.up(t)
	const n = 20
	if _, err := c.Write(bytes.Repeat(framed(make([]byte, 60)), n)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), socketPatience)
	defer cancel()
	for got := 0; got < n; {
		if err := p.r.Port(0).Wait(ctx); err != nil {
			t.Fatalf("%d of %d frames: %v", got, n, err)
		}
		k, err := p.r.Port(0).Receive([]frame{{bufs: [][]byte{make([]byte, 100)}}})
		if err != nil {
			t.Fatal(err)
		}
		got += k
	}
}

func TestTheOwnPathOfDatagrams(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	own := filepath.Join(dir, "own")
	cfg := &settings{Bind: "unixgram:" + own, Connect: "unixgram:" + filepath.Join(dir, "peer")}

	// A dead process's is replaced, and ours removed at the end.
	fd, err := bindUnixgram(own)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	a := newSocketRig(t, cfg)
	if info, err := os.Stat(own); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: want mode 0600", info, err)
	}
	// A live one is not touched.
	if _, err := newSocket(&sdk.Env{}, cfg, func() {}); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another program has it") {
		t.Errorf("a path in use: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(own); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
	// What is no socket stays.
	if err := os.WriteFile(own, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newSocket(&sdk.Env{}, cfg, func() {}); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if b, err := os.ReadFile(own); err != nil || string(b) != "precious" { //nolint:gosec // G304: a test's
		t.Errorf("the file: %q, %v", b, err)
	}
	// Nor somebody else's who took the path meanwhile.
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	a = newSocketRig(t, cfg)
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(own); err != nil {
		t.Error(err)
	}
}

func TestSettingsThatMakeNoConnectionSayWhatToWrite(t *testing.T) {
	t.Parallel()
	l := listenAt(t, filepath.Join(t.TempDir(), "s"))
	defer l.Close()                                //nolint:errcheck // a test's
	taken, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it waits for nothing
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // a test's
	for _, c := range []struct {
		cfg       settings
		attribute string
		says      string
	}{
		{settings{}, "backend", `listen = "PATH"`},
		{settings{Listen: l, Connect: "unix:/x"}, "connect", "leave one of them out"},
		{settings{Listen: l, Bind: "tcp:127.0.0.1:1234"}, "bind", "leave one of them out"},
		{settings{Listen: l, QueuePairs: 2}, "queue_pairs", "one pair"},
		{settings{Connect: "/tmp/sock"}, "connect", `"unix:PATH"`},
		{settings{Connect: "unix:"}, "connect", "path is missing"},
		{settings{Connect: "unix:/" + strings.Repeat("x", 107)}, "connect", "at most 107"},
		{settings{Connect: "http:x"}, "connect", `"tcp:HOST:PORT"`},
		{settings{Connect: "tcp:localhost"}, "connect", `"tcp:HOST:PORT"`},
		{settings{Connect: "tcp:::1:80"}, "connect", "brackets"},
		{settings{Connect: "tcp:localhost:0"}, "connect", "1 to 65535"},
		{settings{Connect: "tcp:localhost:65536"}, "connect", "1 to 65535"},
		{settings{Connect: "tcp::80"}, "connect", "host is missing"},
		{settings{Connect: "tcp:0.0.0.0:80"}, "connect", "127.0.0.1"},
		{settings{Connect: "tcp:h:80", Bind: "tcp:h:81"}, "bind", "leave one of them out"},
		{settings{Connect: "udp:h:80"}, "connect", `add bind = "udp:HOST:PORT"`},
		{settings{Connect: "unixgram:/x"}, "connect", `add bind = "unixgram:PATH"`},
		{settings{Connect: "unixgram:/x", Bind: "unixgram:/x"}, "connect", "own end"},
		{settings{Connect: "udp:230.0.0.1:1234", Bind: "udp::1234"}, "connect", "groups are not supported"},
		{settings{Connect: "udp:h:80", Bind: "udp:h:80", MTU: 65520}, "connect", "own end"},
		{settings{Connect: "udp:h:80", Bind: "udp:h:81", MTU: 65520}, "mtu", "up to 65489"},
		{settings{Connect: "udp:h:80", Bind: "unixgram:/x"}, "bind", "one kind"},
		{settings{Connect: "unix:/x", Bind: "tcp:h:80"}, "bind", "one kind"},
		{settings{Bind: "udp:h:80"}, "bind", `add connect = "udp:HOST:PORT"`},
		{settings{Bind: "unix:/x"}, "bind", `listen = "/x"`},
		{settings{Bind: "seqpacket:/x"}, "bind", `listen = "/x"`},
		{settings{Bind: "tcp:" + taken.Addr().String()}, "bind", "another program has it"},
		{settings{Bind: "tcp:192.0.2.1:1234"}, "bind", "no such address"},
		{settings{Bind: "unixgram:/nonexistent/x", Connect: "unixgram:/x"}, "bind", "make its folder"},
	} {
		_, err := newSocket(&sdk.Env{}, &c.cfg, func() {})
		var se *pluginrpc.SettingError
		if !errors.As(err, &se) || se.Attribute != c.attribute || !strings.Contains(se.Message, c.says) {
			t.Errorf("%q, %q: %v\nwant one of %s that says %s", c.cfg.Connect, c.cfg.Bind, err, c.attribute, c.says)
		}
	}
}

func TestNoFrameCostsAnAllocation(t *testing.T) { //nolint:paralleltest // it counts the process's allocations
	for _, kind := range []string{"unix", "unixgram"} {
		sa, sb := socketKinds[kind](t)
		a, b := newSocketRig(t, sa), newSocketRig(t, sb)
		a.up(t)
		b.up(t)
		ctx := t.Context()
		out := []frame{{bufs: split(make([]byte, 1514), 3)}, {bufs: split(make([]byte, 60), 2)}}
		in := []frame{{bufs: split(make([]byte, 1600), 3)}, {bufs: split(make([]byte, 1600), 3)}}
		pa, pb := a.Port(0), b.Port(0)
		if n := testing.AllocsPerRun(200, func() {
			if n, err := pa.Send(ctx, out); n != 0 || err != nil {
				t.Fatal(n, err)
			}
			for got := 0; got < len(out); {
				if err := pb.Wait(ctx); err != nil {
					t.Fatal(err)
				}
				n, err := pb.Receive(in)
				if err != nil {
					t.Fatal(err)
				}
				got += n
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", kind, n)
		}
	}
}

func TestConformanceWithAPeerAndACapture(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	peer := newSocketRig(t, &settings{Listen: listenAt(t, filepath.Join(dir, "s"))})
	defer peer.serve(t)()
	devicetest.Run(t, plugin(), devicetest.Options{
		Settings: map[string]any{"backend": "socket", "connect": "unix:" + filepath.Join(dir, "s"), "capture": filepath.Join(dir, "c.pcapng")},
		Keeps:    func(queue int) bool { return queue == 0 },
	})
}

// Nobody's name may wait for ever, nor a peer that is a socket of another kind.
func TestSocketsCloseWhateverTheyAreDoing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	fd, err := bindUnixgram(path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // a test's
	for _, cfg := range []*settings{
		{Connect: "unix:" + path},
		{Connect: "unix:/nonexistent"},
		{Connect: "tcp:192.0.2.1:1234"},
		{Connect: "tcp:no-such-host.invalid:1234"},
		{Connect: "udp:no-such-host.invalid:1234", Bind: "udp:" + ownAddress()},
		{Bind: "tcp:" + ownAddress()},
	} {
		r := newSocketRig(t, cfg)
		if r.Link() {
			t.Errorf("%+v: the link is up", cfg)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func FuzzSocketStream(f *testing.F) {
	f.Add(framed(make([]byte, 60)), uint16(1514), byte(3))
	f.Add([]byte{0, 0, 0, 0}, uint16(0), byte(1))
	f.Add(append(framed(make([]byte, 13)), 255, 255, 255, 255), uint16(20), byte(7))
	f.Add(append(framed(make([]byte, 2000)), framed(make([]byte, 15))...), uint16(100), byte(200))
	f.Fuzz(func(t *testing.T, input []byte, room uint16, step byte) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[0]) //nolint:errcheck // a test's
		defer unix.Close(fds[1]) //nolint:errcheck // a test's
		s := &streamWire{counts: &socketCounters{}}
		guard := []byte("guard")
		buf := append(make([]byte, room), guard...)
		var got [][]byte
		for rest := input; len(rest) > 0; {
			n, err := unix.Write(fds[1], rest[:min(len(rest), 1+int(step)*16)])
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
			frames := []frame{{bufs: split(buf[:room:room], 1+int(step)%4)}}
			for {
				n, err := s.receive(fds[0], frames)
				if err != nil && !errors.Is(err, errFraming) {
					t.Fatal(err)
				}
				if err != nil {
					rest = nil
				}
				if n == 0 {
					break
				}
				if frames[0].n < minFrame || frames[0].n > int(room) {
					t.Fatalf("a frame of %d bytes for a room of %d", frames[0].n, room)
				}
				got = append(got, bytes.Clone(buf[:frames[0].n]))
			}
		}
		if !bytes.HasSuffix(buf, guard) || len(s.in) > socketReadSize {
			t.Fatal("written behind the room")
		}
		sameFrames(t, got, parseFrames(input, int(room)))
	})
}

// parseFrames is what a stream brings, slowly and simply.
func parseFrames(b []byte, room int) (frames [][]byte) {
	for len(b) >= lengthSize {
		n := int(binary.BigEndian.Uint32(b))
		if n == 0 || n > maxSocketFrame || len(b) < lengthSize+n {
			return frames
		}
		if n >= minFrame && n <= room {
			frames = append(frames, b[lengthSize:lengthSize+n])
		}
		b = b[lengthSize+n:]
	}
	return frames
}

func TestAPeerThatComesAndGoesDoesNotFloodTheUser(t *testing.T) {
	t.Parallel()
	n := &news{env: &sdk.Env{}}
	told := 0
	for range 100 {
		if _, ok := n.allowed(); ok {
			told++
		}
	}
	if told != newsBurst {
		t.Errorf("%d of 100 messages were told: want %d", told, newsBurst)
	}
	for i := range n.recent { // as if time had passed
		n.recent[i] = n.recent[i].Add(-newsInterval)
	}
	if unsaid, ok := n.allowed(); !ok || !strings.Contains(unsaid, "94 messages") {
		t.Errorf("later: %q, %v", unsaid, ok)
	}
	if _, ok := n.allowed(); ok {
		t.Error("another one at once")
	}
}
