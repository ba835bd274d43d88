package kvm

import "sync/atomic"

// What is counted, by the names that machine.Running.Counters uses. An exit is a return from the guest to this process;
// notifications and interrupts that KVM passes by eventfds are none.
const (
	countExits       = iota // "exits": all of the following
	countIO                 // "exits.io": accesses to ports
	countMMIO               // "exits.mmio": accesses to device registers that cannot be had without an exit
	countIRQWindow          // "exits.irq_window"
	countInterrupted        // "exits.interrupted": signals, as pausing sends
	countOther              // "exits.other"
	countKicks              // "kicks": notifications that came to this process instead of a plugin; on the lguest bus also those meant for it
	countSerial             // "serial.bytes": sent by the guest's serial port
	counterNumber
)

var counterNames = [counterNumber]string{
	countExits: "exits", countIO: "exits.io", countMMIO: "exits.mmio", countIRQWindow: "exits.irq_window",
	countInterrupted: "exits.interrupted", countOther: "exits.other", countKicks: "kicks", countSerial: "serial.bytes",
}

// counters count since the guest started; each virtual CPU has its own, so that they do not share cache lines.
type counters [counterNumber]atomic.Uint64

func (c *counters) add(what int) { c[what].Add(1) }

// sum adds up several.
func sum(all ...*counters) map[string]uint64 {
	out := make(map[string]uint64, counterNumber)
	for _, c := range all {
		for i := range c {
			out[counterNames[i]] += c[i].Load()
		}
	}
	return out
}
