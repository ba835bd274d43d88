package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/virtplug/virtplug/sdk"
)

// socketPatience is how long a test of the socket back-end waits for what must come.
const socketPatience = 30 * time.Second

// socketRig is a back-end and how often its link changed.
type socketRig struct {
	backend
	changes *atomic.Uint64
}

func newSocketRig(t *testing.T, cfg *settings) socketRig {
	t.Helper()
	r := socketRig{changes: &atomic.Uint64{}}
	var err error
	if r.backend, err = newSocket(&sdk.Env{Name: "net0"}, cfg, func() { r.changes.Add(1) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// up waits until there is a peer.
func (r socketRig) up(t *testing.T) {
	t.Helper()
	socketUntil(t, "the link is up", r.Link)
}

func (r socketRig) down(t *testing.T) {
	t.Helper()
	socketUntil(t, "the link is down", func() bool { return !r.Link() })
}

// send sends bodies as one batch, each in several buffers, and returns how many were dropped.
func (r socketRig) send(t *testing.T, bodies ...[]byte) int {
	t.Helper()
	frames := make([]frame, len(bodies))
	for i, b := range bodies {
		frames[i] = frame{bufs: split(b, 1+i%5), n: len(b)}
	}
	dropped, err := r.Port(0).Send(t.Context(), frames)
	if err != nil {
		t.Fatal(err)
	}
	return dropped
}

// receive waits for n frames, which have room bytes each, in three buffers.
func (r socketRig) receive(t *testing.T, n, room int) [][]byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), socketPatience)
	defer cancel()
	var got [][]byte
	for len(got) < n {
		frames := make([]frame, min(8, n-len(got)))
		for i := range frames {
			frames[i] = frame{hdr: header{1}, bufs: split(make([]byte, room), 3)}
		}
		k, err := r.Port(0).Receive(frames)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames[:k] {
			if f.hdr != (header{}) {
				t.Fatalf("header %v: want none", f.hdr)
			}
			got = append(got, bytes.Join(f.bufs, nil)[:f.n])
		}
		if k > 0 {
			continue
		}
		if err := r.Port(0).Wait(ctx); err != nil {
			t.Fatalf("%d of %d frames: %v", len(got), n, err)
		}
	}
	return got
}

// serve receives what comes, in the background, as a device does.
func (r socketRig) serve(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		frames := []frame{{bufs: [][]byte{make([]byte, 2000)}}}
		for r.Port(0).Wait(ctx) == nil {
			for n := 1; n > 0; {
				n, _ = r.Port(0).Receive(frames)
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (r socketRig) count(name string) uint64 { return r.Statistics()[name] }

// split cuts b in n parts.
func split(b []byte, n int) [][]byte {
	var bufs [][]byte
	for i := range n {
		bufs = append(bufs, b[len(b)*i/n:len(b)*(i+1)/n])
	}
	return bufs
}

// bodies are n frames of sizes from minFrame to longest, with bytes of their own.
func bodies(seed uint64, n, longest int) [][]byte {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // G404: a test's
	all := make([][]byte, n)
	for i := range all {
		b := make([]byte, minFrame+r.IntN(longest-minFrame+1))
		for j := range b {
			b[j] = byte(r.Uint32()) //nolint:gosec // G115: any byte
		}
		all[i] = b
	}
	return all
}

func sameFrames(t *testing.T, got, want [][]byte) {
	t.Helper()
	if !slices.EqualFunc(got, want, bytes.Equal) {
		lengths := func(all [][]byte) (n []int) {
			for _, b := range all {
				n = append(n, len(b))
			}
			return n
		}
		t.Fatalf("frames of %v bytes, want %v; or others", lengths(got), lengths(want))
	}
}

func socketUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(socketPatience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, socketPatience)
		}
	}
}

// listenAt makes what the launcher makes of listen = path.
func listenAt(t *testing.T, path string) sdk.Listener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	return sdk.Listener{Path: path, UnixListener: l}
}

// ownAddress is an address and port of this host that nobody else uses: every process has loopback addresses of its own, and the port
// is none that the kernel hands out.
func ownAddress() string {
	n := ownAddresses.Add(1)
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d:7000", 1+pid>>8&0x7f, pid&0xff, 1+n%254)
}

var ownAddresses atomic.Uint32

// rawPeer is a listener that a back-end connects to, and the test as its peer.
type rawPeer struct {
	l net.Listener
	r socketRig
}

func newRawPeer(t *testing.T, network, kind string) rawPeer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen(network, path) //nolint:noctx // it waits for nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return rawPeer{l: l, r: newSocketRig(t, &settings{Connect: kind + ":" + path})}
}

// accept is the next connection.
func (p rawPeer) accept(t *testing.T) net.Conn {
	t.Helper()
	if d, ok := p.l.(*net.UnixListener); ok {
		if err := d.SetDeadline(time.Now().Add(socketPatience)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := p.l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(socketPatience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// framed is body as a stream has it.
func framed(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...) //nolint:gosec // G115: a test's frame
}

func readFramed(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxSocketFrame {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
