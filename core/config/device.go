package config

import (
	"time"

	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/hashicorp/hcl/v2"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// maxDevices bounds the devices of a VM: more than any machine has lines for.
const maxDevices = 256

// writtenDevice is a device as it stands in a file or a flag.
type writtenDevice struct {
	kind, name         string
	kindRange          hcl.Range
	nameRange, defined hcl.Range
	// body builds the device's syntax; a flag needs the schema to know what its keys mean.
	body func(*pluginv1.Schema) hcl.Body
}

func fileDevices(content *hcl.BodyContent) []writtenDevice {
	var out []writtenDevice
	for _, b := range content.Blocks.OfType("device") {
		out = append(out, writtenDevice{
			kind: b.Labels[0], name: b.Labels[1], kindRange: b.LabelRanges[0], nameRange: b.LabelRanges[1], defined: b.DefRange,
			body: func(*pluginv1.Schema) hcl.Body { return b.Body },
		})
	}
	return out
}

// devices checks all devices and adds them to vm.
func (l *loader) devices(ctx context.Context, vm *VM, written []writtenDevice) {
	if len(written) > maxDevices {
		l.errorf(written[maxDevices].defined, "Too many devices", "A VM has at most %d devices; this is number %d.", maxDevices, maxDevices+1)
		written = written[:maxDevices]
	}
	names := map[string]hcl.Range{}
	plugins := describer{plugins: l.plugins, dirs: vm.PluginDirs, known: map[[3]string]description{}}
	count := map[string]int{}
	for _, w := range written {
		count[w.kind]++
	}
	for _, w := range written {
		l.checkName("device", w.name, w.nameRange)
		if first, dup := names[w.name]; dup {
			l.errorf(w.nameRange, "Duplicate device name", "There is another device %q at %s; every device needs a name of its own.", w.name, place(first))
		} else {
			names[w.name] = w.defined
		}
		if d, ok := l.device(ctx, w, &plugins, count[w.kind]); ok {
			l.fitsBus(vm, w, d.Description)
			vm.Devices = append(vm.Devices, d)
		}
	}
}

// fitsBus checks that the plugin serves the drivers that the bus has.
func (l *loader) fitsBus(vm *VM, w writtenDevice, d *pluginv1.DescribeResponse) {
	if vm.Bus == "lguest" && !slices.Contains(d.GetCapabilities(), pluginv1.Capability_CAPABILITY_LEGACY) {
		l.errorf(w.kindRange, "The device does not fit the bus", "The lguest bus is for legacy drivers, and the plugin %q does not serve those (it lacks CAPABILITY_LEGACY). Use bus \"mmio\", or leave the device out.", w.kind)
	}
}

var sha256Hex = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// device checks one device, of n with that plugin.
func (l *loader) device(ctx context.Context, w writtenDevice, plugins *describer, n int) (Device, bool) {
	own := l.ownBlocks(w)
	ref := PluginRef{Name: w.kind, Dirs: plugins.dirs}
	if p := firstItem(own.values["plugin"]); p != nil {
		ref.Path, _ = p["path"].(string)
		ref.SHA256, _ = p["sha256"].(string)
		if ref.SHA256 != "" && !sha256Hex.MatchString(ref.SHA256) {
			l.errorf(own.ranges["plugin.0.sha256"], "Bad value for \"sha256\"", "A SHA-256 hash is 64 hexadecimal digits.")
		}
	}
	description, derr := plugins.describe(ctx, ref)
	if derr != nil {
		l.errorf(w.kindRange, derr.summary, "%s", derr.detail)
		return Device{}, false
	}
	settings := schemaFor(description.GetSchema(), n)
	schema := withOwnBlocks(settings)
	skip := []hcl.BlockHeaderSchema{{Type: "plugin"}, {Type: "ring"}}
	out := l.decode(body{hcl: w.body(schema), schema: settings, skip: skip, at: w.defined})
	maps.Copy(out.ranges, own.ranges)
	out.ranges[""] = w.defined
	d := Device{Name: w.name, Plugin: ref, Description: description, Withheld: withheld(own), BusyPoll: busyPoll(own), ranges: out.ranges}
	var errFiles, errAll error
	d.FilesJSON, errFiles = json.Marshal(out.values)
	l.terminal(&d, settings, out.values)
	d.ConfigJSON, errAll = json.Marshal(out.values)
	if err := errors.Join(errFiles, errAll); err != nil { // a number that JSON has no text for
		l.errorf(w.defined, "Bad value", "%s", asSentence(err))
		return Device{}, false
	}
	return d, true
}

// ownBlocks reads the blocks of a device that are the launcher's.
func (l *loader) ownBlocks(w writtenDevice) decoded {
	schema := deviceSchema()
	hs := &hcl.BodySchema{}
	for _, b := range schema.GetBlocks() {
		hs.Blocks = append(hs.Blocks, hcl.BlockHeaderSchema{Type: b.GetName()})
	}
	out := decoded{values: map[string]any{}, ranges: map[string]hcl.Range{}}
	// What is wrong with these blocks' headers is told when the whole body is read.
	content, _, _ := w.body(schema).PartialContent(hs)
	if content == nil {
		return out
	}
	for _, b := range schema.GetBlocks() {
		l.blocks(b, content.Blocks.OfType(b.GetName()), w.defined, &out)
	}
	return out
}

// withOwnBlocks adds the launcher's blocks to a plugin's schema.
func withOwnBlocks(s *pluginv1.Schema) *pluginv1.Schema {
	return &pluginv1.Schema{
		Attributes: s.GetAttributes(),
		Blocks:     append(slices.Clone(s.GetBlocks()), deviceSchema().GetBlocks()...),
	}
}

func withheld(own decoded) virtio.Features {
	var f virtio.Features
	ring := firstItem(own.values["ring"])
	if on, ok := ring["indirect"].(bool); ok && !on {
		f |= virtio.FIndirectDesc
	}
	if on, ok := ring["event_idx"].(bool); ok && !on {
		f |= virtio.FEventIdx
	}
	return f
}

func busyPoll(own decoded) time.Duration {
	ns, ok := firstItem(own.values["ring"])["busy_poll"].(int64)
	switch {
	case !ok:
		return 0
	case ns < int64(time.Microsecond): // the contract counts in microseconds
		return -1
	}
	return time.Duration(ns)
}

// firstItem returns the first of a list of nested blocks, nil if there is none.
func firstItem(v any) map[string]any {
	items, _ := v.([]any)
	if len(items) == 0 {
		return nil
	}
	first, _ := items[0].(map[string]any)
	return first
}

// describer asks each plugin once.
type describer struct {
	plugins Plugins
	dirs    []string
	known   map[[3]string]description
}

type description struct {
	response *pluginv1.DescribeResponse
	err      *describeError
}

// describeError is a diagnostic without its place.
type describeError struct{ summary, detail string }

func (d *describer) describe(ctx context.Context, ref PluginRef) (*pluginv1.DescribeResponse, *describeError) {
	key := [3]string{ref.Name, ref.Path, ref.SHA256}
	found, ok := d.known[key]
	if !ok {
		found.response, found.err = d.ask(ctx, ref)
		d.known[key] = found
	}
	return found.response, found.err
}

func (d *describer) ask(ctx context.Context, ref PluginRef) (*pluginv1.DescribeResponse, *describeError) {
	if ref.Name == "" {
		return nil, &describeError{"Unknown device type", "A device needs a type, such as \"block\"."}
	}
	if ref.Path == "" {
		names := sortedCopy(d.plugins.Names(d.dirs))
		if !slices.Contains(names, ref.Name) {
			list := "No plugin is found at all; give their directory with plugin_dirs or --plugin-dir."
			if len(names) > 0 {
				list = "Those found are " + quoteList(names) + "."
			}
			return nil, &describeError{
				"Unknown device type", fmt.Sprintf("There is no plugin %q.%s %s", ref.Name, didYouMean(ref.Name, names), list),
			}
		}
	}
	response, err := d.plugins.Describe(ctx, ref)
	if err == nil {
		err = checkDescription(response, ref.Name)
	}
	if err != nil {
		return nil, &describeError{fmt.Sprintf("Plugin %q cannot be used", ref.Name), asSentence(err)}
	}
	return response, nil
}
