package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// echoes is a back-end that gives back what it gets, and lets a test look.
type echoes struct {
	backend // nil: only Port matters
	offer   offer
	look    func(f *frame)
	waiting [][]byte
}

func (e *echoes) Offer() offer                  { return e.offer }
func (e *echoes) Port(int) port                 { return e }
func (e *echoes) Statistics() map[string]uint64 { return map[string]uint64{"inner": 1} }
func (e *echoes) Close() error                  { return nil }
func (e *echoes) Wait(context.Context) error    { return nil }
func (e *echoes) Wake()                         {}

func (e *echoes) Send(_ context.Context, frames []frame) (int, error) {
	for i := range frames {
		if e.look != nil {
			e.look(&frames[i])
		}
		e.waiting = append(e.waiting, bytes.Join(frames[i].bufs, nil))
	}
	return 0, nil
}

func (e *echoes) Receive(frames []frame) (n int, _ error) {
	for n < len(frames) && len(e.waiting) > 0 {
		scatter(frames[n].bufs, e.waiting[0])
		frames[n].hdr, frames[n].n = header{1, 2, 3}, len(e.waiting[0])
		e.waiting = e.waiting[1:]
		if e.look != nil {
			e.look(&frames[n])
		}
		n++
	}
	return n, nil
}

// captureFile is a file as the launcher opens it; instance gives a descriptor of it, as each plugin instance gets one.
func captureFile(t *testing.T, path string) (instance func() sdk.File) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // G304: a test's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return func() sdk.File {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return sdk.File{Path: path, File: os.NewFile(uintptr(fd), path)}
	}
}

