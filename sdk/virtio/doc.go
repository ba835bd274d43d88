// Package virtio holds the numbers of the virtio specification (VIRTIO 1.2, OASIS): device IDs, feature bits, status bits,
// and the wire layouts of the device types that this project serves. It imports nothing but the standard library.
//
// Every constant names its unit and its section. Multi-byte fields are little-endian ("le" in the specification).
package virtio
