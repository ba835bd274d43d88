// Package kvm runs guests on Linux's KVM: our own virtual machine monitor, for stock Linux kernels and for programs of
// one's own. x86-64 only.
//
// # A guest's life
//
//	Check ─ plan.go: what is needed is there, the kernel can be read; probe.go: KVM can run an ordinary kernel
//	Run ── run.go: memory and VM → bus attached → ACPI tables and kernel loaded → virtual CPUs → threads → tear-down
//	         ├─ layout.go    the guest-physical map and the interrupt lines
//	         ├─ cpu.go       a virtual CPU's first state; cpuid.go what it says it is
//	         ├─ vcpu.go      its thread, and the gate that pauses and stops all of them
//	         ├─ platform.go  ports: power, reset, panic; serial.go the UART, sink.go where its output goes
//	         ├─ detail.go    why a guest crashed, for people
//	         └─ bus.go       what a bus is: mmio.go virtio-mmio, lguest.go the lguest bus
//
// # Who is woken
//
// KVM itself counts the driver's notifications on the plugins' kick eventfds (KVM_IOEVENTFD) and turns their calls into
// interrupts (KVM_IRQFD); the registers of virtio-mmio are pages that the guest reads without an exit. So a guest that does
// I/O wakes this process for nothing; machine.Running.Counters shows it (counters.go has the names).
//
// # How a guest ends
//
// By the sleep register (machine.PowerOff), by a reset (machine.Reboot, or machine.Panic if its kernel said "Kernel panic"
// before; its command line has panic=-1), by a write to the panic device, or because a virtual CPU cannot go on
// (machine.Crashed; the detail has its registers). If Run's context ends, the power button is pressed; a guest that has not
// switched itself off after Options.Grace, or that does not listen to the button, is stopped.
//
// # Words
//
// An exit is a return from the guest to this process. A kick is an available buffer notification, a call a used buffer
// notification. A GSI is an interrupt line.
package kvm
