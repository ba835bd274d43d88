package acpi

import (
	"encoding/binary"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// Offsets and bits of the FADT (ACPI 6.5, 5.2.9). What is not named is fixed hardware, which there is none of.
const (
	fadtSize         = 276
	fadtRevision     = 6
	fadtMinor        = 5
	offDSDT          = 40
	offIAPCBootArch  = 109
	offFlags         = 112
	offResetReg      = 116
	offResetValue    = 128
	offMinorVersion  = 131
	offXDSDT         = 140
	offSleepControl  = 244
	offSleepStatus   = 256
	offHypervisor    = 268
	noVGA            = 1 << 2 // IAPC_BOOT_ARCH; the clear bit 1: no 8042 keyboard controller
	noRTC            = 1 << 5
	flagWBINVD       = 1 << 0
	flagProcC1       = 1 << 2
	flagPowerButton  = 1 << 4 // no fixed power button: it is a device, or there is none
	flagSleepButton  = 1 << 5
	flagRTC          = 1 << 6
	flagReset        = 1 << 10
	flagHWReduced    = 1 << 20
	gasIO            = 1 // address space of a generic address structure (5.2.3.2): system I/O
	gasByte          = 1 // access size
	hypervisorVendor = "VIRTPLUG"
)

// fadt describes c with its DSDT at dsdt.
func fadt(c *Config, dsdt guestmem.GPA) []byte {
	le := binary.LittleEndian
	b := make([]byte, fadtSize) // header and all: the offsets are the specification's
	flags := uint32(flagWBINVD | flagProcC1 | flagPowerButton | flagSleepButton | flagRTC | flagHWReduced)
	if c.Reset != 0 {
		flags |= flagReset
		gas(b[offResetReg:], c.Reset)
		b[offResetValue] = c.ResetValue
	}
	le.PutUint16(b[offIAPCBootArch:], noVGA|noRTC)
	le.PutUint32(b[offFlags:], flags)
	b[offMinorVersion] = fadtMinor
	if dsdt < 1<<32 {
		le.PutUint32(b[offDSDT:], uint32(dsdt))
	}
	le.PutUint64(b[offXDSDT:], uint64(dsdt))
	if c.SleepControl != 0 {
		gas(b[offSleepControl:], c.SleepControl)
		gas(b[offSleepStatus:], c.SleepStatus)
	}
	copy(b[offHypervisor:], hypervisorVendor)
	return table("FACP", fadtRevision, b[headerSize:])
}

// gas fills a generic address structure with a byte port.
func gas(b []byte, port uint16) {
	b[0], b[1], b[2], b[3] = gasIO, 8, 0, gasByte
	binary.LittleEndian.PutUint64(b[4:], uint64(port))
}
