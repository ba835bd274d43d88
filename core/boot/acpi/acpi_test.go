package acpi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

const (
	testAt    = 0xe0000
	testLimit = 0x20000
)

// full is a machine with everything.
func full(cpus, devices int) Config {
	c := Config{
		CPUs: cpus, LocalAPIC: 0xfee00000, IOAPIC: 0xfec00000, SleepControl: 0x600, SleepStatus: 0x601, Reset: 0xcf9, ResetValue: 6,
		PanicPort: 0x505, SerialPort: 0x3f8, SerialGSI: 4, ButtonGSI: 23,
		Lguest: &LguestBus{Page: 1 << 32, Size: 257 << 12, Port: 0x1f10, GSIs: []uint32{5, 6, 7}},
	}
	for i := range devices {
		c.MMIO = append(c.MMIO, MMIODevice{UID: i, Base: 0xd0000000 + uint64(i)<<12, Size: 0x1000, GSI: uint32(5 + i%18)})
	}
	return c
}

// read walks from the root pointer to all tables, as a guest does, and checks lengths and checksums. Tables by signature.
func read(t *testing.T, b []byte, at, root guestmem.GPA) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	sum := func(b []byte) (s byte) {
		for _, x := range b {
			s += x
		}
		return s
	}
	r := b[root-at:]
	if string(r[:8]) != "RSD PTR " || r[15] != 2 || root%16 != 0 || sum(r[:20]) != 0 || sum(r[:36]) != 0 || le.Uint32(r[20:]) != 36 {
		t.Fatalf("root pointer: % x", r[:36])
	}
	tables := map[string][]byte{}
	get := func(a uint64) []byte {
		off := a - uint64(at)
		if off > uint64(len(b)) || uint64(len(b))-off < headerSize {
			t.Fatalf("table at %#x: not within the tables", a)
		}
		n := uint64(le.Uint32(b[off+4:]))
		if n < headerSize || n > uint64(len(b))-off {
			t.Fatalf("table at %#x: %d bytes", a, n)
		}
		x := b[off : off+n]
		if sum(x) != 0 {
			t.Errorf("%s: checksum", x[:4])
		}
		tables[string(x[:4])] = x
		return x
	}
	x := get(le.Uint64(r[24:]))
	for e := x[headerSize:]; len(e) > 0; e = e[8:] {
		if x := get(le.Uint64(e)); string(x[:4]) == "FACP" {
			get(le.Uint64(x[140:]))
			if uint64(le.Uint32(x[40:])) != le.Uint64(x[140:]) {
				t.Errorf("FADT: DSDT at %#x and at %#x", le.Uint32(x[40:]), le.Uint64(x[140:]))
			}
		}
	}
	return tables
}

func build(t *testing.T, c Config) map[string][]byte {
	t.Helper()
	b, root, err := Build(testAt, testLimit, c)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, b, testAt, root)
}

func TestFADTDescribesAMachineWithoutFixedHardware(t *testing.T) {
	t.Parallel()
	f := build(t, full(1, 1))["FACP"]
	le := binary.LittleEndian
	if len(f) != 276 || f[8] != 6 || f[131] != 5 {
		t.Fatalf("%d bytes, revision %d.%d", len(f), f[8], f[131])
	}
	if got := le.Uint16(f[109:]); got != 1<<2|1<<5 { // VGA not present, CMOS RTC not present; no 8042, no other legacy device
		t.Errorf("IAPC_BOOT_ARCH %#x", got)
	}
	if got := le.Uint32(f[112:]); got&(1<<20) == 0 || got&(1<<10) == 0 || got&(1<<4) == 0 || got&(1<<5) == 0 {
		t.Errorf("flags %#x", got)
	}
	io := func(port byte, high byte) []byte { return []byte{1, 8, 0, 1, port, high, 0, 0, 0, 0, 0, 0} }
	for off, want := range map[int][]byte{116: io(0xf9, 0xc), 128: {6}, 244: io(0, 6), 256: io(1, 6)} {
		if got := f[off : off+len(want)]; !bytes.Equal(got, want) {
			t.Errorf("at %d: % x, want % x", off, got, want)
		}
	}
	// All of the fixed hardware's blocks are absent.
	for _, z := range [][2]int{{46, 109}, {148, 244}} {
		if x := f[z[0]:z[1]]; len(bytes.Trim(x, "\x00")) != 0 {
			t.Errorf("fixed hardware at %d: % x", z[0], x)
		}
	}
	f = build(t, Config{CPUs: 1, LocalAPIC: 1, IOAPIC: 1})["FACP"]
	if le.Uint32(f[112:])&(1<<10) != 0 || f[116] != 0 || f[244] != 0 {
		t.Error("a machine without reset and sleep registers has some")
	}
}

