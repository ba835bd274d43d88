// Package tap opens and makes tap interfaces for network devices: /dev/net/tun by its ioctls, and addresses, bridge, MTU and state by
// netlink.
//
// Whoever opened a Tap keeps it for the life of the device: an interface that was made exists as long as one of its descriptors,
// so it outlives a plugin's crash, and goes even if the launcher is killed. What an existing interface was given is taken from it
// again by Close.
//
// Words: a queue is one descriptor of an interface; an interface made with multi_queue may have several. A persistent interface
// is one that exists without a descriptor, made by `ip tuntap add`.
package tap
