package sdk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// DecodeArgs reads a command's arguments (see Commander) into A, the struct of its CommandSpec: strictly, with defaults.
func DecodeArgs[A any](args json.RawMessage) (A, error) {
	var a A
	s, err := parseStruct(reflect.TypeFor[A]())
	if err != nil {
		return a, err
	}
	err = s.decode(args, nil, reflect.ValueOf(&a).Elem())
	return a, err
}

// decode reads one JSON object into v, and gives it the opened files. Whatever does not fit the schema is an error, always
// a *pluginrpc.SettingError; then all files are closed. On success those in v are the caller's.
func (s *structSpec) decode(text []byte, files []pluginrpc.FileGrant, v reflect.Value) error {
	d := decoder{fds: make(map[string][]int, len(files))}
	for _, f := range files {
		d.fds[f.Attribute] = append(d.fds[f.Attribute], f.FD)
	}
	d.object(s, text, "", v)
	for _, path := range slices.Sorted(maps.Keys(d.fds)) {
		d.fail(path, "the launcher passed a file that nothing asks for")
		for _, fd := range d.fds[path] {
			_ = unix.Close(fd)
		}
	}
	if d.err != nil {
		for _, c := range d.opened {
			_ = c.Close()
		}
	}
	return d.err
}

func settingError(path, format string, args ...any) error {
	return &pluginrpc.SettingError{Attribute: path, Message: fmt.Sprintf(format, args...)}
}

// decoder keeps the first error; after that its methods do nothing that matters.
type decoder struct {
	fds    map[string][]int // granted, not used yet
	opened []io.Closer
	err    error
}

func (d *decoder) fail(path, format string, args ...any) {
	if d.err == nil {
		d.err = settingError(path, format, args...)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func (d *decoder) object(s *structSpec, text []byte, path string, v reflect.Value) {
	members, err := parseObject(text)
	if err != nil {
		d.fail(path, "%v", err)
		return
	}
	for _, m := range members {
		if !slices.ContainsFunc(s.fields, func(f fieldSpec) bool { return f.name() == m.name }) {
			d.fail(join(path, m.name), "unknown setting")
			return
		}
	}
	for i := range s.fields {
		f := &s.fields[i]
		at := slices.IndexFunc(members, func(m member) bool { return m.name == f.name() })
		var value []byte
		if at >= 0 {
			value = members[at].value
		}
		if f.attr != nil {
			d.attribute(f, value, join(path, f.name()), v.Field(f.index))
		} else {
			d.blocks(f, value, join(path, f.name()), v.Field(f.index))
		}
		if d.err != nil {
			return
		}
	}
}

func (d *decoder) attribute(f *fieldSpec, text []byte, path string, v reflect.Value) {
	a := f.attr
	if text == nil {
		if a.GetRequired() || f.label {
			d.fail(path, "missing: it is required")
			return
		}
		if text = []byte(a.GetDefaultJson()); len(text) == 0 {
			return
		}
	}
	if msg := decodeValue(a, text, v); msg != "" {
		d.fail(path, "%s", msg)
		return
	}
	switch dst := v.Addr().Interface().(type) {
	case *File:
		if fd, ok := d.fd(path); ok {
			dst.File = os.NewFile(uintptr(fd), dst.Path)
			d.opened = append(d.opened, dst.File)
		}
	case *Listener:
		if fd, ok := d.fd(path); ok {
			d.listener(dst, fd, path)
		}
	case *Tap:
		fds := d.fds[path]
		if len(fds) == 0 {
			d.fail(path, "the launcher passed no descriptor for it")
		}
		delete(d.fds, path)
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), dst.Name)
			dst.Queues = append(dst.Queues, f)
			d.opened = append(d.opened, f)
		}
	}
}

// fd takes the one descriptor for path.
func (d *decoder) fd(path string) (int, bool) {
	switch fds := d.fds[path]; len(fds) {
	case 0:
		d.fail(path, "the launcher passed no opened file for it")
		return -1, false
	case 1:
		delete(d.fds, path)
		return fds[0], true
	}
	d.fail(path, "the launcher passed several files for it: want one")
	return -1, false
}

func (d *decoder) listener(dst *Listener, fd int, path string) {
	f := os.NewFile(uintptr(fd), dst.Path)
	l, err := net.FileListener(f)
	_ = f.Close() // l has its own
	if err != nil {
		d.fail(path, "the launcher passed what is no listening socket: %v", err)
		return
	}
	d.opened = append(d.opened, l)
	ul, ok := l.(*net.UnixListener)
	if !ok {
		d.fail(path, "the launcher passed a %s socket: want unix", l.Addr().Network())
		return
	}
	ul.SetUnlinkOnClose(false) // the launcher removes it
	dst.UnixListener = ul
}