func TestMADTListsProcessorsAndInterruptControllers(t *testing.T) {
	t.Parallel()
	for _, cpus := range []int{1, 2, 254, 255, 256, 300} {
		m := build(t, full(cpus, 1))["APIC"]
		le := binary.LittleEndian
		if got := le.Uint32(m[36:]); got != 0xfee00000 {
			t.Errorf("local APIC at %#x", got)
		}
		var ids []uint32
		count := map[byte]int{}
		for e := m[44:]; len(e) > 0; {
			if len(e) < 2 || int(e[1]) > len(e) || e[1] < 6 {
				t.Fatalf("%d CPUs: entry % x", cpus, e)
			}
			x := e[:e[1]]
			e = e[e[1]:]
			count[x[0]]++
			switch {
			case x[0] == 0 && len(x) == 8 && x[2] == x[3] && le.Uint32(x[4:]) == 1:
				ids = append(ids, uint32(x[3]))
			case x[0] == 9 && len(x) == 16 && le.Uint32(x[4:]) == le.Uint32(x[12:]) && le.Uint32(x[8:]) == 1:
				ids = append(ids, le.Uint32(x[4:]))
			case x[0] == 1 && len(x) == 12 && le.Uint32(x[4:]) == 0xfec00000 && le.Uint32(x[8:]) == 0:
			case x[0] == 4 && bytes.Equal(x, []byte{4, 6, 0xff, 0, 0, 1}):
			case x[0] == 10 && bytes.Equal(x, []byte{10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0}):
			default:
				t.Errorf("%d CPUs: entry % x", cpus, x)
			}
		}
		for i, id := range ids {
			if int(id) != i {
				t.Errorf("%d CPUs: the %d. has identifier %d", cpus, i, id)
			}
		}
		if len(ids) != cpus || count[0] != min(cpus, 255) || count[1] != 1 || count[4] != 1 || count[10] != min(max(cpus-255, 0), 1) {
			t.Errorf("%d CPUs: %d found: %v", cpus, len(ids), count)
		}
	}
}

