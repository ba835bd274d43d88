// Package acpi builds the ACPI tables by which a guest finds what its machine has: processors, interrupt controllers,
// virtio-mmio devices, the lguest bus, the serial port, and how to switch off and restart.
//
//	Build ── table.go  RSDP, XSDT, checksums
//	      ├─ fadt.go   FADT: hardware-reduced, sleep and reset registers
//	      ├─ madt.go   MADT: local APICs and the I/O APIC
//	      ├─ dsdt.go   DSDT: the devices, in AML
//	      ├─ aml.go    the few terms of AML that the DSDT needs
//	      └─ resource.go  resource descriptors
//
// Numbers are those of the ACPI Specification 6.5, whose sections are named where they are used.
//
// # Words
//
// A GSI is a global system interrupt: an input of the I/O APIC. AML is the byte code of the DSDT. Hardware-reduced means
// that there is none of ACPI's fixed hardware: no power-management timer, no PM1 registers, no SCI; the power button is a
// device, whose interrupt the generic event device (GED) turns into a notification.
package acpi
