package kvm_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/tests/session"
)

var buses = []string{"mmio", "lguest"}

// area is how much of a disk the guest checks by itself (guest/README.md, option area).
const area = 32 << 10

// guestPattern is what the guest writes to the beginning of a disk: word w is mixed from seed + w * golden ratio, as splitmix64 does.
func guestPattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	for w := range n / 8 {
		x := seed + uint64(w)*0x9e3779b97f4a7c15
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x ^= x >> 27
		binary.LittleEndian.PutUint64(b[8*w:], x)
	}
	return b
}

// All devices over both buses, with one virtual CPU and two. What the guest has read and written is compared with the images.
func TestBareDevices(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		for _, cpus := range []string{"1", "2"} {
			t.Run(bus+", "+cpus+" CPUs", func(t *testing.T) {
				t.Parallel()
				checkDevices(t, bus, cpus, built.Guest())
			})
		}
	}
}

// The same by the other way into a guest. A host that emulates guests is not asked: what has a PVH note is Linux as a rule, and so
// the machine refuses it there.
func TestLinuxEntryByPVH(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			needLinux(t)
			checkDevices(t, bus, "2", built.GuestPVH())
		})
	}
}

// checkDevices runs all default tests of the freestanding guest, with devices of all kinds.
func checkDevices(t *testing.T, bus, cpus, kernel string) {
	t.Helper()
	v := newBare(t)
	content := session.Pattern(11, mebi)
	first, second := disk(t, v, "0", content), disk(t, v, "1", content)
	r := runBare(t, v, 0, "seed=5", "--bus", bus, "--kernel", kernel, "--cpus", cpus,
		"--block", first, "--block", second+",read_only=true", "--console", "file:"+v.Path("console"), "--device", "entropy=rng0")
	r.good(t, "memory", "timer", "smp", "disk0.start", "disk0.before", "disk0.features", "disk0.bounds", "disk0.read", "disk0.zeroes", "disk0.interrupts",
		"disk0.load", "disk1.before", "disk1.readonly", "console0.write", "rng0.random", "together", "disk0.reinit", "console0.reinit", "rng0.reinit",
		"disk0.takeover", "rng0.takeover")
	if n := r.number(t, "smp", "cpus"); fmt.Sprint(n) != cpus {
		t.Errorf("%d CPUs ran, want %s", n, cpus)
	}
	if n := r.number(t, "scan", bus); n != 4 {
		t.Errorf("%d devices on the bus, want 4:\n%s", n, r)
	}
	checkImages(t, v, r, content)
	if got, want := string(read(t, v.Path("console"))), "hello from console0 on the "+map[string]string{"mmio": "virtio-mmio", "lguest": "lguest"}[bus]+" bus"; !strings.Contains(got, want) {
		t.Errorf("the console's file holds %q, want %q", got, want)
	}
}

// checkImages compares the images 0 and 1 of checkDevices with what the guest told.
func checkImages(t *testing.T, v *session.VM, r report, content []byte) {
	t.Helper()
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	// Before it writes, the guest reads; the first sectors of disk 0 it has overwritten by then (test "features").
	if got, want := r.number(t, "disk1.before", "crc32c"), crc32.Checksum(content[:area], castagnoli); got != uint64(want) {
		t.Errorf("the guest reads a disk with the sum %#x, want %#x", got, want)
	}
	if err := equal(read(t, v.Path("1")), content); err != nil {
		t.Errorf("the read-only image has changed: %v", err)
	}
	image := read(t, v.Path("0"))
	// What follows the pattern was made zero by a request of its own.
	want := append(guestPattern(5, area), make([]byte, 4096)...)
	if err := equal(image[:len(want)], want); err != nil {
		t.Errorf("the image is not what the guest wrote: %v", err)
	}
	if err := equal(image[len(want):], content[len(want):]); err != nil {
		t.Errorf("the guest wrote where it should not have: %v", err)
	}
}

