package initrd

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// readCpio is a reader of its own, by the format's description, not by the writer's code.
func readCpio(t *testing.T, r io.Reader) map[string]entry {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]entry{}
	last := ""
	for {
		if len(b) < 110 || string(b[:6]) != "070701" {
			t.Fatalf("after %q: no header: %q", last, b[:min(len(b), 16)])
		}
		var f [13]uint32
		for i := range f {
			v, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatalf("after %q: field %d: %v", last, i, err)
			}
			f[i] = uint32(v)
		}
		mode, size, nameSize := f[1], int(f[6]), int(f[11])
		name := string(b[110 : 110+nameSize-1])
		if b[110+nameSize-1] != 0 {
			t.Fatalf("%q: name is not ended by NUL", name)
		}
		start := (110 + nameSize + 3) / 4 * 4
		data := b[start : start+size]
		b = b[(start+size+3)/4*4:]
		if name == "TRAILER!!!" {
			if len(b) != 0 {
				t.Fatalf("%d bytes after the trailer", len(b))
			}
			return files
		}
		if name <= last {
			t.Fatalf("%q comes after %q: not sorted", name, last)
		}
		if f[5] != 0 || f[2] != 0 || f[3] != 0 {
			t.Errorf("%q: time %d, owner %d:%d, want none", name, f[5], f[2], f[3])
		}
		files[name] = entry{mode: mode, data: bytes.Clone(data), major: f[9], minor: f[10]}
		last = name
	}
}

func TestArchiveHoldsWhatWasPut(t *testing.T) {
	t.Parallel()
	tr := tree{}
	for size := range 9 {
		name := "d/" + strings.Repeat("n", size+1)
		if err := tr.put(name, entry{mode: typeRegular | 0o640, data: bytes.Repeat([]byte{byte(size)}, size)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.put("/dev/null", entry{mode: typeChar | 0o666, major: 1, minor: 3}); err != nil {
		t.Fatal(err)
	}
	if err := tr.put("a/b/c", entry{mode: typeSymlink | 0o777, data: []byte("../x")}); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tr.writeTo(&b); err != nil {
		t.Fatal(err)
	}
	got := readCpio(t, &b)
	want := map[string]entry(tr)
	for name, e := range want {
		e.data = append([]byte{}, e.data...)
		want[name] = e
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); d != "" {
		t.Errorf("archive (-put +read):\n%s", d)
	}
	for _, dir := range []string{"a", "a/b", "d", "dev"} {
		if got[dir].mode != typeDir|0o755 {
			t.Errorf("%s: mode %o, want a directory", dir, got[dir].mode)
		}
	}
}

// The bytes of one header, written out from the kernel's documentation.
func TestHeaderBytes(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := writeEntry(&b, 7, "ab", entry{mode: typeRegular | 0o644, data: []byte("hello")}); err != nil {
		t.Fatal(err)
	}
	want := "070701" + "00000007" + "000081A4" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000003" + "00000000" + "ab\x00" + "\x00\x00\x00" + "hello" + "\x00\x00\x00"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", hex.Dump(b.Bytes()), hex.Dump([]byte(want)))
	}
}

func TestPutRefusesNamesThatLeaveTheRoot(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "/", ".", "..", "../x", "a/../../x", "a/..", "a\x00b", strings.Repeat("a/", 2500) + "b"} {
		if err := (tree{}).put(name, entry{mode: typeRegular}); err == nil {
			t.Errorf("put(%.20q): no error", name)
		}
	}
}

func TestPutRefusesAFileUnderAFile(t *testing.T) {
	t.Parallel()
	tr := tree{}
	if err := tr.put("a", entry{mode: typeRegular}); err != nil {
		t.Fatal(err)
	}
	if err := tr.put("a/b", entry{mode: typeRegular}); err == nil {
		t.Error("a file below a file was accepted")
	}
	if err := tr.put("a", entry{mode: typeDir}); err == nil {
		t.Error("a directory replaced a file")
	}
	if err := tr.put("a", entry{mode: typeRegular, data: []byte("2")}); err != nil || string(tr["a"].data) != "2" {
		t.Errorf("replacing a file: %v", err)
	}
}

type failing struct{ after int }

func (f *failing) Write(b []byte) (int, error) {
	if f.after -= len(b); f.after < 0 {
		return 0, fmt.Errorf("full")
	}
	return len(b), nil
}

func TestWriteErrorsAreReturned(t *testing.T) {
	t.Parallel()
	tr := tree{"a": {mode: typeRegular, data: make([]byte, 100)}}
	for _, after := range []int{0, 112, 250} {
		if err := tr.writeTo(&failing{after: after}); err == nil {
			t.Errorf("write fails after %d bytes: no error", after)
		}
	}
}
