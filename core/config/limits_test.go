package config_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/virtplug/virtplug/core/config"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

func TestSchemasThatContradictThemselvesAreRefused(t *testing.T) {
	t.Parallel()
	deep := &pluginv1.Schema{}
	for range 10 {
		deep = &pluginv1.Schema{Blocks: []*pluginv1.Block{{Name: "b", Schema: deep}}}
	}
	attr := func(a ...*pluginv1.Attribute) *pluginv1.Schema { return &pluginv1.Schema{Attributes: a} }
	block := func(b ...*pluginv1.Block) *pluginv1.Schema { return &pluginv1.Schema{Blocks: b} }
	for want, s := range map[string]*pluginv1.Schema{
		"nest deeper":              deep,
		"there twice":              attr(&pluginv1.Attribute{Name: "a", Type: tBool}, &pluginv1.Attribute{Name: "a", Type: tInt}),
		"a: the name is there":     {Attributes: attr(&pluginv1.Attribute{Name: "a", Type: tBool}).GetAttributes(), Blocks: block(&pluginv1.Block{Name: "a"}).GetBlocks()},
		"no name for an attribute": attr(&pluginv1.Attribute{Name: "a.b", Type: tBool}),
		"no name for a block":      block(&pluginv1.Block{Name: ""}),
		"no name for a label":      block(&pluginv1.Block{Name: "b", Label: "-"}),
		"both the label":           block(&pluginv1.Block{Name: "b", Label: "l", Schema: attr(&pluginv1.Attribute{Name: "l", Type: tBool})}),
		"at least 3 blocks":        block(&pluginv1.Block{Name: "b", MinItems: 3, MaxItems: 2}),
		"b.c: unknown type 77":     block(&pluginv1.Block{Name: "b", Schema: attr(&pluginv1.Attribute{Name: "c", Type: 77})}),
		"unknown type 0":           attr(&pluginv1.Attribute{Name: "c"}),
		"is above the most":        attr(&pluginv1.Attribute{Name: "c", Type: tInt, Min: proto.Int64(2), Max: proto.Int64(1)}),
		"required, and yet":        attr(&pluginv1.Attribute{Name: "c", Type: tInt, Required: true, DefaultJson: "1"}),
		"not JSON":                 attr(&pluginv1.Attribute{Name: "c", Type: tInt, DefaultJson: "{"}),
		"is too small":             attr(&pluginv1.Attribute{Name: "c", Type: tInt, DefaultJson: "1", Min: proto.Int64(2)}),
		"is not one of":            attr(&pluginv1.Attribute{Name: "c", Type: tString, DefaultJson: `"x"`, OneOf: []string{"y"}}),
		"nanoseconds":              attr(&pluginv1.Attribute{Name: "c", Type: tDuration, DefaultJson: `"1s"`}),
	} {
		if err := config.CheckSchema(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CheckSchema = %v, want %q", err, want)
		}
	}
	for name, p := range plugins() {
		if err := config.CheckSchema(p.GetSchema()); (err != nil) != (name == "liar") {
			t.Errorf("CheckSchema(%s) = %v", name, err)
		}
	}
}

// check parses src and returns what is wrong with it.
func check(t *testing.T, src string) string {
	t.Helper()
	p := plugins()
	p["console"].GetSchema().GetBlocks()[0].MinItems = 1
	_, err := config.Parse(t.Context(), []byte(src), config.Input{Path: "x.hcl"}, p, config.Options{})
	if err == nil {
		return ""
	}
	return err.Error() + "\n" + string(text(t, err))
}

func TestValuesAtTheirLimits(t *testing.T) {
	t.Parallel()
	var many strings.Builder
	for i := range 257 {
		fmt.Fprintf(&many, "device \"block\" \"d%d\" {\n  path = \"x\"\n}\n", i)
	}
	for src, want := range map[string]string{
		many.String():                                                    "this is number 257",
		`device "console" "c" {}`:                                        "At least 1 must stand here, but there are 0. A port.",
		`vm "x" { cpus = 99999999999999999999999 }`:                      "The number is too large",
		`vm "x" { cpus = 1e400 }`:                                        "",
		`vm "x" { memory = -1 }`:                                         "cannot be negative",
		`vm "x" { memory = true }`:                                       "The value true is given, but a size is needed",
		`vm "x" { memory = null }`:                                       "none",
		`vm "x" { cmdline = "a\nb" }`:                                    "cannot contain line breaks",
		`vm "x" { kernel = "" }`:                                         "The path is empty",
		"vm \"x\" { machine = \"\x1b[31m\" }":                            "·[31m",
		`device "block" "b" { path = "x", weight = 2 }`:                  "",
		"device \"block\" \"b\" {\n path = \"x\"\n weight = 2\n}":        "2 is too large; the most is 1",
		"device \"block\" \"b\" {\n path = \"x\"\n weight = 1e999\n}":    "The number is too large",
		"device \"block\" \"b\" {\n path = \"x\"\n tags = [\"a\", 1]\n}": "Item 2 is the number 1, but a string is needed",
		"device \"block\" \"b\" {\n path = \"x\"\n timeout = \"5\"\n}":   "\"5\" is not a duration",
	} {
		got := check(t, src)
		switch {
		case want == "none" && got != "":
			t.Errorf("%.60s: %s", src, got)
		case want == "none":
		case got == "" || !strings.Contains(got, want):
			t.Errorf("%.60s: %s\nwant %q", src, got, want)
		}
		if strings.Contains(got, "| vm \"x\" { machine = \"\x1b") {
			t.Errorf("%.60s: control characters get through: %q", src, got)
		}
	}
}
