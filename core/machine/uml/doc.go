// Package uml runs guests under User-Mode Linux: an ordinary process, without KVM and without root. Its virtio devices are
// vhost-user front-ends (virtio_uml), which this package serves.
//
// What a guest can reach of the host: User-Mode Linux is no strong boundary (root in the guest can load modules into the
// process), so its hostfs is pointed at nothing, its consoles at none of our terminals, and its environment is emptied.
//
// # Processes
//
// launcher → sh → linux.uml → its I/O helpers and one traced process for each address space of the guest. The shell is
// process 1 of a PID namespace where that can be had, so that the kernel itself ends all of them when it ends, and it is
// told to die with the launcher. linux.uml cannot be process 1: after a panic it raises SIGABRT, which process 1 ignores. A watchdog in the shell covers hosts without namespaces.
package uml
