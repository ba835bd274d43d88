package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// Flags are what a command line says of a VM. Empty strings are not given.
type Flags struct {
	Name, Memory, CPUs, Machine, Bus, Kernel, Initrd, Cmdline string
	// PluginDirs are searched before those of a file.
	PluginDirs []string
	// Devices are in the order given.
	Devices []DeviceFlag
}

// DeviceFlag is one flag that makes a device.
type DeviceFlag struct {
	// Flag is its name, for diagnostics: "--block".
	Flag string
	// Value is what the user wrote: "disk.img,read_only=true".
	Value string
	// Type is the device's type, and Prefix what its name is made of if it is not given: "vd" gives vda, vdb; "con" con0. If
	// Type is empty, the value begins with TYPE or TYPE=NAME.
	Type, Prefix string
	// First makes one or more key=value of the value's first part, if that has no key: "disk.img" becomes "path=disk.img".
	// nil: it has a key like all the others.
	First func(string) []string
	// Block is what a further flag of the same kind becomes in the first one's device, with Extra: a nested block with a label.
	// Empty, or if the flag has one of the keys Own or a key with a path: a device of its own.
	Block, Extra string
	Own          []string
}

// BlockFlag is `--block IMAGE[,KEY=VALUE…]`.
func BlockFlag(value string) DeviceFlag {
	return DeviceFlag{Flag: "--block", Value: value, Type: "block", Prefix: "vd", First: func(s string) []string {
		if strings.HasPrefix(s, "path=") {
			return []string{s}
		}
		return []string{"path=" + s}
	}}
}

// ConsoleFlag is `--console stdio|pty|null|socket:PATH|file:PATH[,KEY=VALUE…]`. Further ones are ports of the first one's
// device: then the guest numbers its consoles as they are written. It does not for those of several devices.
func ConsoleFlag(value string) DeviceFlag {
	return DeviceFlag{Flag: "--console", Value: value, Type: "console", Prefix: "con", Block: "port", Extra: "console=true", Own: []string{"multiport", "resize_order"}, First: func(s string) []string {
		for _, kind := range []string{"socket", "file"} {
			if path, ok := strings.CutPrefix(s, kind+":"); ok {
				return []string{kind + "=" + path}
			}
		}
		if strings.Contains(s, "=") {
			return []string{s}
		}
		return []string{"backend=" + s}
	}}
}

// GenericFlag is `--device TYPE[=NAME][,KEY=VALUE…]`.
func GenericFlag(value string) DeviceFlag { return DeviceFlag{Flag: "--device", Value: value} }

// places gives each device flag the name of its source: "--block", then "--block (2nd)".
func (f Flags) places() []string {
	out := make([]string, len(f.Devices))
	count := map[string]int{}
	for i, d := range f.Devices {
		count[d.Flag]++
		out[i] = d.Flag
		if n := count[d.Flag]; n > 1 {
			out[i] = fmt.Sprintf("%s (%d%s)", d.Flag, n, ordinal(n))
		}
	}
	return out
}

func ordinal(n int) string {
	if n%100 >= 11 && n%100 <= 13 {
		return "th"
	}
	switch n % 10 {
	case 1:
		return "st"
	case 2:
		return "nd"
	case 3:
		return "rd"
	}
	return "th"
}

// attributes lists the flags of the vm block: flag, attribute, value.
func (f Flags) attributes() [][3]string {
	return [][3]string{
		{"--memory", "memory", f.Memory},
		{"--cpus", "cpus", f.CPUs},
		{"--machine", "machine", f.Machine},
		{"--bus", "bus", f.Bus},
		{"--kernel", "kernel", f.Kernel},
		{"--initrd", "initrd", f.Initrd},
		{"--cmdline", "cmdline", f.Cmdline},
	}
}

// addSources adds the flags' texts.
func (f Flags) addSources(s Sources) {
	s["--name"] = &hcl.File{Bytes: []byte(f.Name)}
	for _, a := range f.attributes() {
		s[a[0]] = &hcl.File{Bytes: []byte(a[2])}
	}
	places := f.places()
	for i, d := range f.Devices {
		s[places[i]] = &hcl.File{Bytes: []byte(d.Value)}
	}
}

