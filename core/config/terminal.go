package config

import (
	"slices"
	"strconv"

	"github.com/hashicorp/hcl/v2"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// TerminalPath stands in a device's settings where the launcher passes the end of a socket that leads to its terminal.
const TerminalPath = "terminal"

// wantsTerminal finds the blocks of a device that say `backend = "stdio"`, names the terminal as their attribute `stdio`, and
// returns the attributes' paths. A block counts if its schema has both attributes, and stdio as a file of any kind.
func wantsTerminal(s *pluginv1.Schema, values map[string]any, prefix string) []string {
	var out []string
	if values["backend"] == "stdio" && values["stdio"] == nil && slices.ContainsFunc(s.GetAttributes(), func(a *pluginv1.Attribute) bool {
		return a.GetName() == "stdio" && a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE && a.GetFile().GetAnyKind()
	}) {
		values["stdio"] = TerminalPath
		out = append(out, prefix+"stdio")
	}
	for _, b := range s.GetBlocks() {
		items, _ := values[b.GetName()].([]any)
		for i, item := range items {
			if in, ok := item.(map[string]any); ok {
				out = append(out, wantsTerminal(b.GetSchema(), in, prefix+b.GetName()+"."+strconv.Itoa(i)+".")...)
			}
		}
	}
	return out
}

// terminal gives the terminal to whoever wants it: one port of one device.
func (l *loader) terminal(d *Device, s *pluginv1.Schema, values map[string]any) {
	for _, path := range wantsTerminal(s, values, "") {
		backend := path[:len(path)-len("stdio")] + "backend"
		at := nearest(d.ranges, backend)
		if l.terminalAt != nil {
			l.errorf(at, "Two consoles on one terminal", "Only one port can have the terminal (backend \"stdio\"); %s has it already. Give this one \"pty\", \"socket\", \"file\" or \"null\".", place(*l.terminalAt))
			continue
		}
		l.terminalAt = new(hcl.Range)
		*l.terminalAt = at
		d.Terminal = path
	}
}
