package config

import (
	"encoding/json"
	"fmt"

	"github.com/virtplug/virtplug/core/tap"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// tapAttribute checks a tap and the attributes that say how it is made: alone, and if files are looked for, against the host.
func (d *decoder) tapAttribute(a *pluginv1.Attribute, out *decoded) {
	name, ok := out.values[a.GetName()].(string)
	if !ok {
		return
	}
	members := map[string]json.RawMessage{}
	for k, v := range out.values {
		if raw, err := json.Marshal(v); err == nil { // what has no text is told elsewhere
			members[k] = raw
		}
	}
	c := tap.FromSettings(a.GetTap(), name, members)
	err := c.Check()
	if err == nil && d.checkFiles {
		err = tap.Probe(c)
	}
	for _, e := range tap.Errors(err) {
		attr := e.Field.Attribute(a)
		at, ok := out.ranges[attr]
		if !ok { // a default: the tap is what was written
			at = out.ranges[a.GetName()]
		}
		d.errorf(at, fmt.Sprintf("Cannot use %q", attr), "%s", asSentence(e))
	}
}
