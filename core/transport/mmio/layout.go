package mmio

import "github.com/virtplug/virtplug/sdk/virtio"

// WindowSize is the size of a device's window, in bytes: a page, so that it can be a memory slot of its own.
const WindowSize = 0x1000

// Register offsets in bytes (4.2.2). Each is 32 bits wide, little-endian.
const (
	RegMagicValue        = 0x000
	RegVersion           = 0x004
	RegDeviceID          = 0x008
	RegVendorID          = 0x00c
	RegDeviceFeatures    = 0x010
	RegDeviceFeaturesSel = 0x014
	RegDriverFeatures    = 0x020
	RegDriverFeaturesSel = 0x024
	RegQueueSel          = 0x030
	RegQueueNumMax       = 0x034
	RegQueueNum          = 0x038
	RegQueueReady        = 0x044
	RegQueueNotify       = 0x050
	RegInterruptStatus   = 0x060
	RegInterruptACK      = 0x064
	RegStatus            = 0x070
	RegQueueDescLow      = 0x080
	RegQueueDescHigh     = 0x084
	RegQueueDriverLow    = 0x090
	RegQueueDriverHigh   = 0x094
	RegQueueDeviceLow    = 0x0a0
	RegQueueDeviceHigh   = 0x0a4
	RegSHMSel            = 0x0ac
	RegSHMLenLow         = 0x0b0
	RegSHMLenHigh        = 0x0b4
	RegSHMBaseLow        = 0x0b8
	RegSHMBaseHigh       = 0x0bc
	RegQueueReset        = 0x0c0
	RegConfigGeneration  = 0x0fc
	// RegConfig is where the device configuration space begins; it is accessed in any width.
	RegConfig = 0x100
)

// Values of registers (4.2.2).
const (
	// MagicValue is "virt".
	MagicValue = 0x74726976
	// Version is that of the non-legacy layout.
	Version = 2
	// VendorID is "VPLG"; the specification assigns no meaning to it.
	VendorID = 0x474c5056
)

// Bits of InterruptStatus and InterruptACK (4.2.2).
const (
	InterruptUsed   = 1 << 0
	InterruptConfig = 1 << 1
)

// configMax is how much of a configuration space the window shows, in bytes.
const configMax = WindowSize - RegConfig

// notCarried are feature bits (section 6) that ask something of the transport which this one does not do: SR_IOV (37),
// NOTIFICATION_DATA (38), NOTIF_CONFIG_DATA (39), RING_RESET (40), ADMIN_VQ (41). They are never offered.
const notCarried virtio.Features = 0x1f << 37

// driverStatus are the status bits that a driver sets (2.1).
const driverStatus = virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusFeaturesOK | virtio.StatusDriverOK |
	virtio.StatusFailed
