package acpi

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// reader takes AML apart, written from the grammar (ACPI 6.5, 20.2) and not from the encoder.
type reader struct {
	b    []byte
	what string
}

var errAML = errors.New("bad AML")

func (r *reader) take(n int) ([]byte, error) {
	if n < 0 || n > len(r.b) {
		return nil, fmt.Errorf("%s: %w: %d bytes wanted, %d left", r.what, errAML, n, len(r.b))
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b, nil
}

func (r *reader) byte() (byte, error) {
	b, err := r.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// pkg takes a PkgLength and returns a reader of what it covers.
func (r *reader) pkg(what string) (*reader, error) {
	lead, err := r.byte()
	if err != nil {
		return nil, err
	}
	more := int(lead >> 6)
	n := int(lead & 0x3f)
	if more > 0 {
		if lead&0x30 != 0 {
			return nil, fmt.Errorf("%s: %w: reserved bits of PkgLength %#x", what, errAML, lead)
		}
		n = int(lead & 0xf)
		for i := range more {
			b, err := r.byte()
			if err != nil {
				return nil, err
			}
			n |= int(b) << (4 + 8*i)
		}
	}
	b, err := r.take(n - 1 - more)
	return &reader{b, what}, err
}

func (r *reader) nameString() (string, error) {
	s := ""
	if len(r.b) > 0 && r.b[0] == '\\' {
		s, r.b = `\`, r.b[1:]
	}
	n := 1
	if len(r.b) > 1 && r.b[0] == opDual {
		n, r.b = 2, r.b[1:]
	} else if len(r.b) > 1 && r.b[0] == opMulti {
		n, r.b = int(r.b[1]), r.b[2:]
	}
	for i := range n {
		seg, err := r.take(4)
		if err != nil {
			return "", err
		}
		for _, c := range seg {
			if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
				return "", fmt.Errorf("%s: %w: name %q", r.what, errAML, seg)
			}
		}
		if i > 0 {
			s += "."
		}
		s += string(seg)
	}
	return s, nil
}

// data takes a constant, a string, a package or a buffer: uint64, string, []uint64, []byte.
func (r *reader) data() (any, error) {
	op, err := r.byte()
	if err != nil {
		return nil, err
	}
	size := map[byte]int{opByte: 1, opWord: 2, opDword: 4, opQword: 8}
	switch op {
	case opZero, opOne:
		return uint64(op), nil
	case opByte, opWord, opDword, opQword:
		b, err := r.take(size[op])
		var v uint64
		for i, x := range b {
			v |= uint64(x) << (8 * i)
		}
		return v, err
	case opString:
		i := bytes.IndexByte(r.b, 0)
		b, err := r.take(i + 1)
		if err != nil || i < 0 {
			return nil, fmt.Errorf("%s: %w: string", r.what, errAML)
		}
		return string(b[:i]), nil
	case opBuffer:
		p, err := r.pkg("buffer")
		if err != nil {
			return nil, err
		}
		n, err := p.data()
		if err != nil || n != uint64(len(p.b)) {
			return nil, fmt.Errorf("%s: %w: buffer of %v with %d bytes: %w", r.what, errAML, n, len(p.b), err)
		}
		return p.b, nil
	case opPackage:
		return r.packageOf()
	}
	return nil, fmt.Errorf("%s: %w: opcode %#x as data", r.what, errAML, op)
}

func (r *reader) packageOf() (any, error) {
	p, err := r.pkg("package")
	if err != nil {
		return nil, err
	}
	n, err := p.byte()
	if err != nil {
		return nil, err
	}
	var v []uint64
	for range n {
		d, err := p.data()
		if err != nil {
			return nil, err
		}
		u, ok := d.(uint64)
		if !ok {
			return nil, fmt.Errorf("%s: %w: package of %T", r.what, errAML, d)
		}
		v = append(v, u)
	}
	if len(p.b) != 0 {
		return nil, fmt.Errorf("%s: %w: %d bytes behind a package's elements", r.what, errAML, len(p.b))
	}
	return v, nil
}

// namespace is what names have which values, by full path; devices have nil.
type namespace map[string]any

// terms takes everything.
func (r *reader) terms(ns namespace, at string) error {
	for len(r.b) > 0 {
		if err := r.term(ns, at); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) term(ns namespace, at string) error {
	op, err := r.byte()
	if err != nil {
		return err
	}
	switch op {
	case opName:
		n, err := r.nameString()
		if err != nil {
			return err
		}
		v, err := r.data()
		if err != nil {
			return fmt.Errorf("%s.%s: %w", at, n, err)
		}
		return ns.add(at+"."+n, v)
	case opScope, opMethod:
		return r.block(ns, at, op)
	case opExt:
		if op, err = r.byte(); err != nil || op != extDevice {
			return fmt.Errorf("%s: %w: extended opcode %#x", at, errAML, op)
		}
		return r.block(ns, at, op)
	}
	return fmt.Errorf("%s: %w: opcode %#x", at, errAML, op)
}

func (r *reader) block(ns namespace, at string, op byte) error {
	p, err := r.pkg(at)
	if err != nil {
		return err
	}
	n, err := p.nameString()
	if err != nil {
		return err
	}
	switch op {
	case opScope:
		return p.terms(ns, n)
	case extDevice:
		if err := ns.add(at+"."+n, nil); err != nil {
			return err
		}
		return p.terms(ns, at+"."+n)
	}
	return ns.add(at+"."+n, p.b) // a method, flags and code
}

func (ns namespace) add(name string, v any) error {
	if _, twice := ns[name]; twice {
		return fmt.Errorf("%s: %w: twice", name, errAML)
	}
	ns[name] = v
	return nil
}

func TestPackageLengthsAreRightAtEachBoundary(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 61, 62, 63, 64, 4092, 4093, 4094, 4095, 4096, 1<<20 - 5, 1<<20 - 4, 1<<20 - 3, 1 << 20, 1 << 24} {
		body := make([]byte, n)
		r := &reader{pkg([]byte{opScope}, body), "test"}
		if op, err := r.byte(); err != nil || op != opScope {
			t.Fatal(op, err)
		}
		p, err := r.pkg("test")
		if err != nil || len(p.b) != n || len(r.b) != 0 {
			t.Errorf("body of %d bytes: read %d, %d behind: %v", n, len(p.b), len(r.b), err)
		}
	}
}

func TestIntegersAreTheShortest(t *testing.T) {
	t.Parallel()
	for v, n := range map[uint64]int{0: 1, 1: 1, 2: 2, 0xff: 2, 0x100: 3, 0xffff: 3, 0x10000: 5, 0xffffffff: 5, 1 << 32: 9, 1<<64 - 1: 9} {
		b := integer(v)
		got, err := (&reader{b, "test"}).data()
		if err != nil || got != v || len(b) != n {
			t.Errorf("%#x: % x, read as %v: %v", v, b, got, err)
		}
	}
}

func TestEisaIdentifiers(t *testing.T) {
	t.Parallel()
	// As iasl makes them of EisaId("…").
	for id, want := range map[string][]byte{
		"PNP0501": {opDword, 0x41, 0xd0, 0x05, 0x01}, "PNP0C0C": {opDword, 0x41, 0xd0, 0x0c, 0x0c}, "ACPABCD": {opDword, 0x04, 0x70, 0xab, 0xcd},
	} {
		if got := eisaID(id); !bytes.Equal(got, want) {
			t.Errorf("%s: % x, want % x", id, got, want)
		}
	}
}

func TestPathsHaveTheirPrefix(t *testing.T) {
	t.Parallel()
	for want, segments := range map[string][]string{
		"\\ABCD": {`\`, "ABCD"}, "AB__": {"AB"}, "\\.ABCDEFGH": {`\`, "ABCD", "EFGH"}, "/\x03ABCDEFGHIJKL": {"ABCD", "EFGH", "IJKL"},
	} {
		if got := path(segments...); string(got) != want {
			t.Errorf("%q: %q, want %q", segments, got, want)
		}
	}
}