// vmAttributes makes attributes of the vm block.
func (f Flags) vmAttributes() hcl.Attributes {
	out := hcl.Attributes{}
	for _, a := range f.attributes() {
		if a[2] != "" {
			r := wholeFlag(a[0], a[2])
			out[a[1]] = &hcl.Attribute{Name: a[1], Range: r, NameRange: r, Expr: literal(cty.StringVal(a[2]), r)}
		}
	}
	return out
}

// devices makes the flags' devices. Names that are not given are the next free ones.
func (f Flags) devices(content *hcl.BodyContent) []writtenDevice {
	taken := map[string]bool{}
	for _, d := range fileDevices(content) {
		taken[d.name] = true
	}
	places := f.places()
	out := make([]writtenDevice, 0, len(f.Devices))
	firsts := map[string]*[]token{} // by flag: the tokens of the first, to which further ones add
	for i, d := range f.Devices {
		tokens := splitFlag(d.Value, places[i])
		whole := wholeFlag(places[i], d.Value)
		w := writtenDevice{kind: d.Type, kindRange: whole, nameRange: whole, defined: whole}
		if d.Type == "" {
			head := tokens[0]
			w.kind, w.name, _ = strings.Cut(head.text, "=")
			w.kindRange, w.nameRange = head.at, head.at
			tokens = tokens[1:]
			d.Prefix = w.kind
		} else if d.First != nil {
			tokens = d.first(tokens)
		}
		if w.name == "" {
			w.name = freeName(d.Prefix, taken)
		}
		taken[w.name] = true
		if first := firsts[d.Flag]; first != nil && d.joins(tokens) {
			*first = append(*first, nested(d.Block+"."+w.name+".", d.Extra, tokens, whole)...)
			continue
		}
		if firsts[d.Flag] == nil {
			firsts[d.Flag] = &tokens
		}
		w.body = func(s *pluginv1.Schema) hcl.Body { return flagBody(tokens, s, whole) }
		out = append(out, w)
	}
	return out
}

// first puts what First makes of the first token in its place.
func (d *DeviceFlag) first(tokens []token) []token {
	made := d.First(tokens[0].text)
	if len(made) == 1 && made[0] == tokens[0].text {
		return tokens
	}
	var out []token
	for _, text := range made {
		out = append(out, token{text: text, at: tokens[0].at, keyless: true})
	}
	return append(out, tokens[1:]...)
}

// joins tells whether the flag becomes a block of the first one's device.
func (d *DeviceFlag) joins(tokens []token) bool {
	return d.Block != "" && !slices.ContainsFunc(tokens, func(t token) bool {
		key, _, _ := strings.Cut(t.text, "=")
		return strings.Contains(key, ".") || slices.Contains(d.Own, key)
	})
}

// nested puts tokens below a path, and extra with them.
func nested(path, extra string, tokens []token, whole hcl.Range) []token {
	out := []token{{text: path + extra, at: whole, keyless: true}}
	for _, t := range tokens {
		if t.text != "" {
			out = append(out, token{text: path + t.text, at: t.at, keyless: true})
		}
	}
	return out
}

// freeName returns prefix with the first suffix that is not taken: letters behind "vd", as Linux names disks, else numbers.
func freeName(prefix string, taken map[string]bool) string {
	for n := 0; ; n++ {
		name := prefix + strconv.Itoa(n)
		if prefix == "vd" {
			name = prefix + letters(n)
		}
		if !taken[name] {
			return name
		}
	}
}

// letters counts a, b, …, z, aa, ab.
func letters(n int) string {
	s := ""
	for n++; n > 0; n = (n - 1) / 26 {
		s = string(rune('a'+(n-1)%26)) + s
	}
	return s
}

// token is one part of a flag's value between commas.
type token struct {
	text string
	at   hcl.Range
	// keyless: the key in text was not written by the user.
	keyless bool
}

// splitFlag splits at commas; two commas stand for one.
func splitFlag(value, filename string) []token {
	var out []token
	begin := 0
	var text strings.Builder
	end := func(i int) {
		out = append(out, token{text: text.String(), at: flagRange(filename, value, begin, i)})
		text.Reset()
		begin = i + 1
	}
	for i := 0; i < len(value); i++ {
		switch {
		case value[i] != ',':
			text.WriteByte(value[i])
		case i+1 < len(value) && value[i+1] == ',':
			text.WriteByte(',')
			i++
		default:
			end(i)
		}
	}
	end(len(value))
	return out
}

