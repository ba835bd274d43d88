// Package kvm wraps Linux's KVM interface (Documentation/virt/kvm/api.rst): requests as methods, exits decoded. It has no
// policy; core/machine/kvm has.
//
// System is /dev/kvm, VM a virtual machine, VCPU a virtual CPU; each is one descriptor and belongs to whoever made it.
// Structures and numbers are generated from the kernel's headers (kvm.godefs → zkvm_linux_amd64.go, by tools/generate.sh)
// and have the kernel's names and meanings.
//
// Only x86-64 hosts have more of this package than this comment.
package kvm
