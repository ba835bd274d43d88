// Package kvm has the tests of the KVM machine by the programs as a user has them: `virtplug run --machine kvm`, plugins as
// processes of their own, a terminal.
//
//   - TestBare… boot the freestanding guest (guest/), which any /dev/kvm can run, also one that emulates guests in software;
//   - TestLinux… boot Debian's kernel for virtual machines, which needs a KVM that runs guests on the processor;
//   - TestSame… compare this machine with the others.
//
// `make test-machine` runs TestBare and TestSame on this host; `make test-nested` runs TestBare and TestLinux inside QEMU, where
// every host has a full KVM (tests/nested). `go test ./tests/kvm` runs all of them here. What a host lacks is told by a skip.
package kvm
