// Package driver is the driver side of split virtqueues (VIRTIO 1.2, 2.7) over guest memory in this process: for tests, the
// conformance suite, the loopback machine and benchmarks. It is a test tool: whether a device works is proven by a real
// guest.
//
// An Arena hands out guest memory; a Queue lives in it. Raw gives access to every field, so that tests can be hostile.
package driver
