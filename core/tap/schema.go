package tap

import (
	"encoding/json"
	"errors"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// FromSettings makes the Config of an attribute of type TAP with the value name; members are the settings of its block.
// Values of a wrong type count as not given: whoever checks the schema tells.
func FromSettings(access *pluginv1.TapAccess, name string, members map[string]json.RawMessage) Config {
	c := Config{Name: name}
	read(members, access.GetQueuePairs(), &c.Queues)
	read(members, access.GetBridge(), &c.Bridge)
	read(members, access.GetAddresses(), &c.Addresses)
	read(members, access.GetMtu(), &c.MTU)
	return c
}

func read[T any](members map[string]json.RawMessage, name string, dst *T) {
	var v T
	if raw, ok := members[name]; ok && json.Unmarshal(raw, &v) == nil {
		*dst = v
	}
}

// Attribute names the setting that f came from; "" if there is none.
func (f Field) Attribute(attr *pluginv1.Attribute) string {
	a := attr.GetTap()
	switch f {
	case FieldQueues:
		return a.GetQueuePairs()
	case FieldBridge:
		return a.GetBridge()
	case FieldAddresses:
		return a.GetAddresses()
	case FieldMTU:
		return a.GetMtu()
	case FieldName:
	}
	return attr.GetName()
}

// Errors takes a join of errors apart: one for each field that is wrong.
func Errors(err error) []*Error {
	switch e := err.(type) { //nolint:errorlint // a join is taken apart by hand
	case nil:
		return nil
	case *Error:
		return []*Error{e}
	case interface{ Unwrap() []error }:
		var out []*Error
		for _, in := range e.Unwrap() {
			out = append(out, Errors(in)...)
		}
		return out
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return []*Error{e}
	}
	return []*Error{{FieldName, err}}
}
