// Package initrd builds the small initial RAM disk that virtplug boots guests with: a static busybox, the kernel modules of
// the virtio devices, and an /init that mounts the usual file systems, loads the modules that the machine's devices need,
// switches on the network interfaces and asks for their addresses by DHCP in the background (unless the kernel's parameter ip=off says
// otherwise), keeps a shell on every virtio console, and switches the machine off when its power button is pressed.
//
//	Build ── busybox.go  a static busybox and links for its applets
//	      ├─ modules.go  the modules that fit each kernel, with modules.dep and modules.alias; uncompressed (decompress.go), and
//	      │              those that no kernel's package has (outoftree.go)
//	      ├─ files.go    what the caller adds; dynamic programs bring their shared libraries (elf.go)
//	      └─ cpio.go     a "newc" archive, sorted, without times or owners, gzip: same input, same bytes
//
// # Words
//
// An initrd is a gzip-compressed cpio archive that the kernel unpacks into its first root file system. An applet is a
// command of busybox. A release is what `uname -r` prints in the guest.
package initrd
