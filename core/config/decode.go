package config

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/hashicorp/hcl/v2"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// decoder checks bodies against schemas. It gathers diagnostics instead of stopping at the first.
type decoder struct {
	diags hcl.Diagnostics
	// bases maps a file name to the directory that its relative paths start from; "" is the working directory.
	bases map[string]string
	// checkFiles: look whether files are there.
	checkFiles bool
}

// decoded is a checked body.
type decoded struct {
	// values are what ConfigJSON holds: string, bool, int64, float64, []string, []any of nested map[string]any.
	values map[string]any
	// ranges maps attribute paths, relative to the body, to places.
	ranges map[string]hcl.Range
}

// body is one body to be decoded and where it stands.
type body struct {
	hcl    hcl.Body
	schema *pluginv1.Schema
	// skip are blocks that are allowed here but read by somebody else.
	skip []hcl.BlockHeaderSchema
	// override replaces attributes of the body.
	override hcl.Attributes
	// at is the place for what is missing, if the body has none.
	at hcl.Range
}

func (d *decoder) errorf(at hcl.Range, summary, format string, args ...any) {
	d.diags = append(d.diags, &hcl.Diagnostic{
		Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(format, args...), Subject: at.Ptr(),
	})
}

// decode checks b. The result is whole only if no diagnostic was added.
func (d *decoder) decode(b body) decoded {
	out := decoded{values: map[string]any{}, ranges: map[string]hcl.Range{}}
	hs := &hcl.BodySchema{Blocks: b.skip}
	for _, a := range b.schema.GetAttributes() {
		hs.Attributes = append(hs.Attributes, hcl.AttributeSchema{Name: a.GetName()})
	}
	for _, bl := range b.schema.GetBlocks() {
		header := hcl.BlockHeaderSchema{Type: bl.GetName()}
		if bl.GetLabel() != "" {
			header.LabelNames = []string{bl.GetLabel()}
		}
		hs.Blocks = append(hs.Blocks, header)
	}
	content, diags := b.hcl.Content(hs)
	d.diags = append(d.diags, diags...)
	if content == nil {
		return out
	}
	for _, a := range b.schema.GetAttributes() {
		attr := content.Attributes[a.GetName()]
		if o := b.override[a.GetName()]; o != nil {
			attr = o
		}
		d.attribute(a, attr, b, &out)
	}
	d.fileAttributes(b.schema, &out)
	for _, bl := range b.schema.GetBlocks() {
		d.blocks(bl, content.Blocks.OfType(bl.GetName()), b.at, &out)
	}
	return out
}

// attribute checks one attribute; attr is nil if it is not written.
func (d *decoder) attribute(a *pluginv1.Attribute, attr *hcl.Attribute, b body, out *decoded) {
	if attr != nil {
		out.ranges[a.GetName()] = attr.Expr.Range()
		v, diags := attr.Expr.Value(nil)
		d.diags = append(d.diags, diags...)
		if diags.HasErrors() {
			return
		}
		if !v.IsNull() && v.IsWhollyKnown() {
			value, err := convertValue(a, v, isFlag(attr.Range.Filename))
			if isFlag(attr.Range.Filename) && v.Type().IsTupleType() && a.GetType() != pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST {
				err = errors.New("it is given more than once")
			}
			if err != nil {
				d.errorf(attr.Expr.Range(), fmt.Sprintf("Bad value for %q", a.GetName()), "%s", asSentence(err))
				return
			}
			out.values[a.GetName()] = value
			return
		}
	}
	if a.GetRequired() {
		d.errorf(b.at, "Missing attribute", "%q is required (%s).%s", a.GetName(), typeName(a.GetType()), sentence(a.GetDescription()))
		return
	}
	if v, err := defaultOf(a); err == nil && v != nil { // the schema was checked before
		out.values[a.GetName()] = v
	}
}

// blocks checks the nested blocks of one type.
func (d *decoder) blocks(bl *pluginv1.Block, found hcl.Blocks, at hcl.Range, out *decoded) {
	name := bl.GetName()
	if n := bl.GetMaxItems(); n != 0 && len(found) > int(n) {
		d.errorf(found[n].DefRange, fmt.Sprintf("Too many %q blocks", name), "At most %d may stand here; this is number %d.", n, n+1)
	}
	if n := bl.GetMinItems(); len(found) < int(n) {
		d.errorf(at, fmt.Sprintf("Missing %q block", name), "At least %d must stand here, but there are %d.%s", n, len(found), sentence(bl.GetDescription()))
	}
	if len(found) == 0 {
		return
	}
	labels := map[string]hcl.Range{}
	items := make([]any, 0, len(found))
	for i, f := range found {
		in := d.decode(body{hcl: f.Body, schema: bl.GetSchema(), at: f.DefRange})
		prefix := name + "." + strconv.Itoa(i)
		out.ranges[prefix] = f.DefRange
		for p, r := range in.ranges {
			out.ranges[prefix+"."+p] = r
		}
		if l := bl.GetLabel(); l != "" && len(f.Labels) == 1 {
			if first, dup := labels[f.Labels[0]]; dup {
				d.errorf(f.LabelRanges[0], fmt.Sprintf("Duplicate %q block", name), "There is another %q block with the label %q at %s.", name, f.Labels[0], place(first))
			}
			labels[f.Labels[0]] = f.DefRange
			in.values[l] = f.Labels[0]
			out.ranges[prefix+"."+l] = f.LabelRanges[0]
		}
		items = append(items, in.values)
	}
	out.values[name] = items
}

// sentence puts a description after another sentence.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	return " " + s
}
