package config

import (
	"time"

	"google.golang.org/protobuf/proto"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// Bounds of the vm block. The lower memory bound is what a small Linux needs to unpack itself; the upper one is the address
// space of today's processors (46 bits), beyond which a number can only be a slip.
const (
	MinMemory = 16 << 20
	MaxMemory = 1 << 46
	MaxVCPUs  = 254
)

// vmSchema describes the vm block in the terms that plugins use for theirs.
func vmSchema() *pluginv1.Schema {
	return &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
		{
			Name: "memory", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_SIZE, DefaultJson: "268435456",
			Min: proto.Int64(MinMemory), Max: proto.Int64(MaxMemory),
			Description: "Size of guest memory, a multiple of 4 KiB.",
		},
		{
			Name: "cpus", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_INT, DefaultJson: "1",
			Min: proto.Int64(1), Max: proto.Int64(MaxVCPUs),
			Description: "Number of virtual CPUs.",
		},
		{
			Name: "machine", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING, DefaultJson: `"auto"`, OneOf: Machines(),
			Description: "What runs the guest: kvm, by this host's /dev/kvm; uml, User-Mode Linux, which needs no KVM and no root; auto, the first of these that this host and this VM can use, and says so if it is not kvm.",
		},
		{
			Name: "bus", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING, OneOf: Buses(),
			Description: "How the guest of the kvm machine finds its devices: mmio, virtio-mmio, found through ACPI; lguest, the device page of lguest, for guests with a driver for it. If given, machine auto means kvm. If not given, mmio.",
		},
		{
			Name: "kernel", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE, File: &pluginv1.FileAccess{},
			Description: "The guest's kernel. If not given: for kvm the newest cloud kernel in /boot, or else the newest one there; for uml linux.uml from PATH.",
		},
		{
			Name: "initrd", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE, File: &pluginv1.FileAccess{},
			Description: "An initial RAM disk.",
		},
		{
			Name: "cmdline", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING,
			Description: "Added to the kernel's command line. `console=hvc0` is added by itself if there is a console device and no `console=` here.",
		},
	}}
}

// deviceSchema describes the blocks that the launcher itself reads in every device block.
func deviceSchema() *pluginv1.Schema {
	noBusyPoll, maxBusyPoll := int64(0), time.Second.Nanoseconds()
	return &pluginv1.Schema{Blocks: []*pluginv1.Block{
		{
			Name: "plugin", MaxItems: 1, Description: "Which program serves the device.",
			Schema: &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
				{
					Name: "path", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE, File: &pluginv1.FileAccess{},
					Description: "The program. If not given, the plugin directories are searched for the device's type.",
				},
				{
					Name: "sha256", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING,
					Description: "What the program must hash to, as 64 hexadecimal digits.",
				},
			}},
		},
		{
			Name: "ring", MaxItems: 1, Description: "What is offered to the driver for its virtqueues.",
			Schema: &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
				{
					Name: "indirect", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_BOOL, DefaultJson: "true",
					Description: "Offer indirect descriptors (VIRTIO_F_INDIRECT_DESC).",
				},
				{
					Name: "event_idx", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_BOOL, DefaultJson: "true",
					Description: "Offer notification by index (VIRTIO_F_EVENT_IDX).",
				},
				{
					Name: "busy_poll", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_DURATION, Min: &noBusyPoll, Max: &maxBusyPoll,
					Description: "How long a queue looks for more work before it sleeps; \"0s\": not at all. If not given, the plugin decides (20us for those made with the SDK).",
				},
			}},
		},
	}}
}