func newCaptureRig(t *testing.T, b backend, f sdk.File) backend {
	t.Helper()
	c, err := newCapture(b, f, &sdk.Env{Name: "net0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// pass sends bodies and takes them back, and fails if they are others.
func pass(t *testing.T, p port, sent ...[]byte) {
	t.Helper()
	frames := make([]frame, len(sent))
	for i, b := range sent {
		frames[i] = frame{hdr: header{9}, bufs: split(b, 1+i%3), n: len(b)}
	}
	if n, err := p.Send(t.Context(), frames); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	var got [][]byte
	for len(got) < len(sent) {
		for i := range frames {
			frames[i] = frame{bufs: split(make([]byte, 65553), 2)}
		}
		n, err := p.Receive(frames)
		if n == 0 || err != nil {
			t.Fatal(n, err)
		}
		for _, f := range frames[:n] {
			if f.hdr != (header{1, 2, 3}) {
				t.Fatalf("header %v", f.hdr)
			}
			got = append(got, bytes.Join(f.bufs, nil)[:f.n])
		}
	}
	sameFrames(t, got, sent)
}

// captured is a record of a capture file.
type captured struct {
	d    direction
	at   time.Time
	body []byte
}

// readCapture takes a capture to pieces.
func readCapture(t *testing.T, path string) (all []captured) {
	t.Helper()
	b, err := os.ReadFile(path) //nolint:gosec // G304: a test's
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for ; len(b) > 0; blocks++ {
		if len(b) < 12 {
			t.Fatalf("block %d: %d bytes are left", blocks, len(b))
		}
		kind, n := le.Uint32(b), int(le.Uint32(b[4:]))
		if n < 12 || n%4 != 0 || n > len(b) || le.Uint32(b[n-4:]) != uint32(n) { //nolint:gosec // G115: it was one
			t.Fatalf("block %d: length %d, %d are left", blocks, n, len(b))
		}
		want := uint32(blockPacket)
		if blocks < 2 {
			want = []uint32{blockSection, blockInterface}[blocks]
		}
		if kind != want {
			t.Fatalf("block %d: kind %#x", blocks, kind)
		}
		if kind == blockPacket {
			k := int(le.Uint32(b[20:]))
			stamp := uint64(le.Uint32(b[12:]))<<32 | uint64(le.Uint32(b[16:]))
			all = append(all, captured{
				direction(le.Uint32(b[28+k+padding(k)+4:])), time.Unix(0, int64(stamp)), bytes.Clone(b[28 : 28+k]), //nolint:gosec // G115: a time
			})
		}
		b = b[n:]
	}
	return all
}

func checkCapture(t *testing.T, path string, rounds ...[][]byte) {
	t.Helper()
	all := readCapture(t, path)
	for _, sent := range rounds {
		for _, d := range []direction{outbound, inbound} {
			for i, body := range sent {
				if len(all) == 0 {
					t.Fatal("frames are missing")
				}
				if all[0].d != d || !bytes.Equal(all[0].body, body) || time.Since(all[0].at).Abs() > time.Hour {
					t.Fatalf("direction %d, frame %d: direction %d, %d bytes, %v", d, i, all[0].d, len(all[0].body), all[0].at)
				}
				all = all[1:]
			}
		}
	}
	if len(all) > 0 {
		t.Fatalf("%d frames more", len(all))
	}
}

func TestACaptureHasAllFramesBothWays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.pcapng")
	if err := os.WriteFile(path, bytes.Repeat([]byte("what was there before"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCaptureRig(t, &echoes{offer: offer{Pairs: 3, MTU: 9000}}, captureFile(t, path)())
	checkCapture(t, path)
	small, large := bodies(1, 9, 1514), bodies(2, 9, 65549)
	large = append(large, bytes.Repeat([]byte("x"), 65549)) // more than goes on at once
	pass(t, c.Port(0), small...)
	pass(t, c.Port(2), large...)
	checkCapture(t, path, small, large)
	if c.Port(1) != c.Port(1) || c.Offer().MTU != 9000 {
		t.Error("another port or offer")
	}
	if s := c.Statistics(); s["inner"] != 1 || s["capture_frames"] != 2*19 || s["capture_dropped"] != 0 {
		t.Error(s)
	}
}

func TestACaptureGoesOnAfterTheDeathOfAnInstance(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.pcapng")
	instance := captureFile(t, path)
	var rounds [][][]byte
	for i := range 3 {
		f := instance()
		c := newCaptureRig(t, &echoes{offer: offer{Pairs: 1}}, f)
		sent := bodies(uint64(i), 5, 1514)
		pass(t, c.Port(0), sent...)
		rounds = append(rounds, sent)
		checkCapture(t, path, rounds...)
		// Killed in the middle of a write: half a record stands behind the last good one.
		half, _ := appendRecord(nil, time.Now(), inbound, [][]byte{make([]byte, 60000)})
		end, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(half[:50000], end); err != nil {
			t.Fatal(err)
		}
		// A swap's new instance, before it serves, leaves alone what the old one is writing.
		if i == 1 {
			newCaptureRig(t, &echoes{offer: offer{Pairs: 1}}, instance())
			if now, err := f.Seek(0, io.SeekEnd); err != nil || now != end+50000 {
				t.Fatalf("%d bytes, %v: want %d", now, err, end+50000)
			}
		}
		if _, err := f.Seek(end, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
	c := newCaptureRig(t, &echoes{offer: offer{Pairs: 1}}, instance())
	pass(t, c.Port(0), rounds[0]...)
	checkCapture(t, path, append(rounds, rounds[0])...)
}

func TestACaptureShowsWhatWentOutWhateverTheGuestWritesMeanwhile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.pcapng")
	guestMemory := make([]byte, 2000)
	e := &echoes{offer: offer{Pairs: 1}}
	c := newCaptureRig(t, e, captureFile(t, path)())
	want := bodies(1, 1, 100)[0]
	e.look = func(*frame) { clear(guestMemory) } // a guest that changes its buffers at the worst moment
	copy(guestMemory, want)
	if _, err := c.Port(0).Send(t.Context(), []frame{{bufs: [][]byte{guestMemory[:len(want)]}}}); err != nil {
		t.Fatal(err)
	}
	sameFrames(t, e.waiting, [][]byte{want})
	f := []frame{{bufs: [][]byte{guestMemory}}}
	e.look = func(g *frame) {
		if &g.bufs[0][0] == &guestMemory[0] {
			t.Error("a frame stood in the guest's memory before it was recorded")
		}
	}
	if n, err := c.Port(0).Receive(f); n != 1 || err != nil || !bytes.Equal(guestMemory[:f[0].n], want) {
		t.Fatal(n, err)
	}
	checkCapture(t, path, [][]byte{want})
}

func TestACaptureThatCannotBeWrittenEndsAndTheTrafficGoesOn(t *testing.T) {
	t.Parallel()
	fd, err := unix.MemfdCreate("capture", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "capture")
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	c := newCaptureRig(t, &echoes{offer: offer{Pairs: 1}}, sdk.File{Path: path, File: f})
	sent := bodies(1, 5, 1514)
	pass(t, c.Port(0), sent...)
	// As on a disk with 8 KiB left: what goes beyond is refused, after half of it was written.
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = f.Truncate(size + 8192)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW)
	}
	if err == nil {
		_, err = f.Seek(size, io.SeekStart)
	}
	if err != nil {
		t.Fatal(err)
	}
	lost := bodies(2, 5, 1514)
	lost[4] = make([]byte, 20000)
	pass(t, c.Port(0), lost...)
	pass(t, c.Port(0), sent...)
	checkCapture(t, path, sent)
	if s := c.Statistics(); s["capture_frames"] != 10 || s["capture_dropped"] != 20 {
		t.Error(s)
	}
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close() //nolint:errcheck // a test's
	var se *pluginrpc.SettingError
	if _, err := newCapture(&echoes{}, sdk.File{Path: "/dev/full", File: full}, &sdk.Env{}); !errors.As(err, &se) || se.Attribute != "capture" {
		t.Errorf("a full disk at the start: %v", err)
	}
}

func TestAFileIsForOneCapture(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.pcapng")
	c := newCaptureRig(t, &echoes{offer: offer{Pairs: 1}}, captureFile(t, path)())
	sent := bodies(1, 5, 1514)
	pass(t, c.Port(0), sent...)
	f := captureFile(t, path)()
	defer f.Close() //nolint:errcheck // a test's
	if _, err := newCapture(&echoes{}, f, &sdk.Env{}); err == nil || !strings.Contains(err.Error(), "another device captures there") {
		t.Errorf("a second capture: %v", err)
	}
	checkCapture(t, path, sent)
}

func TestTsharkReadsACapture(t *testing.T) {
	t.Parallel()
	tshark := needProgram(t, "tshark", "tshark")
	path := filepath.Join(t.TempDir(), "c.pcapng")
	c := newCaptureRig(t, &echoes{offer: offer{Pairs: 1}}, captureFile(t, path)())
	pass(t, c.Port(0), pingFrame(7), pingFrame(8))
	out, err := exec.CommandContext(t.Context(), tshark, "-n", "-r", path, "-T", "fields", //nolint:gosec // G204: a test's
		"-e", "frame.interface_name", "-e", "frame.packet_flags_direction", "-e", "icmp.type", "-e", "icmp.seq", "-e", "icmp.checksum.status").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, d := range []string{"2", "1"} {
		for _, seq := range []string{"7", "8"} {
			want += "net0\t0x0000000" + d + "\t8\t" + seq + "\t1\n"
		}
	}
	if string(out) != want {
		t.Errorf("tshark says\n%swant\n%s", out, want)
	}
}

// pingFrame is a ping.
func pingFrame(seq uint16) []byte {
	b := append(bytes.Repeat([]byte{0xff}, 6), testMAC[:]...)
	b = append(b, 0x08, 0x00)
	ip := []byte{0x45, 0, 0, 84, 0, 1, 0, 0, 64, 1, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2}
	binary.BigEndian.PutUint16(ip[10:], internetChecksum(ip))
	icmp := make([]byte, 64)
	icmp[0] = 8
	binary.BigEndian.PutUint16(icmp[6:], seq)
	binary.BigEndian.PutUint16(icmp[2:], internetChecksum(icmp))
	return append(append(b, ip...), icmp...)
}

func TestACaptureCostsNoAllocationPerFrame(t *testing.T) { //nolint:paralleltest // it counts the process's allocations
	path := filepath.Join(t.TempDir(), "c.pcapng")
	sa, sb := socketKinds["unix"](t)
	a, b := newSocketRig(t, sa), newSocketRig(t, sb)
	a.up(t)
	b.up(t)
	c := newCaptureRig(t, a.backend, captureFile(t, path)())
	p := c.Port(0)
	frames := []frame{{bufs: split(make([]byte, 1514), 3)}, {bufs: split(make([]byte, 60), 2)}}
	back := []frame{{bufs: split(make([]byte, 1600), 3)}, {bufs: split(make([]byte, 1600), 3)}}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if n, err := p.Send(ctx, frames); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := b.Port(0).Send(ctx, frames); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		for _, q := range []port{p, b.Port(0)} {
			for got := 0; got < len(frames); {
				n, err := q.Receive(back)
				if err != nil {
					t.Fatal(err)
				}
				got += n
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
