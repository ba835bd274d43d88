// Package boot places an x86-64 kernel, its initrd and its command line in guest memory, and says in which state the first
// virtual CPU is to enter it.
//
//	Inspect ── identify.go  what a file is that is no kernel
//	        ├─ bzimage.go   setup header of a bzImage
//	        └─ elf.go       program headers of an ELF program; elfnote.go its PVH note
//	Load ──── load.go       what goes where: nothing is written before all of it has a place
//	      ├─ space.go       which guest memory is free; everything is placed through it, so nothing overlaps
//	      ├─ image.go       from files straight into guest memory
//	      ├─ params.go      boot_params, for the 64-bit entries
//	      ├─ pvh.go         hvm_start_info, for the PVH entry
//	      ├─ e820.go        the memory map that either carries
//	      └─ paging.go      GDT and identity page tables
//
// Three kinds of kernel are known:
//   - bzImage, entered by the 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst);
//   - ELF with a PVH note (Xen, docs/misc/pvh.pandoc), entered in 32-bit protected mode;
//   - any other x86-64 ELF program with physical segments, entered in long mode as a bzImage is.
//
// No number of a kernel's header is believed: each is checked against the file and against guest memory. Errors say what
// the file looks like, and what to do.
//
// # Words
//
// The payload is the compressed kernel within a bzImage. init_size is the memory that a bzImage needs until it has
// unpacked itself. The BIOS area is what a PC keeps below 1 MiB for its firmware.
package boot
