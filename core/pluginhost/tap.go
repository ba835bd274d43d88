package pluginhost

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/virtplug/virtplug/core/tap"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// openTap opens or makes the interface name of attribute a, whose block has the schema s, the settings members and the path prefix.
func (f *Files) openTap(s *pluginv1.Schema, a *pluginv1.Attribute, name string, members map[string]json.RawMessage, prefix string) error {
	access := a.GetTap()
	c := tap.FromSettings(access, name, members)
	t, err := tap.Open(c)
	if err != nil {
		var errs []error
		for _, e := range tap.Errors(err) {
			errs = append(errs, setting(prefix+e.Field.Attribute(a), "", e))
		}
		return errors.Join(errs...)
	}
	f.closers = append(f.closers, t.Close)
	for _, fd := range t.Queues {
		f.Grants = append(f.Grants, pluginrpc.FileGrant{Attribute: prefix + a.GetName(), FD: fd})
	}
	if f.found == nil {
		f.found = make(map[string]any)
	}
	f.found[prefix+a.GetName()] = t.Name
	if access.GetMtu() != "" && c.MTU == 0 {
		f.found[prefix+access.GetMtu()] = atMost(s, access.GetMtu(), t.MTU)
	}
	return nil
}

// atMost bounds v by the most that attribute name of s takes.
func atMost(s *pluginv1.Schema, name string, v int) int64 {
	for _, a := range s.GetAttributes() {
		if a.GetName() == name && a.Max != nil {
			return min(int64(v), a.GetMax())
		}
	}
	return int64(v)
}

// Complete returns config with what OpenFiles found out: the real names of taps, and their MTU where none is set. config has the blocks that OpenFiles saw.
func (f *Files) Complete(config []byte) ([]byte, error) {
	if len(f.found) == 0 {
		return config, nil
	}
	var root any
	dec := json.NewDecoder(bytes.NewReader(config))
	dec.UseNumber() // an integer stays what it is
	if err := dec.Decode(&root); err != nil {
		return nil, fmt.Errorf("complete settings: %w", err)
	}
	for path, value := range f.found {
		if !setPath(root, strings.Split(path, "."), value) {
			return nil, fmt.Errorf("complete settings: there is no %s", path)
		}
	}
	return json.Marshal(root)
}

// setPath sets the member at path below v: names of members, and indices of lists.
func setPath(v any, path []string, value any) bool {
	switch in := v.(type) {
	case map[string]any:
		if len(path) == 1 {
			in[path[0]] = value
			return true
		}
		return setPath(in[path[0]], path[1:], value)
	case []any:
		i, err := strconv.Atoi(path[0])
		return err == nil && i >= 0 && i < len(in) && len(path) > 1 && setPath(in[i], path[1:], value)
	}
	return false
}