// A line typed at the terminal arrives in the guest, and its answer at the terminal.
func TestBareConsoleInput(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			startBare(v, "test=start,input", "--bus", bus, "--console", "stdio")
			v.Expect("type a line: ", session.BootLimit)
			v.Type("the quick brown fox 0123\r")
			v.Expect("you typed: the quick brown fox 0123", session.CommandLimit)
			v.Ended(0)
			report(read(t, serial(v))).good(t, "console0.start", "console0.input")
		})
	}
}

// More disks than there are interrupt lines of their own: some share.
func TestBareTwentyDisks(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			const n = 20
			v := newBare(t)
			args := []string{"--bus", bus, "--console", "file:" + v.Path("console")}
			for i := range n {
				args = append(args, "--block", disk(t, v, fmt.Sprintf("d%d", i), session.Pattern(uint64(100+i), 64<<10)))
			}
			r := runBare(t, v, 0, "seed=40 area=8192 test=start,disk,interrupts,together", args...)
			r.good(t, append(append(each(n, "disk%d.read"), each(n, "disk%d.interrupts")...), "together")...)
			for i := range n {
				want := guestPattern(uint64(40+i), 8192)
				if err := equal(read(t, v.Path(fmt.Sprintf("d%d", i)))[:8192], want); err != nil {
					t.Errorf("image %d is not what the guest wrote: %v", i, err)
				}
			}
		})
	}
}

// Memory beyond 4 GiB: the hole below is for devices, and the lguest page lies above it.
func TestBareMemoryBeyond4GiB(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			r := runBare(t, v, 0, "test=memory,start,disk", "--bus", bus, "--memory", "5G", "--block", disk(t, v, "d", session.Pattern(1, mebi)))
			r.good(t, "memory", "disk0.read")
			if top := r.number(t, "memory", "top"); top != 6<<30 {
				t.Errorf("memory ends at %#x, want 3 GiB and then 2 from 4 GiB on", top)
			}
		})
	}
}

// Many life cycles, each with requests under way that a reset stops.
func TestBareResets(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			r := runBare(t, v, 0, "reinit=25 test=reinit,takeover", "--bus", bus,
				"--block", disk(t, v, "d", session.Pattern(1, mebi)), "--console", "file:"+v.Path("console"), "--device", "entropy=rng0")
			r.good(t, "disk0.reinit", "console0.reinit", "rng0.reinit", "disk0.takeover")
		})
	}
}

// A disk grows while the guest runs: the guest is told, and can read the new end.
func TestBareDiskGrows(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			startBare(v, "test=start,resize timeout=120", "--bus", bus, "--block", disk(t, v, "d", session.Pattern(1, mebi)))
			waitReport(t, v, "INFO disk0.resize")
			if out, err := v.Virtplug("resize", describe(t, v).Name, "vda", "3M").CombinedOutput(); err != nil {
				t.Fatalf("virtplug resize: %v\n%s", err, out)
			}
			v.Ended(0)
			r := report(read(t, serial(v)))
			r.good(t, "disk0.resize")
			if n := r.number(t, "disk0.resize", "sectors"); n != 3*mebi/512 {
				t.Errorf("the disk has %d sectors, want %d", n, 3*mebi/512)
			}
		})
	}
}

// A driver that breaks the rules harms only its own device, and that one works again after a reset; nothing of the host suffers.
func TestBareHostileDriver(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			v := newBare(t)
			content := session.Pattern(2, mebi)
			r := runBare(t, v, 0, "test=start,abuse,disk", "--bus", bus, "--block", disk(t, v, "d", session.Pattern(1, mebi)),
				"--block", disk(t, v, "other", content)+",read_only=true", "--console", "file:"+v.Path("console"))
			r.good(t, "disk0.abuse", "disk0.start", "disk1.abuse", "disk1.before")
			if err := equal(read(t, v.Path("other")), content); err != nil {
				t.Errorf("the read-only image has changed: %v", err)
			}
		})
	}
}
