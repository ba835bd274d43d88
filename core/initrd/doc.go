// Package initrd builds the small initial RAM disk that virtplug boots guests with: a static busybox, the kernel modules of
// the virtio devices, and an /init that mounts the usual file systems, loads the modules that the machine's devices need
// and keeps a shell on every virtio console.
//
//	Build ── busybox.go  a static busybox and links for its applets
//	      ├─ modules.go  the modules that fit the kernel, with modules.dep and modules.alias
//	      ├─ files.go    what the caller adds; dynamic programs bring their shared libraries (elf.go)
//	      └─ cpio.go     a "newc" archive, sorted, without times or owners, gzip: same input, same bytes
//
// # Words
//
// An initrd is a gzip-compressed cpio archive that the kernel unpacks into its first root file system. An applet is a
// command of busybox. A release is what `uname -r` prints in the guest.
package initrd
