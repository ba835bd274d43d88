package sdk

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// SchemaOf derives the schema of the settings struct C from its fields. Every exported field has a config tag:
//
//	config:"name"           the setting's name, [a-z][a-z0-9_]*; "-" skips the field
//	config:"name,required"  it must be given (of a slice of structs: at least one block)
//	config:"name,label"     in the struct of a block: the string that is the block's label, as in `port "serial" { … }`
//
// and may have
//
//	default:"64MiB"         the value if it is not given, written as a user would; []string: a JSON array
//	several:"1MiB"          the same in a VM with several devices of the plugin
//	help:"…"                one or two sentences for the reference
//	oneof:"a|b"             a string's allowed values
//	path:"unix:|tls:"       a string's prefixes behind which a path stands, which is made absolute
//	min:"1" max:"8"         inclusive bounds of a number, size or duration; of a slice of structs: how many blocks
//	file:"write,…"          how a File is opened: write, create, append, block_device, any_kind, read_only_if=name
//	tap:"mtu=mtu,…"         how a Tap is made: the settings beside it that give queue_pairs (an integer), bridge (a string),
//	                        addresses (a []string), mtu (an integer); bridge and addresses have no default
//
// Types: string, bool, all ints and uints, float64, Size, time.Duration, []string, File, Listener, Tap; and []struct, a
// repeatable block whose struct has the same tags. An integer's own range bounds the setting too.
func SchemaOf[C any]() (*pluginv1.Schema, error) {
	s, err := parseStruct(reflect.TypeFor[C]())
	if err != nil {
		return nil, err
	}
	return s.proto(), nil
}

// structSpec is a settings struct, understood.
type structSpec struct {
	typ    reflect.Type
	fields []fieldSpec
}

// fieldSpec is one field: an attribute, a block, or the label of the block that the struct is.
type fieldSpec struct {
	index int
	label bool
	attr  *pluginv1.Attribute // nil: a block
	block *pluginv1.Block     // its schema is in items
	items *structSpec
}

func (f *fieldSpec) name() string {
	if f.attr != nil {
		return f.attr.GetName()
	}
	return f.block.GetName()
}

// parseStruct understands t and checks all that can be wrong with its tags, each with the field's name.
func parseStruct(t reflect.Type) (*structSpec, error) {
	s, err := parseLevel(t, nil)
	if err != nil {
		return nil, fmt.Errorf("settings %v: %w", t, err)
	}
	if err := pluginrpc.CheckSchema(s.proto()); err != nil { // names, doubles, size
		return nil, fmt.Errorf("settings %v: %w", t, err)
	}
	return s, nil
}

func parseLevel(t reflect.Type, outer []reflect.Type) (*structSpec, error) {
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%v: want a struct", t)
	}
	if slices.Contains(outer, t) {
		return nil, fmt.Errorf("%v: a block inside itself", t)
	}
	s := &structSpec{typ: t}
	for i := range t.NumField() {
		sf := t.Field(i)
		tag, tagged := sf.Tag.Lookup("config")
		if tag == "-" || !sf.IsExported() && !tagged {
			continue
		}
		f, err := parseField(sf, tag, append(outer, t))
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", sf.Name, err)
		}
		if f.label && (len(outer) == 0 || s.label() != "") {
			return nil, fmt.Errorf("field %s: a label: want one at most, and only in a block", sf.Name)
		}
		f.index = i
		s.fields = append(s.fields, *f)
	}
	return s, nil
}

func (s *structSpec) label() string {
	for i := range s.fields {
		if s.fields[i].label {
			return s.fields[i].name()
		}
	}
	return ""
}

func (s *structSpec) proto() *pluginv1.Schema {
	p := &pluginv1.Schema{}
	for i := range s.fields {
		switch f := &s.fields[i]; {
		case f.label:
		case f.attr != nil:
			p.Attributes = append(p.Attributes, f.attr)
		default:
			b, _ := proto.Clone(f.block).(*pluginv1.Block)
			b.Label, b.Schema = f.items.label(), f.items.proto()
			p.Blocks = append(p.Blocks, b)
		}
	}
	return p
}

// hasFiles tells whether anything in s is opened by the launcher.
func (s *structSpec) hasFiles() bool {
	for i := range s.fields {
		f := &s.fields[i]
		if f.items != nil && f.items.hasFiles() {
			return true
		}
		if pluginrpc.OpenedByLauncher(f.attr.GetType()) {
			return true
		}
	}
	return false
}

