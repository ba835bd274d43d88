package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// loopDevice makes a block device of a file; the test skips where that cannot be had.
func loopDevice(t *testing.T, size int64, sector int) string {
	t.Helper()
	losetup, err := exec.LookPath("losetup")
	if err != nil {
		t.Skipf("NO LOOP DEVICES: %v", err)
	}
	out, err := exec.CommandContext(t.Context(), losetup, "--show", "-f", "-b", fmt.Sprint(sector), imageFile(t, size)).CombinedOutput() //nolint:gosec // G204: the tool found above
	if err != nil {
		t.Skipf("NO LOOP DEVICES: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command(losetup, "-d", dev).CombinedOutput(); err != nil { //nolint:gosec,noctx // G204: as above; the test's context has ended
			t.Errorf("%v: %s", err, out)
		}
	})
	return dev
}

func TestBlockDevice(t *testing.T) {
	t.Parallel()
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct=%v", direct), func(t *testing.T) {
			t.Parallel()
			dev := loopDevice(t, 8<<20, 4096)
			cfg := defaultSettings()
			cfg.Direct = direct
			b, _ := newDisk(t, dev, cfg)
			if b.geometry.block != 4096 || b.img.sectors() != 16384 || !b.img.blockDevice {
				t.Errorf("geometry %+v, %d sectors", b.geometry, b.img.sectors())
			}
			r := newRig(t, b, 0, 0)
			want := pattern(1, 65536)
			r.write(0, want)
			r.write(1024, want)
			r.flush()
			r.want(virtio.BlkSOK, virtio.BlkTDiscard, 0, segment(0, 8, 0), 0)
			r.want(virtio.BlkSOK, virtio.BlkTDiscard, 0, segment(17, 1, 0), 0) // a part of a block: left alone
			r.want(virtio.BlkSOK, virtio.BlkTWriteZeroes, 0, segment(8, 8, 1), 0)
			r.want(virtio.BlkSOK, virtio.BlkTWriteZeroes, 0, segment(1024, 8, 0), 0)
			r.want(virtio.BlkSOK, virtio.BlkTWriteZeroes, 0, segment(1033, 1, 0), 0) // a part of a block: written
			clear(want[:8192])
			if !bytes.Equal(r.read(0, len(want)), want) {
				t.Error("wrong data after discard and zeroes")
			}
			want = pattern(1, 65536)
			clear(want[:4096])
			clear(want[512*9 : 512*10])
			if !bytes.Equal(r.read(1024, len(want)), want) {
				t.Error("wrong data after zeroes that do not unmap")
			}
			if _, err := resize(t, b, `{"size": 16777216}`); err == nil || !strings.Contains(err.Error(), "block device") {
				t.Errorf("resize of a block device: %v", err)
			}
			if got, err := resize(t, b, `{}`); err != nil || got.Size != 8<<20 {
				t.Errorf("resize: %+v, %v", got, err)
			}
			wantUse(t, dev, "a writer", false, false)
			cfg.BlockSize = 512
			open(t, dev, &cfg)
			cfg.Locking = "off"
			if _, err := newBlock("vdb", &fakeHost{}, func(error) {}, &cfg); err == nil || !strings.Contains(err.Error(), "smaller than the 4096") {
				t.Errorf("blocks below the device's: %v", err)
			}
		})
	}
}

// BenchmarkHandler is the device's own cost: ring, parsing, engine and system call, without a wake-up.
func BenchmarkHandler(b *testing.B) {
	path := imageFile(b, 64<<20)
	fill(b, path, 64<<20)
	for name, kind := range map[string]uint32{"read": virtio.BlkTIn, "write": virtio.BlkTOut, "getid": virtio.BlkTGetID} {
		b.Run(name+"/4k", func(b *testing.B) {
			cfg := defaultSettings()
			cfg.Locking = "off"
			disk, _ := newDisk(b, path, cfg)
			r := newRig(b, disk, 0, virtio.FEventIdx|virtio.FIndirectDesc)
			const depth = 32
			var chains [depth]struct{ readable, writable []driver.Buffer }
			for i := range chains {
				h, d := r.alloc(virtio.BlkHeaderSize), r.alloc(4096)
				copy(r.arena.Bytes(h), header(kind, uint64(i)*977*8%(64<<11)))
				c := &chains[i]
				c.readable, c.writable = []driver.Buffer{h}, []driver.Buffer{d, r.alloc(1)}
				if kind == virtio.BlkTOut {
					c.readable, c.writable = append(c.readable, d), c.writable[1:]
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += depth {
				for j := range chains {
					r.drv.Add(chains[j].readable, chains[j].writable)
				}
				r.drv.Publish()
				r.serve()
				for range chains {
					if _, _, ok := r.drv.Used(); !ok {
						b.Fatal("not answered")
					}
				}
			}
		})
	}
}
