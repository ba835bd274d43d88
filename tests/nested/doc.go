// Package nested runs the tests of the KVM machine (tests/kvm) inside a machine that has a full KVM whatever the host is: QEMU
// emulates a processor with virtualization extensions, in it runs Debian's kernel for virtual machines (level 1) with our
// programs, and they boot the same kernel again (level 2).
//
//	TestNested ── builds parts, compiles tests/kvm, packs them into a RAM disk (image.go)
//	           ── QEMU: kernel, kvm-amd, the compiled tests; their output comes by a serial port (machine.go)
//	           ── each inner test becomes a subtest here (results.go)
//
// It needs the Debian packages qemu-system-x86, linux-image-cloud-amd64, linux-headers-cloud-amd64, busybox-static, gcc and
// make; `make test-nested` installs them. It needs neither /dev/kvm nor root.
//
// VIRTPLUG_NESTED_RUN chooses inner tests, as -test.run does.
package nested
