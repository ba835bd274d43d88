package config_test

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	"github.com/virtplug/virtplug/core/config"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

const (
	tString   = pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING
	tBool     = pluginv1.AttributeType_ATTRIBUTE_TYPE_BOOL
	tInt      = pluginv1.AttributeType_ATTRIBUTE_TYPE_INT
	tSize     = pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE
	tDuration = pluginv1.AttributeType_ATTRIBUTE_TYPE_DURATION
	tList     = pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST
	tFile     = pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE
	tListener = pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER
	tTap      = pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP
	tFloat    = pluginv1.AttributeType_ATTRIBUTE_TYPE_FLOAT
)

// fakePlugins are plugins that have every kind of attribute.
type fakePlugins map[string]*pluginv1.DescribeResponse

func (f fakePlugins) Describe(_ context.Context, ref config.PluginRef) (*pluginv1.DescribeResponse, error) {
	if d := f[ref.Name]; d != nil {
		return d, nil
	}
	return nil, errors.New("start: bogus: exit status 3")
}

func (f fakePlugins) Names([]string) []string {
	return []string{"console", "block", "net", "bogus", "liar"}
}

func plugins() fakePlugins {
	return fakePlugins{
		"block": {Name: "block", Version: "0.1.0", DeviceId: 2, Description: "A disk.", Schema: &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
			{Name: "path", Type: tFile, Required: true, Description: "The image.", File: &pluginv1.FileAccess{Write: true, ReadOnlyIf: "read_only", BlockDevice: true}},
			{Name: "read_only", Type: tBool, DefaultJson: "false", Description: "Refuse writes."},
			{Name: "block_size", Type: tSize, DefaultJson: "512", Min: proto.Int64(512), Max: proto.Int64(65536)},
			{Name: "cache", Type: tString, OneOf: []string{"writeback", "writethrough"}, DefaultJson: `"writeback"`},
			{Name: "queues", Type: tInt, Min: proto.Int64(1), Max: proto.Int64(16), DefaultJson: "1"},
			{Name: "timeout", Type: tDuration, DefaultJson: "1500000000"},
			{Name: "serial", Type: tString},
			{Name: "tags", Type: tList},
			{Name: "weight", Type: tFloat, Max: proto.Int64(1)},
		}}},
		"console": {Name: "console", Version: "0.1.0", DeviceId: 3, Description: "A console.", Capabilities: []pluginv1.Capability{pluginv1.Capability_CAPABILITY_LEGACY}, Schema: &pluginv1.Schema{Attributes: backend(), Blocks: []*pluginv1.Block{{
			Name: "port", Label: "name", MaxItems: 2, Description: "A port.", Schema: &pluginv1.Schema{Attributes: append(backend(), &pluginv1.Attribute{Name: "size", Type: tSize}, &pluginv1.Attribute{Name: "console", Type: tBool}), Blocks: []*pluginv1.Block{{Name: "filter", Schema: &pluginv1.Schema{Attributes: []*pluginv1.Attribute{{Name: "drop", Type: tString}}}}}},
		}}}},
		"net": {Name: "net", Version: "0.1.0", DeviceId: 1, Description: "A network interface.", Schema: &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
			{Name: "backend", Type: tString, OneOf: []string{"user", "tap", "socket", "null"}, DefaultJson: `"user"`},
			{Name: "tap", Type: tTap, Description: "The interface.", Tap: &pluginv1.TapAccess{QueuePairs: "queue_pairs", Bridge: "bridge", Addresses: "address", Mtu: "mtu"}},
			{Name: "queue_pairs", Type: tInt, DefaultJson: "1"},
			{Name: "bridge", Type: tString},
			{Name: "address", Type: tList},
			{Name: "mtu", Type: tInt, DefaultJson: "0"},
			{Name: "mac", Type: tString},
			{Name: "listen", Type: tListener},
		}}},
		"liar": {Name: "block", Version: "0.1.0", Schema: &pluginv1.Schema{
			Attributes: []*pluginv1.Attribute{{Name: "Bad Name", Type: tString}, {Name: "ring", Type: tBool}, {Name: "n", Type: 99}, {Name: "d", Type: tInt, DefaultJson: `"x"`}},
		}},
	}
}

func backend() []*pluginv1.Attribute {
	return []*pluginv1.Attribute{
		{Name: "backend", Type: tString, OneOf: []string{"stdio", "pty", "socket", "null"}},
		{Name: "socket", Type: tListener, Description: "A unix socket."},
		{Name: "stdio", Type: tFile, File: &pluginv1.FileAccess{Write: true, AnyKind: true}},
	}
}
