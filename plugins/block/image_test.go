package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// allocated is how many bytes of a file are on the disk.
func allocated(tb testing.TB, path string) int64 {
	tb.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		tb.Fatal(err)
	}
	return st.Blocks * 512
}

// fill writes n bytes that are not zero, and makes sure that they take space.
func fill(tb testing.TB, path string, n int) {
	tb.Helper()
	data := bytes.Repeat([]byte{0xee}, n)
	f := openFile(tb, path, os.O_RDWR)
	_, err := f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err != nil || e != nil {
		tb.Fatal(err, e)
	}
}

func TestDiscardAndZeroesOnAFile(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	blank := make([]byte, rigData)
	for _, c := range []struct {
		name    string
		discard string
		kind    uint32
		flags   uint32
		frees   bool
	}{
		{"discard gives space back", "unmap", virtio.BlkTDiscard, 0, true},
		{"zeroes that may unmap give space back", "unmap", virtio.BlkTWriteZeroes, 1, true},
		{"zeroes that may not unmap keep it", "unmap", virtio.BlkTWriteZeroes, 0, false},
		{"zeroes keep it if discarding is off", "ignore", virtio.BlkTWriteZeroes, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := imageFile(t, size)
			fill(t, path, size)
			cfg := defaultSettings()
			cfg.Discard = c.discard
			b, _ := newDisk(t, path, cfg)
			r := newRig(t, b, 0, 0)
			r.want(virtio.BlkSOK, c.kind, 0, segment(2048, 2048, c.flags), 0)
			if !bytes.Equal(r.read(2048, rigData), blank) {
				t.Error("the range does not read zeroes")
			}
			for _, sector := range []uint64{2047, 4096} {
				if r.read(sector, 512)[0] != 0xee {
					t.Errorf("sector %d beside the range was changed", sector)
				}
			}
			if freed := allocated(t, path) <= size-rigData; freed != c.frees {
				t.Errorf("%d bytes are allocated; freed: %v, want %v", allocated(t, path), freed, c.frees)
			}
		})
	}
}

func TestDiscardThatIsOffIsNotOffered(t *testing.T) {
	t.Parallel()
	cfg := defaultSettings()
	cfg.Discard = "ignore"
	b, _ := newDisk(t, imageFile(t, 1<<20), cfg)
	if b.Spec().Features.Has(virtio.FBlkDiscard) || b.ReadConfig()[virtio.BlkCfgWriteZeroesMayUnmap] != 0 {
		t.Error("discarding is offered")
	}
	r := newRig(t, b, 0, 0)
	r.want(virtio.BlkSUnsupp, virtio.BlkTDiscard, 0, segment(0, 8, 0), 0)
}

func TestZeroesWhereTheFileSystemHasNone(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	path := imageFile(t, size)
	fill(t, path, size)
	b, _ := newDisk(t, path, defaultSettings())
	b.img.noPunch.Store(true)
	b.img.noZeroRange.Store(true)
	r := newRig(t, b, 0, 0)
	r.want(virtio.BlkSOK, virtio.BlkTWriteZeroes, 0, segment(1, 4097, 1), 0) // more than one block of zero pages
	for sector := range uint64(size / 512) {
		want := byte(0xee)
		if sector >= 1 && sector < 4098 {
			want = 0
		}
		if got := r.read(sector, 512); got[0] != want || got[511] != want {
			t.Fatalf("sector %d begins with %#x, want %#x", sector, got[0], want)
		}
	}
}

func TestBadSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	small := filepath.Join(dir, "small.img")
	if err := os.WriteFile(small, make([]byte, 511), 0o600); err != nil {
		t.Fatal(err)
	}
	good := imageFile(t, 1<<20)
	for _, c := range []struct {
		name, path string
		change     func(*settings)
		attr, want string
	}{
		{"empty image", imageFile(t, 0), nil, "path", "has 0 bytes, a disk needs at least one block of 512"},
		{"image below one block", small, nil, "path", "has 511 bytes"},
		{"directory", dir, func(s *settings) { s.ReadOnly = true }, "path", "is a directory"},
		{"character device", "/dev/null", func(*settings) {}, "path", "neither a regular file nor a block device"},
		{"opened read-only", good, func(s *settings) { s.ReadOnly = true; s.Locking = "wrong way" }, "path", "is not open for writing"},
		{"not opened", "", nil, "path", "was not opened"},
		{"block size", good, func(s *settings) { s.BlockSize = 1000 }, "block_size", "not a power of two"},
		{"physical below logical", good, func(s *settings) { s.BlockSize = 4096; s.PhysicalBlockSize = 512 }, "physical_block_size", "at least block_size"},
		{"min_io_size", good, func(s *settings) { s.MinIOSize = 1000 }, "min_io_size", "not a multiple"},
		{"opt_io_size", good, func(s *settings) { s.OptIOSize = 1000 }, "opt_io_size", "not a multiple"},
		{"long serial", good, func(s *settings) { s.Serial = strings.Repeat("x", 21) }, "serial", "at most 20"},
		{"serial with a space", good, func(s *settings) { s.Serial = "a b" }, "serial", "printable"},
		{"queue size", good, func(s *settings) { s.QueueSize = 100 }, "queue_size", "not a power of two"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := defaultSettings()
			if c.change != nil {
				c.change(&cfg)
			}
			if c.path != "" {
				open(t, c.path, &cfg)
			}
			if cfg.Locking == "wrong way" {
				cfg.Locking, cfg.ReadOnly = "on", false
			}
			_, err := newBlock("vda", &fakeHost{}, func(error) {}, &cfg)
			wrong, ok := err.(*pluginrpc.SettingError) //nolint:errorlint // the launcher needs it as it is
			if !ok || wrong.Attribute != c.attr || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want an error of %s with %q", err, c.attr, c.want)
			}
			if c.path != "" && ok && c.attr == "path" && !strings.Contains(err.Error(), c.path) {
				t.Errorf("%v does not name the image", err)
			}
		})
	}
}

func TestSerialIsTheDevicesNameUnlessSet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ serial, want string }{{"", "vda"}, {"A1-b2", "A1-b2"}, {strings.Repeat("z", 20), strings.Repeat("z", 20)}} {
		cfg := defaultSettings()
		cfg.Serial = c.serial
		b, _ := newDisk(t, imageFile(t, 1<<20), cfg)
		r := newRig(t, b, 0, 0)
		got := r.want(virtio.BlkSOK, virtio.BlkTGetID, 0, nil, virtio.BlkIDSize)
		if s := strings.TrimRight(string(got), "\x00"); s != c.want {
			t.Errorf("serial %q is answered as %q", c.serial, s)
		}
	}
}

func TestForeignImageIsServedAndTold(t *testing.T) {
	t.Parallel()
	path := imageFile(t, 1<<20)
	if err := os.WriteFile(path, append([]byte("QFI\xfb"), make([]byte, 4092)...), 0o600); err != nil {
		t.Fatal(err)
	}
	_, h := newDisk(t, path, defaultSettings())
	if len(h.notices) != 1 || !strings.Contains(h.notices[0], "qcow2") {
		t.Errorf("told: %q", h.notices)
	}
}

func TestSchemaIsSound(t *testing.T) {
	t.Parallel()
	s, err := sdk.SchemaOf[settings]()
	if err != nil {
		t.Fatal(err)
	}
	want := defaultSettings()
	for _, a := range s.GetAttributes() {
		if a.GetDescription() == "" {
			t.Errorf("%s has no description", a.GetName())
		}
		if a.GetName() == "cache" && a.GetDefaultJson() != `"`+want.Cache+`"` {
			t.Errorf("the tests' defaults differ: cache is %s", a.GetDefaultJson())
		}
	}
	if _, err := sdk.SchemaOf[resizeArgs](); err != nil {
		t.Error(err)
	}
}