func parseField(sf reflect.StructField, tag string, outer []reflect.Type) (*fieldSpec, error) {
	if !sf.IsExported() || sf.Anonymous || tag == "" {
		return nil, errors.New(`want an exported, named field with a tag such as config:"name" (config:"-" skips it)`)
	}
	name, rest, _ := strings.Cut(tag, ",")
	if !pluginrpc.ValidMember(name) {
		return nil, fmt.Errorf("config name %q: want lower-case letters, digits and '_'", name)
	}
	var required, label bool
	switch rest {
	case "":
	case "required":
		required = true
	case "label":
		label = true
	default:
		return nil, fmt.Errorf("config option %q: want required or label", rest)
	}
	if sf.Type.Kind() == reflect.Slice && sf.Type.Elem().Kind() == reflect.Struct && !label {
		return parseBlock(sf, name, required, outer)
	}
	a := &pluginv1.Attribute{Name: name, Required: required, Description: sf.Tag.Get("help")}
	var err error
	if a.Type, err = attributeType(sf.Type); err != nil {
		return nil, err
	}
	if label && (a.GetType() != pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING || sf.Tag.Get("default") != "") {
		return nil, errors.New("a label: want a string without a default")
	}
	if err := parseTags(a, sf); err != nil {
		return nil, err
	}
	return &fieldSpec{label: label, attr: a}, nil
}

func parseBlock(sf reflect.StructField, name string, required bool, outer []reflect.Type) (*fieldSpec, error) {
	items, err := parseLevel(sf.Type.Elem(), outer)
	if err != nil {
		return nil, err
	}
	b := &pluginv1.Block{Name: name, Description: sf.Tag.Get("help")}
	for key, dst := range map[string]*uint32{"min": &b.MinItems, "max": &b.MaxItems} {
		if v, ok := sf.Tag.Lookup(key); ok {
			n, err := strconv.ParseUint(v, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("%s %q: want a number of blocks", key, v)
			}
			*dst = uint32(n)
		}
	}
	if required {
		b.MinItems = max(b.MinItems, 1)
	}
	if err := refuse(sf, "default", "oneof", "file", "tap", "path"); err != nil {
		return nil, err
	}
	return &fieldSpec{block: b, items: items}, nil
}

func attributeType(t reflect.Type) (pluginv1.AttributeType, error) {
	switch t {
	case reflect.TypeFor[Size]():
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE, nil
	case reflect.TypeFor[time.Duration]():
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_DURATION, nil
	case reflect.TypeFor[File]():
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE, nil
	case reflect.TypeFor[Listener]():
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER, nil
	case reflect.TypeFor[Tap]():
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP, nil
	case reflect.TypeFor[[]string]():
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST, nil
	}
	switch t.Kind() { //nolint:exhaustive // the rest is refused
	case reflect.String:
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING, nil
	case reflect.Bool:
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_BOOL, nil
	case reflect.Float64:
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_FLOAT, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return pluginv1.AttributeType_ATTRIBUTE_TYPE_INT, nil
	}
	return 0, fmt.Errorf("type %v: want string, bool, an int, float64, Size, time.Duration, []string, File, Listener, Tap or []struct", t)
}

// parseTags fills a from the tags besides config.
func parseTags(a *pluginv1.Attribute, sf reflect.StructField) error {
	isFile := a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE
	var err error
	if isFile {
		if a.File, err = parseAccess(sf.Tag.Get("file")); err != nil {
			return err
		}
	} else if err := refuse(sf, "file"); err != nil {
		return err
	}
	if a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP {
		if a.Tap, err = parseTapAccess(sf.Tag.Get("tap")); err != nil {
			return err
		}
	} else if err := refuse(sf, "tap"); err != nil {
		return err
	}
	if v, ok := sf.Tag.Lookup("oneof"); ok {
		if a.GetType() != pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING || v == "" {
			return errors.New("oneof: want a string's values, \"a|b\"")
		}
		a.OneOf = strings.Split(v, "|")
	}
	if v, ok := sf.Tag.Lookup("path"); ok {
		if a.GetType() != pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING || v == "" {
			return errors.New("path: want a string's prefixes, \"unix:|tls:\"")
		}
		a.PathPrefixes = strings.Split(v, "|")
	}
	if err := parseBounds(a, sf); err != nil {
		return err
	}
	if _, ok := sf.Tag.Lookup("default"); ok && (pluginrpc.OpenedByLauncher(a.GetType()) || a.GetRequired()) {
		return errors.New("default: a file, or what is required, has none")
	}
	return parseDefault(a, sf)
}

func parseBounds(a *pluginv1.Attribute, sf reflect.StructField) error {
	numeric := false
	switch a.GetType() { //nolint:exhaustive // the rest has no bounds
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_INT:
		numeric = true
		a.Min, a.Max = intRange(sf.Type)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE:
		numeric = true
		a.Min = new(int64)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_DURATION, pluginv1.AttributeType_ATTRIBUTE_TYPE_FLOAT:
		numeric = true
	}
	if !numeric {
		return refuse(sf, "min", "max")
	}
	for key, dst := range map[string]**int64{"min": &a.Min, "max": &a.Max} {
		v, ok := sf.Tag.Lookup(key)
		if !ok {
			continue
		}
		n, err := parseNumber(a.GetType(), v)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		if lo, hi := intRange(sf.Type); lo != nil && n < *lo || hi != nil && n > *hi {
			return fmt.Errorf("%s %s: outside the range of %v", key, v, sf.Type)
		}
		*dst = &n
	}
	return nil
}

