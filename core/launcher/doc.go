// Package launcher lives a virtual machine's life: it makes the run directory, opens the files that devices name, starts their
// plugins, boots the guest, and takes all of it down again in reverse order, at whatever stage it ends.
//
// # Flow
//
//	run directory → machine.Check → files of all devices → plugins, side by side → terminal → guest → the same backwards
//
// Words: the run directory is a private directory with the sockets of one running VM. A stale one belongs to a launcher that
// died; the next launcher removes it.
package launcher
