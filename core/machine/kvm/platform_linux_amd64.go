package kvm

import (
	"errors"
	"fmt"

	"github.com/virtplug/virtplug/core/boot/acpi"
	"github.com/virtplug/virtplug/core/kvm"
	"github.com/virtplug/virtplug/core/machine"
)

// Ports of the machine.
const (
	serialPort = 0x3f8
	sleepPort  = 0x600 // the control register; the status register is the next
	resetPort  = 0xcf9
	panicPort  = 0x505
	i8042Port  = 0x64
	i8042Reset = 0xfe
	resetValue = 0x06
	resetCPU   = 0x04 // the bit of resetPort that does it
)

// What a guest tells the panic device (QEMU, docs/specs/pvpanic), and what it reads to know what it may tell.
const (
	panicPanicked    = 1 << 0
	panicCrashLoaded = 1 << 1 // another kernel takes over
)

// port does the accesses to one port that an exit is about.
func (r *run) port(v *vcpu, a kvm.PortAccess) {
	for p := a.Data; len(p) >= a.Size && a.Size > 0; p = p[a.Size:] {
		r.portOnce(v, a.Port, a.Out, p[:a.Size])
	}
}

func (r *run) portOnce(v *vcpu, port uint16, out bool, p []byte) {
	switch {
	case port >= serialPort && port < serialPort+uartRegisters:
		r.serialAccess(port-serialPort, out, p)
	case r.bus.port(v, port, out, p):
	case out && len(p) == 1:
		r.outByte(port, p[0])
	case out: // nobody is there; a PCI configuration address is 32 bits wide and passes over resetPort
	case len(p) == 1:
		p[0] = inByte(port)
	default:
		ones(p)
	}
}

// serialAccess splits wide accesses as an ISA bus does.
func (r *run) serialAccess(offset uint16, out bool, p []byte) {
	for i := range p {
		switch at := offset + uint16(i); {
		case at >= uartRegisters:
			if !out {
				p[i] = 0xff
			}
		case out:
			r.uart.Write(at, p[i])
		default:
			p[i] = r.uart.Read(at)
		}
	}
}

func (r *run) outByte(port uint16, b byte) {
	switch {
	case port == sleepPort && b&acpi.SleepEnable != 0 && b&acpi.SleepTypeMask == acpi.SleepTypeOff<<acpi.SleepTypeShift:
		r.finish(machine.PowerOff, "the guest switched itself off")
	case port == resetPort && b&resetCPU != 0, port == i8042Port && b == i8042Reset:
		r.finish(machine.Reboot, "the guest asked for a reset")
	case port == panicPort && b&panicPanicked != 0:
		r.finish(machine.Panic, "it told the panic device")
	}
}

func inByte(port uint16) byte {
	switch port {
	case sleepPort, sleepPort + 1, resetPort:
		return 0
	case panicPort:
		return panicPanicked | panicCrashLoaded
	}
	return 0xff
}

// memory does an access to an address without memory.
func (r *run) memory(a kvm.MemoryAccess) {
	if !r.bus.access(a.Addr, a.Write, a.Data) && !a.Write {
		ones(a.Data)
	}
}

func ones(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

func (r *run) systemEvent(v *vcpu) {
	switch e := v.cpu.SystemEvent(); e {
	case kvm.SystemEventShutdown:
		r.finish(machine.PowerOff, "the guest switched itself off")
	case kvm.SystemEventReset:
		r.finish(machine.Reboot, "the guest asked for a reset")
	case kvm.SystemEventCrash:
		r.finish(machine.Panic, "the guest reported a crash")
	default:
		r.crash(v, fmt.Sprintf("virtual CPU %d: system event %d", v.cpu.ID(), e))
	}
}

// pressButton is the power button: an edge on the line of the ACPI event device. false: nobody listens to it.
func (r *run) pressButton() bool {
	const masked, vectors, firstVector = 1 << 16, 0xff, 16
	pins, known := r.vm.IOAPIC()
	if p := pins[buttonGSI]; known && (p&masked != 0 || p&vectors < firstVector) {
		return false
	}
	if err := r.pulse(buttonGSI); err != nil {
		r.log.Warn("power button not pressed", "error", err)
		return false
	}
	return true
}

// pulse is an edge on an interrupt line.
func (r *run) pulse(gsi uint32) error {
	return errors.Join(r.vm.IRQLine(gsi, true), r.vm.IRQLine(gsi, false))
}