func (d *decoder) blocks(f *fieldSpec, text []byte, path string, v reflect.Value) {
	var items []json.RawMessage
	if text != nil {
		if err := json.Unmarshal(text, &items); err != nil || items == nil {
			d.fail(path, "want an array of objects")
			return
		}
	}
	n, lo, hi := len(items), int(f.block.GetMinItems()), int(f.block.GetMaxItems())
	switch {
	case n < lo:
		d.fail(path, "%d blocks: want at least %d", n, lo)
		return
	case hi > 0 && n > hi:
		d.fail(path, "%d blocks: want at most %d", n, hi)
		return
	case n == 0:
		return
	}
	slice := reflect.MakeSlice(v.Type(), n, n)
	for i, item := range items {
		if d.object(f.items, item, join(path, strconv.Itoa(i)), slice.Index(i)); d.err != nil {
			return
		}
	}
	v.Set(slice)
}

// decodeValue reads one attribute's JSON into v; what is wrong comes back as a message.
func decodeValue(a *pluginv1.Attribute, text []byte, v reflect.Value) (wrong string) {
	text = bytes.TrimSpace(text)
	switch a.GetType() { //nolint:exhaustive // below: the numbers
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_BOOL:
		if s := string(text); s != "true" && s != "false" {
			return "want true or false"
		}
		v.SetBool(string(text) == "true")
		return ""
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING:
		s, ok := stringOf(text)
		switch {
		case !ok:
			return "want a string"
		case len(a.GetOneOf()) > 0 && !slices.Contains(a.GetOneOf(), s):
			return fmt.Sprintf("%q: want one of %s", s, strings.Join(a.GetOneOf(), ", "))
		}
		v.SetString(s)
		return ""
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE, pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER:
		s, ok := stringOf(text)
		if !ok || s == "" {
			return "want a path"
		}
		v.FieldByName("Path").SetString(s)
		return ""
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP:
		s, ok := stringOf(text)
		if !ok || s == "" {
			return "want the name of an interface"
		}
		v.FieldByName("Name").SetString(s)
		return ""
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST:
		var raw []json.RawMessage
		if err := json.Unmarshal(text, &raw); err != nil || raw == nil {
			return "want a list of strings"
		}
		list := make([]string, 0, len(raw))
		for _, r := range raw {
			s, ok := stringOf(r)
			if !ok {
				return "want a list of strings"
			}
			list = append(list, s)
		}
		v.Set(reflect.ValueOf(list))
		return ""
	}
	return decodeNumber(a, string(text), v)
}

func decodeNumber(a *pluginv1.Attribute, text string, v reflect.Value) (wrong string) {
	if a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_FLOAT {
		if !json.Valid([]byte(text)) { // ParseFloat takes more than JSON
			return "want a number"
		}
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return "want a number"
		}
		if !floatBound(n, a.Min, a.Max) {
			return outside(text, a)
		}
		v.SetFloat(n)
		return ""
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || !json.Valid([]byte(text)) {
		return "want a whole number"
	}
	if a.Min != nil && n < a.GetMin() || a.Max != nil && n > a.GetMax() {
		return outside(text, a)
	}
	if v.CanUint() {
		v.SetUint(uint64(n)) //nolint:gosec // the type's own range is in Min and Max
	} else {
		v.SetInt(n)
	}
	return ""
}

func outside(text string, a *pluginv1.Attribute) string {
	switch {
	case a.Min == nil && a.Max == nil: // a float that is none
		return text + ": want a finite number"
	case a.Min == nil:
		return fmt.Sprintf("%s: want at most %d", text, a.GetMax())
	case a.Max == nil:
		return fmt.Sprintf("%s: want at least %d", text, a.GetMin())
	default:
		return fmt.Sprintf("%s: want %d to %d", text, a.GetMin(), a.GetMax())
	}
}

func stringOf(text []byte) (string, bool) {
	var s *string
	err := json.Unmarshal(text, &s)
	if err != nil || s == nil {
		return "", false
	}
	return *s, true
}

type member struct {
	name  string
	value []byte
}

// parseObject splits one JSON object, which must be all of text. A member that is there twice is an error: encoding/json
// would take the last.
func parseObject(text []byte) ([]member, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("want a JSON object")
	}
	var members []member
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("want a JSON object: %w", err)
		}
		if slices.ContainsFunc(members, func(m member) bool { return m.name == name }) {
			return nil, fmt.Errorf("%q is given twice", name)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("%q: bad JSON: %w", name, err)
		}
		members = append(members, member{name, value})
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("bad JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return members, nil
}
