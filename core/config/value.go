package config

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"github.com/virtplug/virtplug/core/tap"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// ParseSize reads a number of bytes: "4096", "512M", "10GiB". Units are K, M, G, T and P, with or without "iB", each 1024
// times the one before; "B" is allowed for bytes.
func ParseSize(s string) (int64, error) {
	num := strings.TrimSpace(s)
	end := len(num)
	for i := range len(num) {
		if num[i] < '0' || num[i] > '9' {
			end = i
			break
		}
	}
	if end == 0 {
		return 0, fmt.Errorf("%q is not a size; write a number of bytes or one with a unit, such as \"512M\" or \"10GiB\"", s)
	}
	unit := strings.TrimSpace(num[end:])
	shift := 0
	if unit != "" && !strings.EqualFold(unit, "b") {
		i := strings.IndexByte("KMGTP", unit[0]&^0x20)
		if rest := unit[1:]; i < 0 || rest != "" && !strings.EqualFold(rest, "ib") {
			return 0, fmt.Errorf("%q has an unknown unit; units are K, M, G, T and P, with or without \"iB\" (1024 each)", s)
		}
		shift = 10 * (i + 1)
	}
	n, err := strconv.ParseInt(num[:end], 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is too large a size", s)
	}
	return n << shift, nil
}

// FormatSize writes n bytes with the largest unit that divides them: 268435456 is "256MiB".
func FormatSize(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for n != 0 && n%1024 == 0 && i < len(units)-1 {
		n /= 1024
		i++
	}
	if i == 0 {
		return strconv.FormatInt(n, 10)
	}
	return strconv.FormatInt(n, 10) + units[i]
}

// typeNames are what people read for an attribute type.
func typeName(t pluginv1.AttributeType) string {
	switch t {
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING:
		return "string"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_BOOL:
		return "true or false"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_INT:
		return "whole number"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE:
		return "size"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_DURATION:
		return "duration"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST:
		return "list of strings"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE:
		return "file"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER:
		return "socket path"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_FLOAT:
		return "number"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP:
		return "tap interface"
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_UNSPECIFIED:
	}
	return "unknown type"
}

// convertValue turns v into what ConfigJSON holds for a: string, bool, int64, float64 or []string. v is neither null nor
// unknown. The error is a sentence about the value.
func convertValue(a *pluginv1.Attribute, v cty.Value, fromFlag bool) (any, error) {
	switch a.GetType() {
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING:
		s, err := stringOf(v)
		if err != nil {
			return nil, err
		}
		return s, checkOneOf(a, s)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE, pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER:
		s, err := stringOf(v)
		switch {
		case err != nil:
			return nil, err
		case s == "":
			return nil, errors.New("the path is empty")
		case strings.ContainsRune(s, 0):
			return nil, errors.New("a path cannot contain a zero byte")
		}
		return s, nil
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP:
		s, err := stringOf(v)
		if err != nil {
			return nil, err
		}
		return s, tap.CheckName(s)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_BOOL:
		b, err := convert.Convert(v, cty.Bool)
		if err != nil {
			return nil, fmt.Errorf("%s is given, but true or false is needed", describeValue(v))
		}
		return b.True(), nil
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_INT:
		n, err := intOf(v)
		if err != nil {
			return nil, err
		}
		return n, checkBounds(a, n, strconv.FormatInt)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE:
		return sizeOf(a, v)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_DURATION:
		return durationOf(a, v)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST:
		return listOf(a, v, fromFlag)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_FLOAT:
		return floatOf(a, v)
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_UNSPECIFIED:
	}
	return nil, fmt.Errorf("the plugin says that this has type %d, which this launcher does not know", a.GetType())
}

func stringOf(v cty.Value) (string, error) {
	s, err := convert.Convert(v, cty.String)
	if err != nil {
		return "", fmt.Errorf("%s is given, but a string is needed", describeValue(v))
	}
	return s.AsString(), nil
}

func intOf(v cty.Value) (int64, error) {
	n, err := convert.Convert(v, cty.Number)
	if err != nil {
		return 0, fmt.Errorf("%s is given, but a whole number is needed", describeValue(v))
	}
	i, acc := n.AsBigFloat().Int64()
	switch {
	case n.AsBigFloat().IsInf(), acc != big.Exact && n.AsBigFloat().IsInt():
		return 0, errors.New("the number is too large")
	case acc != big.Exact:
		return 0, errors.New("the number has a fraction, but a whole number is needed")
	}
	return i, nil
}