// flagBody makes a body of key=value tokens. A key is an attribute, or a path through blocks: "port.serial.socket" where the
// block has a label, "port.0.socket" or "port.socket" where it has none.
func flagBody(tokens []token, schema *pluginv1.Schema, whole hcl.Range) hcl.Body {
	root := &hclsyntax.Body{Attributes: hclsyntax.Attributes{}, SrcRange: whole, EndRange: whole}
	for _, t := range tokens {
		if t.text == "" {
			continue
		}
		key, value, ok := strings.Cut(t.text, "=")
		keyRange, valueRange := t.at, t.at
		if !t.keyless {
			n := min(len(key), t.at.End.Byte-t.at.Start.Byte)
			keyRange.End = hcl.Pos{Line: 1, Byte: t.at.Start.Byte + n, Column: t.at.Start.Column + utf8.RuneCountInString(key)}
			valueRange.Start = keyRange.End
			if ok {
				valueRange.Start.Byte++
				valueRange.Start.Column++
			}
		}
		v := cty.StringVal(value)
		if !ok {
			v, valueRange = cty.True, keyRange // a bare key switches on
		}
		setFlag(root, schema, strings.Split(key, "."), v, keyRange, valueRange)
	}
	return root
}

// setFlag puts one value into b, at path.
func setFlag(b *hclsyntax.Body, schema *pluginv1.Schema, path []string, v cty.Value, key, value hcl.Range) {
	if block := findBlock(schema, path[0]); block != nil && len(path) > 1 {
		label := ""
		rest := path[1:]
		if n, err := strconv.Atoi(path[1]); block.GetLabel() != "" || err == nil && n >= 0 && n <= maxIndex {
			label, rest = path[1], path[2:]
		}
		inner := childBlock(b, block, label, key)
		if len(rest) > 0 {
			setFlag(inner, block.GetSchema(), rest, v, key, value)
		}
		return
	}
	name := strings.Join(path, ".")
	if old := b.Attributes[name]; old != nil { // given again: a list
		if first, diags := old.Expr.Value(nil); !diags.HasErrors() {
			list := []cty.Value{first, v}
			if first.Type().IsTupleType() {
				list = append(first.AsValueSlice(), v)
			}
			v = cty.TupleVal(list)
		}
	}
	b.Attributes[name] = &hclsyntax.Attribute{
		Name: name, Expr: literal(v, value), SrcRange: hcl.RangeBetween(key, value), NameRange: key, EqualsRange: key,
	}
}

func findBlock(s *pluginv1.Schema, name string) *pluginv1.Block {
	for _, b := range s.GetBlocks() {
		if b.GetName() == name {
			return b
		}
	}
	return nil
}

// maxIndex bounds the index of a block in a flag's key.
const maxIndex = 255

// childBlock returns the body of b's block with a label or, for blocks without one, of an index. It makes what is missing.
func childBlock(b *hclsyntax.Body, block *pluginv1.Block, label string, at hcl.Range) *hclsyntax.Body {
	labelled := block.GetLabel() != ""
	index, _ := strconv.Atoi(label)
	for _, c := range b.Blocks {
		if c.Type != block.GetName() {
			continue
		}
		if labelled && c.Labels[0] == label || !labelled && index == 0 {
			return c.Body
		}
		index--
	}
	for {
		c := &hclsyntax.Block{
			Type: block.GetName(), TypeRange: at, OpenBraceRange: at, CloseBraceRange: at,
			Body: &hclsyntax.Body{Attributes: hclsyntax.Attributes{}, SrcRange: at, EndRange: at},
		}
		if labelled {
			c.Labels, c.LabelRanges = []string{label}, []hcl.Range{at}
		}
		b.Blocks = append(b.Blocks, c)
		if labelled || index <= 0 {
			return c.Body
		}
		index--
	}
}

func literal(v cty.Value, at hcl.Range) hclsyntax.Expression {
	return &hclsyntax.LiteralValueExpr{Val: v, SrcRange: at}
}

// wholeFlag is the place of a flag's whole value.
func wholeFlag(filename, value string) hcl.Range { return flagRange(filename, value, 0, len(value)) }

func flagRange(filename, value string, begin, end int) hcl.Range {
	pos := func(i int) hcl.Pos {
		return hcl.Pos{Line: 1, Column: utf8.RuneCountInString(value[:i]) + 1, Byte: i}
	}
	return hcl.Range{Filename: filename, Start: pos(begin), End: pos(end)}
}
