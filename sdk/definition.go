package sdk

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// definition is a Plugin[C] without its type parameter, checked.
type definition struct {
	description *pluginv1.DescribeResponse
	commands    map[string]*structSpec
	legacy      bool
	state       bool
	// newDevice decodes the settings and makes the device. It owns the files, whatever it returns.
	newDevice func(env *Env, config []byte, files []pluginrpc.FileGrant) (Device, error)
}

// define checks p; an error is a mistake of the plugin's author.
func define[C any](p Plugin[C]) (*definition, error) {
	settings, err := parseStruct(reflect.TypeFor[C]())
	if err != nil {
		return nil, err
	}
	if p.New == nil {
		return nil, errors.New("the function New is nil")
	}
	d := &definition{
		legacy: p.Legacy,
		state:  p.State,
		description: &pluginv1.DescribeResponse{
			Name: p.Name, Version: p.Version, ApiVersions: []uint32{pluginrpc.APIVersion}, DeviceId: uint32(p.Device),
			Description: p.Description, Schema: settings.proto(),
			Capabilities: []pluginv1.Capability{pluginv1.Capability_CAPABILITY_CONFIG_WRITE, pluginv1.Capability_CAPABILITY_INFLIGHT},
		},
		commands: make(map[string]*structSpec),
		newDevice: func(env *Env, config []byte, files []pluginrpc.FileGrant) (Device, error) {
			var c C
			if err := settings.decode(config, files, reflect.ValueOf(&c).Elem()); err != nil {
				return nil, err
			}
			return p.New(env, c)
		},
	}
	for _, c := range p.Commands {
		spec, err := commandArgs(c)
		if err != nil {
			return nil, fmt.Errorf("command %s: %w", c.Name, err)
		}
		d.commands[c.Name] = spec
		d.description.Commands = append(d.description.Commands, &pluginv1.CommandSpec{
			Name: c.Name, Description: c.Description, Arguments: spec.proto(),
		})
	}
	if len(p.Commands) > 0 {
		d.description.Capabilities = append(d.description.Capabilities, pluginv1.Capability_CAPABILITY_COMMAND)
	}
	if p.Legacy {
		d.description.Capabilities = append(d.description.Capabilities, pluginv1.Capability_CAPABILITY_LEGACY)
	}
	if p.State {
		d.description.Capabilities = append(d.description.Capabilities, pluginv1.Capability_CAPABILITY_STATE)
	}
	return d, pluginrpc.CheckDescription(d.description)
}

func commandArgs(c CommandSpec) (*structSpec, error) {
	t := reflect.TypeFor[NoConfig]()
	if c.Args != nil {
		t = reflect.TypeOf(c.Args)
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	spec, err := parseStruct(t)
	if err == nil && spec.hasFiles() {
		err = errors.New("arguments cannot be files: no descriptors come with a command")
	}
	return spec, err
}
