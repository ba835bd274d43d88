// Package virtq is the device side of split virtqueues (VIRTIO 1.2, 2.7), with indirect descriptors, event indices and
// in-flight tracking.
//
//	Config ──Activate──▶ Queue ──Pop──▶ Chain ──Complete──▶ (staged) ──Flush──▶ driver
//
// Activate checks everything about a queue once (sizes, alignments, bounds); after that the ring itself cannot be accessed
// out of bounds. Pop copies a descriptor chain out of shared memory, validates the copy and hands out a Chain whose buffers
// alias guest memory. It has three outcomes: a chain, empty, broken. A driver that breaks the rules yields a *DriverError;
// it is sticky: the queue serves nothing until it is activated anew.
//
// Words: a kick is the available buffer notification, a call the used buffer notification; head is the index of a chain's
// first descriptor.
//
// Concurrency: one goroutine at a time pops; any goroutine completes and flushes.
package virtq
