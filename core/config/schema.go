package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"google.golang.org/protobuf/proto"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

var (
	pluginName    = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	attributeName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
)

// maxSchemaDepth bounds nested blocks: deeper than anybody writes, far from what would hurt.
const maxSchemaDepth = 8

// checkDescription checks what a plugin told of itself: it comes from a program that need not be honest.
func checkDescription(d *pluginv1.DescribeResponse, want string) error {
	var errs []error
	if !pluginName.MatchString(d.GetName()) {
		errs = append(errs, fmt.Errorf("its name %q is not lower-case letters, digits and '-'", d.GetName()))
	} else if d.GetName() != want {
		errs = append(errs, fmt.Errorf("it says that it is %q, not %q", d.GetName(), want))
	}
	for _, b := range d.GetSchema().GetBlocks() {
		for _, own := range deviceSchema().GetBlocks() {
			if b.GetName() == own.GetName() {
				errs = append(errs, fmt.Errorf("its schema has a block %q, a name that the launcher keeps for itself", own.GetName()))
			}
		}
	}
	for _, a := range d.GetSchema().GetAttributes() {
		for _, own := range deviceSchema().GetBlocks() {
			if a.GetName() == own.GetName() {
				errs = append(errs, fmt.Errorf("its schema has an attribute %q, a name that the launcher keeps for itself", own.GetName()))
			}
		}
	}
	return errors.Join(append(errs, CheckSchema(d.GetSchema()))...)
}

// CheckSchema tells what is wrong with a schema itself: names, types, bounds and defaults that do not fit.
func CheckSchema(s *pluginv1.Schema) error { return checkSchema(s, "", 0) }

func checkSchema(s *pluginv1.Schema, at string, depth int) error {
	if depth > maxSchemaDepth {
		return fmt.Errorf("schema: %s: blocks nest deeper than %d", at, maxSchemaDepth)
	}
	var errs []error
	seen := map[string]bool{}
	name := func(kind, n string) bool {
		switch {
		case !attributeName.MatchString(n):
			errs = append(errs, fmt.Errorf("schema: %s%q is no name for %s", at, n, kind))
			return false
		case seen[n]:
			errs = append(errs, fmt.Errorf("schema: %s%s: the name is there twice", at, n))
		}
		seen[n] = true
		return true
	}
	for _, a := range s.GetAttributes() {
		if name("an attribute", a.GetName()) {
			errs = append(errs, checkAttribute(a, at))
		}
	}
	for _, b := range s.GetBlocks() {
		if !name("a block", b.GetName()) {
			continue
		}
		if l := b.GetLabel(); l != "" {
			if !attributeName.MatchString(l) {
				errs = append(errs, fmt.Errorf("schema: %s%s: %q is no name for a label", at, b.GetName(), l))
			}
			for _, a := range b.GetSchema().GetAttributes() {
				if a.GetName() == l {
					errs = append(errs, fmt.Errorf("schema: %s%s: %q is both the label and an attribute", at, b.GetName(), l))
				}
			}
		}
		if b.GetMaxItems() != 0 && b.GetMinItems() > b.GetMaxItems() {
			errs = append(errs, fmt.Errorf("schema: %s%s: at least %d blocks and at most %d", at, b.GetName(), b.GetMinItems(), b.GetMaxItems()))
		}
		errs = append(errs, checkSchema(b.GetSchema(), at+b.GetName()+".", depth+1))
	}
	return errors.Join(errs...)
}

func checkAttribute(a *pluginv1.Attribute, at string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("schema: %s%s: %s", at, a.GetName(), fmt.Sprintf(format, args...))
	}
	known := pluginv1.AttributeType_name[int32(a.GetType())] != "" && a.GetType() != pluginv1.AttributeType_ATTRIBUTE_TYPE_UNSPECIFIED
	switch {
	case !known:
		return bad("unknown type %d", a.GetType())
	case a.Min != nil && a.Max != nil && a.GetMin() > a.GetMax():
		return bad("the least value %d is above the most %d", a.GetMin(), a.GetMax())
	case a.GetDefaultJson() == "":
		return nil
	case a.GetRequired():
		return bad("required, and yet with a default")
	}
	if _, err := defaultOf(a); err != nil {
		return bad("default %s: %v", a.GetDefaultJson(), err)
	}
	if several := forSeveral(a); several != a {
		return checkAttribute(several, at)
	}
	return nil
}

// forSeveral is a as it is in a VM with several devices of the plugin.
func forSeveral(a *pluginv1.Attribute) *pluginv1.Attribute {
	if a.GetDefaultSeveralJson() == "" {
		return a
	}
	out, _ := proto.Clone(a).(*pluginv1.Attribute) // a clone has the type of what it was made of
	out.DefaultJson, out.DefaultSeveralJson = a.GetDefaultSeveralJson(), ""
	return out
}

// schemaFor is a plugin's schema in a VM with n devices of it.
func schemaFor(s *pluginv1.Schema, n int) *pluginv1.Schema {
	if n < 2 {
		return s
	}
	out := &pluginv1.Schema{Blocks: s.GetBlocks()}
	for _, a := range s.GetAttributes() {
		out.Attributes = append(out.Attributes, forSeveral(a))
	}
	return out
}

// defaultOf returns a's default as convertValue returns values; nil if there is none.
func defaultOf(a *pluginv1.Attribute) (any, error) {
	raw := []byte(a.GetDefaultJson())
	if len(raw) == 0 {
		return nil, nil
	}
	if !json.Valid(raw) {
		return nil, errors.New("not JSON")
	}
	if a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_DURATION { // JSON: nanoseconds
		var n int64
		if err := json.Unmarshal(raw, &n); err != nil {
			return nil, errors.New("not a whole number of nanoseconds")
		}
		return n, checkBounds(a, n, func(n int64, _ int) string { return fmt.Sprint(n) })
	}
	t, err := ctyjson.ImpliedType(raw)
	if err != nil {
		return nil, err
	}
	v, err := ctyjson.Unmarshal(raw, t)
	switch {
	case err != nil:
		return nil, err
	case v.IsNull():
		return nil, nil
	case v.Type() == cty.String && isNumeric(a.GetType()):
		return nil, errors.New("a string, but a number is needed")
	}
	return convertValue(a, v, false)
}

func isNumeric(t pluginv1.AttributeType) bool {
	return t == pluginv1.AttributeType_ATTRIBUTE_TYPE_INT || t == pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE || t == pluginv1.AttributeType_ATTRIBUTE_TYPE_FLOAT
}
