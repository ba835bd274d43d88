// Package shm reads and writes words of shared memory that another process or a guest uses at the same time. It is one of
// the two packages that may use unsafe, and only in files named *_unsafe.go.
//
// Memory order. Every access is sync/atomic, so all of them are sequentially consistent: a store here followed by a load
// here is a store-load barrier, which is what virtqueue notification suppression needs (VIRTIO 1.2, 2.7.13.4.1). There is no
// 16-bit type in sync/atomic; a 16-bit field is read through the aligned 32-bit word that holds it, which never leaves the
// field's page, and written by compare-and-swap of that word, so that neighbours that belong to somebody else stay theirs
// (docs/adr/0002).
package shm
