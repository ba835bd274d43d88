// Package vhostuser is the back-end side of the vhost-user protocol: it serves one device to a front-end (User-Mode Linux,
// QEMU, …) that connects to a unix socket.
//
// messages.go and wire.go are the wire format, pure functions; Conn adds the socket and the descriptors; a session follows
// one front-end's set-up, in whatever order it comes, and drives a Device. Buffers never pass here.
//
// Three address spaces meet: user addresses (the front-end's own, used for ring addresses only), guest-physical addresses
// (everything that a Device sees), and file offsets. A table translates.
//
// Anything that a correct front-end would not send ends the connection with an error that says what it was; descriptors
// are closed, the device is stopped and reset, and the next connection begins anew.
package vhostuser