// intRange is the range of an integer type as far as an int64 can tell; nil: none.
func intRange(t reflect.Type) (lo, hi *int64) {
	switch t.Kind() { //nolint:exhaustive // no integer: no range
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if bits := t.Bits(); bits < 64 {
			return new(int64(-1) << (bits - 1)), new(int64(1)<<(bits-1) - 1)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if bits := t.Bits(); bits < 64 {
			return new(int64), new(int64(1)<<bits - 1)
		}
		return new(int64), nil
	}
	return nil, nil
}

// parseNumber reads a bound or default as a user would write it.
func parseNumber(t pluginv1.AttributeType, v string) (int64, error) {
	switch t { //nolint:exhaustive // the rest are plain numbers
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE:
		n, err := ParseSize(v)
		return int64(n), err //nolint:gosec // ParseSize stays below 2^63
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_DURATION:
		d, err := time.ParseDuration(v)
		return int64(d), err
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q: want a whole number", v)
	}
	return n, nil
}

// parseDefault turns the default tag into JSON and checks it as if it came from a configuration.
func parseDefault(a *pluginv1.Attribute, sf reflect.StructField) error {
	v, ok := sf.Tag.Lookup("default")
	if !ok {
		return nil
	}
	text, err := defaultJSON(a, sf, v)
	if err != nil {
		return err
	}
	a.DefaultJson = text
	if v, ok := sf.Tag.Lookup("several"); ok {
		a.DefaultSeveralJson, err = defaultJSON(a, sf, v)
	}
	return err
}

// defaultJSON is a default as it is written in a tag.
func defaultJSON(a *pluginv1.Attribute, sf reflect.StructField, v string) (string, error) {
	text := []byte(v)
	switch a.GetType() { //nolint:exhaustive // the rest is written as in JSON
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING:
		text, _ = json.Marshal(v) // a string always marshals
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_INT, pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE, pluginv1.AttributeType_ATTRIBUTE_TYPE_DURATION:
		n, err := parseNumber(a.GetType(), v)
		if err != nil {
			return "", fmt.Errorf("default: %w", err)
		}
		text = strconv.AppendInt(nil, n, 10)
	}
	if msg := decodeValue(a, text, reflect.New(sf.Type).Elem()); msg != "" {
		return "", fmt.Errorf("default %q: %s", v, msg)
	}
	return string(text), nil
}

func parseAccess(tag string) (*pluginv1.FileAccess, error) {
	f := &pluginv1.FileAccess{}
	for opt := range strings.SplitSeq(tag, ",") {
		switch name, isRO := strings.CutPrefix(opt, "read_only_if="); {
		case opt == "":
		case isRO:
			f.ReadOnlyIf = name
		case opt == "write":
			f.Write = true
		case opt == "create":
			f.Create = true
		case opt == "append":
			f.Append = true
		case opt == "block_device":
			f.BlockDevice = true
		case opt == "any_kind":
			f.AnyKind = true
		default:
			return nil, fmt.Errorf("file option %q: want write, create, append, block_device, any_kind or read_only_if=name", opt)
		}
	}
	if f.GetWrite() && f.GetAppend() || (f.GetCreate() || f.GetReadOnlyIf() != "") && !f.GetWrite() && !f.GetAppend() {
		return nil, errors.New("file: want write or append, not both; create and read_only_if need one of them")
	}
	return f, nil
}

func parseTapAccess(tag string) (*pluginv1.TapAccess, error) {
	t := &pluginv1.TapAccess{}
	for opt := range strings.SplitSeq(tag, ",") {
		key, name, _ := strings.Cut(opt, "=")
		switch {
		case opt == "":
		case key == "queue_pairs":
			t.QueuePairs = name
		case key == "bridge":
			t.Bridge = name
		case key == "addresses":
			t.Addresses = name
		case key == "mtu":
			t.Mtu = name
		default:
			return nil, fmt.Errorf("tap option %q: want queue_pairs=name, bridge=name, addresses=name or mtu=name", opt)
		}
	}
	return t, nil
}

func refuse(sf reflect.StructField, keys ...string) error {
	for _, k := range keys {
		if _, ok := sf.Tag.Lookup(k); ok {
			return fmt.Errorf("tag %s: not for %v", k, sf.Type)
		}
	}
	return nil
}

// floatBound compares a float with an optional integer bound.
func floatBound(v float64, lo, hi *int64) bool {
	return !math.IsNaN(v) && !math.IsInf(v, 0) && (lo == nil || v >= float64(*lo)) && (hi == nil || v <= float64(*hi))
}
