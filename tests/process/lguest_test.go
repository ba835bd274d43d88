package process

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/core/transport/lguest"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// onLguest puts rigs' devices on a lguest bus and returns what its guest finds on the device page.
func onLguest(t *testing.T, o loopback.LguestOptions, rigs ...*rig) (*loopback.Lguest, []*loopback.LguestDevice) {
	t.Helper()
	var devices []*device.Device
	for _, r := range rigs {
		devices = append(devices, r.dev)
	}
	o.Log = hclog.New(&hclog.LoggerOptions{Name: "bus", Level: hclog.Debug, Output: testWriter{t}})
	m, err := loopback.OpenLguest(t.Context(), devices, o)
	check(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		check(t, m.Close(ctx))
	})
	found, err := m.Devices()
	check(t, err)
	if len(found) != len(rigs) {
		t.Fatalf("the guest found %d devices, want %d", len(found), len(rigs))
	}
	return m, found
}

// throughWords makes a host's requests go through a file in /dev/lguest's format.
func throughWords(t *testing.T, irqs *atomic.Int64) func(lguest.Requests) lguest.Requests {
	t.Helper()
	return func(host lguest.Requests) lguest.Requests {
		f := lguest.NewDeviceFile(wordsFile{host, irqs})
		t.Cleanup(func() { check(t, f.Close()) })
		return f
	}
}

// wordsFile carries out the words that are written to it.
type wordsFile struct {
	host lguest.Requests
	irqs *atomic.Int64
}

func (f wordsFile) Pwrite(p []byte, cpu int64) (int, error) {
	r, err := lguest.DecodeRequest(p, bits.UintSize/8)
	if err != nil || cpu != 0 {
		return 0, syscall.EINVAL
	}
	if r.Op == lguest.OpIRQ {
		f.irqs.Add(1)
	}
	return 0, r.Do(f.host)
}

func (wordsFile) Pread([]byte, int64) (int, error) { return 0, syscall.EINVAL } // its guest is not behind the file
func (wordsFile) Close() error                     { return nil }

// Every byte that goes through the real block plugin on the lguest bus comes back, in every legacy ring format, again after each
// of several resets; with interrupts straight from the plugin, and by requests in /dev/lguest's format.
func TestProcessLguestBlockKeepsEveryByte(t *testing.T) {
	t.Parallel()
	for _, words := range []bool{false, true} {
		for _, refuse := range []virtio.Features{0, virtio.FIndirectDesc, virtio.FEventIdx, virtio.FIndirectDesc | virtio.FEventIdx} {
			t.Run(fmt.Sprintf("words=%v/refuse=%v", words, refuse), func(t *testing.T) {
				t.Parallel()
				r := open(t, "block", map[string]any{"path": image(t, 8<<20), "queues": 2})
				var irqs atomic.Int64
				o := loopback.LguestOptions{}
				if words {
					o.Through = throughWords(t, &irqs)
				}
				m, found := onLguest(t, o, r)
				const lives = 3
				for range lives {
					check(t, found[0].Probe(t.Context(), refuse))
					if f, _ := r.dev.Negotiated(); f.Has(virtio.FVersion1) || f != found[0].Machine().Features() {
						t.Fatalf("negotiated %v", f)
					}
					verify(t, found[0].Machine(), 200*time.Millisecond)
				}
				if r.starts.Load() != 1 {
					t.Errorf("%d instances", r.starts.Load())
				}
				if words != (irqs.Load() > 0) {
					t.Errorf("%d interrupts by request", irqs.Load())
				}
				if n := m.Reached(); n != 2*lives { // a reset and final features each, no kick
					t.Errorf("%d notifications reached the launcher, want %d", n, 2*lives)
				}
			})
		}
	}
}

// A plugin may die and come back while a legacy driver's requests are in flight.
func TestProcessLguestBlockSurvivesBeingKilled(t *testing.T) {
	t.Parallel()
	r := open(t, "block", map[string]any{"path": image(t, 8<<20), "queues": 2})
	_, found := onLguest(t, loopback.LguestOptions{}, r)
	check(t, found[0].Probe(t.Context(), 0))
	over := make(chan struct{})
	go func() {
		defer close(over)
		verify(t, found[0].Machine(), 1500*time.Millisecond)
	}()
	for range 3 {
		before := r.inst.Load()
		check(t, syscall.Kill(before.PID(), syscall.SIGKILL))
		for r.inst.Load() == before {
			time.Sleep(5 * time.Millisecond)
		}
	}
	<-over
	if n := r.starts.Load(); n != 4 {
		t.Errorf("%d instances", n)
	}
}

// A disk that grows shows in the device page, of which no interrupt tells.
func TestProcessLguestDiskGrows(t *testing.T) {
	t.Parallel()
	r := open(t, "block", map[string]any{"path": image(t, 1<<20)})
	_, found := onLguest(t, loopback.LguestOptions{}, r)
	check(t, found[0].Probe(t.Context(), 0))
	capacity := func() uint64 { return binary.LittleEndian.Uint64(found[0].Config()) }
	if n := capacity(); n != 2048 {
		t.Fatalf("capacity %d sectors", n)
	}
	_, err := r.dev.Command(t.Context(), "resize", []byte(`{"size": 4194304}`))
	check(t, err)
	for end := time.Now().Add(30 * time.Second); capacity() != 8192; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("capacity stays %d sectors", capacity())
		}
	}
}

// The console's output reaches its file, and both devices live on one bus, beside the early console.
func TestProcessLguestConsoleBesideBlock(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "console.log")
	var early bytes.Buffer
	disk := open(t, "block", map[string]any{"path": image(t, 8<<20)})
	con := open(t, "console", map[string]any{"file": out})
	m, found := onLguest(t, loopback.LguestOptions{Console: func(b []byte) { early.Write(b) }}, disk, con)
	text, err := m.Memory().Slice(0x1000, 16)
	check(t, err)
	copy(text, "early\n\x00rubbish")
	m.Notify(t.Context(), 0x1000)
	if early.String() != "early\n" {
		t.Errorf("early console has %q", early.String())
	}
	for _, d := range found {
		check(t, d.Probe(t.Context(), 0))
	}
	verify(t, found[0].Machine(), 200*time.Millisecond)
	const line = "hello from the lguest bus\n"
	tx := found[1].Machine().Queues()[1]
	buf, err := m.Arena().Buffer(len(line))
	check(t, err)
	copy(m.Arena().Bytes(buf), line)
	if _, ok := tx.Add([]driver.Buffer{buf}, nil); !ok {
		t.Fatal("no room")
	}
	check(t, tx.Send())
	for !tx.EnableCalls() {
		check(t, tx.WaitCall())
	}
	tx.Used()
	got, err := os.ReadFile(out) //nolint:gosec // G304: the test's own
	check(t, err)
	if string(got) != line {
		t.Errorf("console file has %q", got)
	}
}
