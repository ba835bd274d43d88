package acpi

import (
	"encoding/binary"
	"math"
)

// term is a piece of AML (ACPI 6.5, 20). Terms are put together by the functions below, each named as in ASL.
type term []byte

// Opcodes (20.2 and 20.3).
const (
	opZero       = 0x00
	opOne        = 0x01
	opName       = 0x08
	opByte       = 0x0a
	opWord       = 0x0b
	opDword      = 0x0c
	opString     = 0x0d
	opQword      = 0x0e
	opScope      = 0x10
	opBuffer     = 0x11
	opPackage    = 0x12
	opMethod     = 0x14
	opDual       = 0x2e // prefix of a path of two names
	opMulti      = 0x2f // prefix of a path of more
	opExt        = 0x5b
	opArg0       = 0x68
	opNotify     = 0x86
	opLEqual     = 0x93
	opIf         = 0xa0
	extDevice    = 0x82
	serialized   = 1 << 3 // MethodFlags
	maxPkgLength = 1<<28 - 1
)

// pkg is op, a PkgLength and the body (20.2.4): one byte of length up to 63 bytes, else two to four, of which the first has
// the number of the others in its upper two bits and four bits of length. The length counts itself. A body that no
// PkgLength can tell is a bug: Build bounds the number of devices.
func pkg(op []byte, body ...[]byte) term {
	n := 0
	for _, b := range body {
		n += len(b)
	}
	t := append(term(nil), op...)
	t = appendPkgLength(t, n)
	for _, b := range body {
		t = append(t, b...)
	}
	return t
}

// appendPkgLength appends the length of a body of n bytes.
func appendPkgLength(t term, n int) term {
	if n+1 < 1<<6 {
		return append(t, byte(n+1)) //nolint:gosec // G115: below 64
	}
	for extra := 1; extra <= 3; extra++ {
		if total := n + 1 + extra; total < 1<<(4+8*extra) {
			t = append(t, byte(extra<<6|total&0xf)) //nolint:gosec // G115: two bits and four
			for total >>= 4; extra > 0; extra-- {
				t = append(t, byte(total)) //nolint:gosec // G115: the next eight bits
				total >>= 8
			}
			return t
		}
	}
	panic("BUG: AML package of more than 2^28 bytes")
}

// path is a NameString (20.2.2): segments of four characters, from the root if the first is "\\".
func path(segments ...string) term {
	var t term
	if len(segments) > 0 && segments[0] == `\` {
		t, segments = append(t, '\\'), segments[1:]
	}
	switch n := len(segments); {
	case n == 2:
		t = append(t, opDual)
	case n > 2:
		t = append(t, opMulti, byte(n)) //nolint:gosec // G115: a few
	}
	for _, s := range segments {
		t = append(t, s...)
		for range 4 - len(s) {
			t = append(t, '_')
		}
	}
	return t
}

// integer is the shortest constant (20.2.3).
func integer(v uint64) term {
	le := binary.LittleEndian
	switch {
	case v == 0:
		return term{opZero}
	case v == 1:
		return term{opOne}
	case v <= math.MaxUint8:
		return term{opByte, byte(v)}
	case v <= math.MaxUint16:
		return le.AppendUint16(term{opWord}, uint16(v))
	case v <= math.MaxUint32:
		return le.AppendUint32(term{opDword}, uint32(v))
	}
	return le.AppendUint64(term{opQword}, v)
}

// text is a String.
func text(s string) term { return append(append(term{opString}, s...), 0) }

// eisaID is EISAID("PNP0501"): three letters of five bits and four hexadecimal digits, big-endian (19.3.4).
func eisaID(id string) term {
	v := uint32(id[0]-'@')<<26 | uint32(id[1]-'@')<<21 | uint32(id[2]-'@')<<16
	for i, c := range []byte(id[3:7]) {
		d := c - '0'
		if c > '9' {
			d = c - 'A' + 10
		}
		v |= uint32(d) << (12 - 4*i)
	}
	return binary.BigEndian.AppendUint32(term{opDword}, v)
}

func name(n string, value term) term { return append(append(term{opName}, path(n)...), value...) }

func scope(at term, body ...[]byte) term {
	return pkg([]byte{opScope}, append([][]byte{at}, body...)...)
}

func device(n string, body ...[]byte) term {
	return pkg([]byte{opExt, extDevice}, append([][]byte{path(n)}, body...)...)
}

// method is a serialized control method of args arguments.
func method(n string, args byte, body ...[]byte) term {
	return pkg([]byte{opMethod}, append([][]byte{path(n), {args | serialized}}, body...)...)
}

func ifEqual(a, b term, then ...[]byte) term {
	return pkg([]byte{opIf}, append([][]byte{{opLEqual}, a, b}, then...)...)
}

func notify(object term, value byte) term {
	return append(append(term{opNotify}, object...), integer(uint64(value))...)
}

// packageOf is a Package of constants.
func packageOf(elements ...uint64) term {
	body := []byte{byte(len(elements))} //nolint:gosec // G115: a few
	for _, e := range elements {
		body = append(body, integer(e)...)
	}
	return pkg([]byte{opPackage}, body)
}

// buffer is a Buffer with its bytes.
func buffer(b []byte) term {
	return pkg([]byte{opBuffer}, integer(uint64(len(b))), b)
}