func floatOf(a *pluginv1.Attribute, v cty.Value) (any, error) {
	n, err := convert.Convert(v, cty.Number)
	if err != nil {
		return nil, fmt.Errorf("%s is given, but a number is needed", describeValue(v))
	}
	f, _ := n.AsBigFloat().Float64()
	switch {
	case math.IsInf(f, 0):
		return nil, errors.New("the number is too large")
	case a.Min != nil && f < float64(a.GetMin()):
		return nil, fmt.Errorf("%v is too small; the least is %d", f, a.GetMin())
	case a.Max != nil && f > float64(a.GetMax()):
		return nil, fmt.Errorf("%v is too large; the most is %d", f, a.GetMax())
	}
	return f, nil
}

func sizeOf(a *pluginv1.Attribute, v cty.Value) (any, error) {
	var n int64
	var err error
	bare := v.Type() == cty.Number
	switch {
	case bare:
		n, err = intOf(v)
	case v.Type() == cty.String:
		n, err = ParseSize(v.AsString())
		_, bareErr := strconv.Atoi(v.AsString())
		bare = bareErr == nil
	default:
		err = fmt.Errorf("%s is given, but a size is needed: a number of bytes, or \"512M\", \"10GiB\"", describeValue(v))
	}
	if err == nil && n < 0 {
		err = errors.New("a size cannot be negative")
	}
	if err != nil {
		return nil, err
	}
	err = checkBounds(a, n, func(n int64, _ int) string { return FormatSize(n) })
	if err != nil && bare && n < a.GetMin() && n > 0 {
		err = fmt.Errorf("%w. A number without a unit is bytes: write \"%dM\" for mebibytes", err, n)
	}
	return n, err
}

func durationOf(a *pluginv1.Attribute, v cty.Value) (any, error) {
	if v.Type() != cty.String {
		return nil, fmt.Errorf("%s is given, but a duration with its unit is needed, such as \"1.5s\" or \"200ms\"", describeValue(v))
	}
	d, err := time.ParseDuration(v.AsString())
	if err != nil {
		return nil, fmt.Errorf("%q is not a duration; write one such as \"1.5s\" or \"200ms\"", v.AsString())
	}
	return int64(d), checkBounds(a, int64(d), func(n int64, _ int) string { return time.Duration(n).String() })
}

func listOf(a *pluginv1.Attribute, v cty.Value, fromFlag bool) (any, error) {
	t := v.Type()
	if fromFlag && t == cty.String { // one `key=value` of a flag is a list of one
		v, t = cty.TupleVal([]cty.Value{v}), cty.Tuple([]cty.Type{t})
	}
	if !t.IsTupleType() && !t.IsListType() {
		return nil, fmt.Errorf("%s is given, but a list of strings is needed: [\"a\", \"b\"]", describeValue(v))
	}
	out := []string{}
	for it := v.ElementIterator(); it.Next(); {
		_, e := it.Element()
		if e.IsNull() || e.Type() != cty.String {
			return nil, fmt.Errorf("item %d is %s, but a string is needed", len(out)+1, describeValue(e))
		}
		if err := checkOneOf(a, e.AsString()); err != nil {
			return nil, err
		}
		out = append(out, e.AsString())
	}
	return out, nil
}

func checkOneOf(a *pluginv1.Attribute, s string) error {
	if len(a.GetOneOf()) == 0 || slices.Contains(a.GetOneOf(), s) {
		return nil
	}
	return fmt.Errorf("%q is not one of %s.%s", s, quoteList(a.GetOneOf()), didYouMean(s, a.GetOneOf()))
}

func checkBounds(a *pluginv1.Attribute, n int64, format func(int64, int) string) error {
	switch {
	case a.Min != nil && n < a.GetMin():
		return fmt.Errorf("%s is too small; the least is %s", format(n, 10), format(a.GetMin(), 10))
	case a.Max != nil && n > a.GetMax():
		return fmt.Errorf("%s is too large; the most is %s", format(n, 10), format(a.GetMax(), 10))
	}
	return nil
}

// describeValue says what v is, in words: "a number", "a list".
func describeValue(v cty.Value) string {
	t := v.Type()
	switch {
	case v.IsNull():
		return "null"
	case t == cty.String:
		return strconv.Quote(v.AsString())
	case t == cty.Number:
		return "the number " + v.AsBigFloat().Text('g', 20)
	case t == cty.Bool:
		return "the value " + strconv.FormatBool(v.True())
	case t.IsTupleType() || t.IsListType() || t.IsSetType():
		return "a list"
	case t.IsObjectType() || t.IsMapType():
		return "an object"
	}
	return t.FriendlyName()
}
