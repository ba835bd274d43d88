// Package mmio is virtio over MMIO, version 2 (VIRTIO 1.2, 4.2.2): the registers that a driver sees in a 4 KiB window, and
// the device status state machine (2.1, 3.1) behind them. It does no I/O: a machine passes accesses in and gives callbacks
// for what must come out.
//
// # Flow
//
//	New → Render (the window's page, before the guest runs)
//	driver's write: Write → the device is asked → Changed (the machine renders the page) → Write returns
//	device: configuration changed, needs a reset → Changed → Interrupt
//	Close (before the page is unmapped) → Device.Release
//
// Kick and call descriptors are the machine's to give to the device, once, before the guest runs: no reset takes them away.
//
// # Two ways to read
//
// A machine either passes each read to Read, or lets the guest read a page of memory that Render keeps up to date, without
// any exit. Both show the same bytes at any time. With a page, a change of the configuration space shows when it is rendered,
// not before, so that a driver whose reads come now from the page and now, while the page is withdrawn, from Read still sees
// ConfigGeneration change whenever what it read might not belong together.
//
// # What a driver may do wrong
//
// Anything. An access that the specification does not allow is ignored; a queue that cannot be started, or features that
// cannot be had at DRIVER_OK, set DEVICE_NEEDS_RESET. Beyond the specification, two habits of drivers are served: status
// writes that name only the new bit, and DRIVER_OK without FEATURES_OK before it.
package mmio
