package memory

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

func TestRAMIsSealedAndMapsEachSpanWhereTheTableSays(t *testing.T) {
	t.Parallel()
	m, err := New("test", Span{1 << 32, 2 * guestmem.PageSize}, Span{0, guestmem.PageSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	table := m.Table()
	if len(table) != 2 || table[0].GPA != 0 || table[1].GPA != 1<<32 || table[0].Offset != 2*guestmem.PageSize || table[1].Offset != 0 {
		t.Fatalf("table %+v", table)
	}
	mem, err := m.Map()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	b, err := mem.Slice(1<<32+guestmem.PageSize, 5)
	if err != nil {
		t.Fatal(err)
	}
	copy(b, "hello")
	var got [5]byte
	if _, err := table[1].File.ReadAt(got[:], table[1].Offset+guestmem.PageSize); err != nil || string(got[:]) != "hello" {
		t.Errorf("file has %q, %v where the table says", got, err)
	}
	for _, size := range []int64{0, guestmem.PageSize, 1 << 30} {
		if err := m.file.Truncate(size); !errors.Is(err, unix.EPERM) {
			t.Errorf("truncate to %d: %v: want EPERM", size, err)
		}
	}
	rc, err := m.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Control(func(fd uintptr) {
		if _, err := unix.FcntlInt(fd, unix.F_ADD_SEALS, unix.F_SEAL_WRITE); !errors.Is(err, unix.EPERM) {
			t.Errorf("another seal: %v: want EPERM", err)
		}
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor flags %#x, %v: want close-on-exec", flags, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error("Close is not idempotent:", err)
		}
	}
}

func TestBadSpansAreRefused(t *testing.T) {
	t.Parallel()
	const page = guestmem.PageSize
	for name, spans := range map[string][]Span{
		"none": nil, "empty": {{0, 0}}, "half a page": {{0, page / 2}}, "unaligned": {{1, page}},
		"overlap":  {{page, 2 * page}, {2 * page, page}},
		"contains": {{2 * page, page}, {0, 8 * page}},
		"wraps":    {{^guestmem.GPA(page - 1), 2 * page}},
		"too many": make([]Span, guestmem.MaxRegions+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if m, err := New("test", spans...); err == nil {
				_ = m.Close()
				t.Error("taken")
			}
		})
	}
}

func TestAbsurdSizesSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, size := range []uint64{1 << 45, 1 << 50, 1<<64 - guestmem.PageSize} {
		_, err := New("test", Span{0, size})
		if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "ask for less") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	_, err := New("test", Span{0, 1 << 63}, Span{1 << 63, 1<<63 - guestmem.PageSize})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("a sum of nearly 2^64: %v", err)
	}
}

func TestAvailableMemory(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint64{
		"MemTotal: 9 kB\nMemAvailable:  4 kB\nSwapFree: 2 kB\n": 6 << 10,
		"MemTotal: 9 kB\nSwapFree: 2 kB\n":                      0,
		"MemAvailable: x kB\n":                                  0,
		"":                                                      0,
	} {
		if n, ok := available([]byte(text)); ok != (want != 0) || ok && n != want {
			t.Errorf("%q: %d, %v: want %d", text, n, ok, want)
		}
	}
}