// parseDSDT returns the names in the DSDT.
func parseDSDT(t *testing.T, c Config) namespace {
	t.Helper()
	d := build(t, c)["DSDT"]
	if d[8] < 2 {
		t.Error("integers of 32 bits")
	}
	ns := namespace{}
	if err := (&reader{d[headerSize:], "DSDT"}).terms(ns, `\`); err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestDSDTHasWhatTheMachineHas(t *testing.T) {
	t.Parallel()
	ns := parseDSDT(t, full(1, 40))
	qword := []byte{
		0x8a, 0x2b, 0, 0, 0x0d, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0x0f, 0x10, 0, 1, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0x10, 0, 0, 0, 0, 0,
	}
	irq := func(gsi, flags byte) []byte { return []byte{0x89, 6, 0, flags, 1, gsi, 0, 0, 0} }
	crs := func(parts ...[]byte) []byte { return append(bytes.Join(parts, nil), 0x79, 0) }
	for n, want := range map[string]any{
		`\._S5_`:          []uint64{5, 0, 0, 0},
		`\_SB_.COM1._HID`: uint64(0x0105d041),
		`\_SB_.COM1._CRS`: crs([]byte{0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8}, irq(4, 3)),
		`\_SB_.PEVT._HID`: "QEMU0001",
		`\_SB_.PEVT._STA`: uint64(15),
		`\_SB_.PEVT._CRS`: crs([]byte{0x47, 1, 5, 5, 5, 5, 1, 1}),
		`\_SB_.PWRB._HID`: uint64(0x0c0cd041),
		`\_SB_.GED_._HID`: "ACPI0013",
		`\_SB_.GED_._CRS`: crs(irq(23, 3)),
		`\_SB_.GED_._EVT`: append(append([]byte{9, 0xa0, 0x12, 0x93, 0x68, 0x0a, 23, 0x86}, "\\._SB_PWRB"...), 0x0a, 0x80),
		`\_SB_.LGST._HID`: "VPLG0001",
		`\_SB_.LGST._CRS`: crs(qword, []byte{0x47, 1, 0x10, 0x1f, 0x10, 0x1f, 1, 12}, irq(5, 11), irq(6, 11), irq(7, 11)),
		`\_SB_.V000._HID`: "LNRO0005",
		`\_SB_.V027._UID`: uint64(39),
		`\_SB_.V027._CRS`: crs([]byte{0x86, 9, 0, 1, 0, 0x70, 2, 0xd0, 0, 0x10, 0, 0}, irq(5+39%18, 11)),
		`\_SB_.V000._CCA`: uint64(1),
		`\_SB_.GED_._STA`: uint64(15),
	} {
		got, ok := ns[n]
		if !ok || fmt.Sprintf("%T %x", got, got) != fmt.Sprintf("%T %x", want, want) {
			t.Errorf("%s: %T %x, want %T %x", n, got, got, want, want)
		}
	}
}

func TestAnEmptyMachineHasAnEmptyDSDT(t *testing.T) {
	t.Parallel()
	if ns := parseDSDT(t, Config{CPUs: 1, LocalAPIC: 1, IOAPIC: 1}); len(ns) != 1 {
		t.Errorf("%v", ns)
	}
}

func TestRegistersAbove4GiBAreDescribed(t *testing.T) {
	t.Parallel()
	c := full(1, 1)
	c.MMIO[0].Base = 1 << 40
	crs, ok := parseDSDT(t, c)[`\_SB_.V000._CRS`].([]byte)
	if !ok || crs[0] != 0x8a || binary.LittleEndian.Uint64(crs[14:]) != 1<<40 {
		t.Errorf("% x", crs)
	}
}

func TestManyDevicesFit(t *testing.T) {
	t.Parallel()
	ns := parseDSDT(t, full(64, 1000))
	n := 0
	for name := range ns {
		if strings.HasSuffix(name, "._HID") && ns[name] == "LNRO0005" {
			n++
		}
	}
	if n != 1000 {
		t.Errorf("%d devices of 1000", n)
	}
}

func TestTooManyDevicesAreRefusedWithTheNumberThatFits(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{2000, 8192, 65536, testLimit} {
		_, _, err := Build(testAt, limit, full(1, 5000))
		if !errors.Is(err, ErrTooLarge) {
			t.Fatalf("limit %d: %v", limit, err)
		}
		var had, fits, bytes int
		_, text, _ := strings.Cut(err.Error(), "fit: ")
		if _, err := fmt.Sscanf(text, "%d devices, room for %d in %d bytes", &had, &fits, &bytes); err != nil || had != 5000 || bytes != limit {
			t.Fatalf("%q: %v", text, err)
		}
		b, root, err := Build(testAt, limit, full(1, fits))
		if err != nil || len(b) > limit {
			t.Fatalf("limit %d: %d devices do not fit: %d bytes: %v", limit, fits, len(b), err)
		}
		read(t, b, testAt, root)
		if _, _, err := Build(testAt, limit, full(1, fits+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("limit %d: %d devices: %v", limit, fits+1, err)
		}
	}
	if _, _, err := Build(testAt, 1<<24, full(1, deviceNames+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("more devices than names: %v", err)
	}
	if _, _, err := Build(testAt, 512, full(1, 0)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("no room for processors: %v", err)
	}
}

func TestNonsenseIsRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"no CPU":               func(c *Config) { c.CPUs = 0 },
		"too many CPUs":        func(c *Config) { c.CPUs = 5000 },
		"no local APIC":        func(c *Config) { c.LocalAPIC = 0 },
		"half a sleep":         func(c *Config) { c.SleepStatus = 0 },
		"device without size":  func(c *Config) { c.MMIO[0].Size = 0 },
		"device that wraps":    func(c *Config) { c.MMIO[0].Base = 1<<64 - 1 },
		"negative UID":         func(c *Config) { c.MMIO[0].UID = -1 },
		"page that wraps":      func(c *Config) { c.Lguest.Page = 1<<64 - 1 },
		"ports that wrap":      func(c *Config) { c.Lguest.Port = 0xfff8 },
		"too many interrupts":  func(c *Config) { c.Lguest.GSIs = make([]uint32, 32) },
		"page without a size":  func(c *Config) { c.Lguest.Size = 0 },
		"no I/O APIC anywhere": func(c *Config) { c.IOAPIC = 0 },
	} {
		c := full(1, 1)
		change(&c)
		if _, _, err := Build(testAt, testLimit, c); err == nil || errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, at := range []guestmem.GPA{8, 1<<64 - 16} {
		if _, _, err := Build(at, testLimit, full(1, 1)); err == nil {
			t.Errorf("tables at %v", at)
		}
	}
}

func TestTheSameMachineHasTheSameTables(t *testing.T) {
	t.Parallel()
	a, _, err := Build(testAt, testLimit, full(2, 20))
	if err != nil {
		t.Fatal(err)
	}
	if b, _, err := Build(testAt, testLimit, full(2, 20)); err != nil || !bytes.Equal(a, b) {
		t.Error("two builds differ", err)
	}
}
