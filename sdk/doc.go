// Package sdk is what the author of a virtio device imports. A device is a program whose main calls Main with a Plugin;
// the launcher starts it, hands it guest memory and virtqueues, and the device serves them.
//
// The simplest device implements Device and ChainHandler: the SDK pops each descriptor chain, calls HandleChain, completes
// the chain with the number of bytes its Writer wrote, and notifies the driver (see examples/entropy). More is had by
// implementing more interfaces:
//
//	BatchHandler   gets up to BatchSize chains at once and completes them itself, now or later
//	QueueRunner    owns a queue's loop: for devices that send when something happens outside (input, network receive)
//	ConfigReader   has a device configuration space; ConfigWriter: that the driver may write
//	FeatureSetter  wants to know what was negotiated; Resetter: when the driver resets the device
//	Commander      takes commands at run time (resize, …)
//	StatsReader    has counters of its own; HealthChecker: can tell whether it is well
//	io.Closer      has something to release
//
// # Words
//
// A plugin is a program; a plugin instance is its running process; it serves one device, which is what the driver sees.
// Kick and call are the available and used buffer notifications (VIRTIO 1.2, 2.3).
//
// # Trust
//
// The driver is hostile: chains are validated before a handler sees them, but the bytes of a buffer may change while they
// are read. Copy a header, then validate the copy. Standard output belongs to the handshake with the launcher: log through Env.Log.
package sdk
