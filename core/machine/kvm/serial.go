package kvm

import "sync"

// uartRegisters is how many ports the serial port has.
const uartRegisters = 8

// Registers of a 16550A by port offset; some have two meanings (Texas Instruments' PC16550D data sheet, table 2).
const (
	uartData = 0 // RBR, THR; with DLAB the divisor's low byte
	uartIER  = 1 // with DLAB the divisor's high byte
	uartIIR  = 2 // written: FCR
	uartLCR  = 3
	uartMCR  = 4
	uartLSR  = 5
	uartMSR  = 6
	uartSCR  = 7
)

// Bits of the registers.
const (
	ierRDI  = 0x01 // received data
	ierTHRI = 0x02 // transmitter empty
	ierMask = 0x0f

	iirNone    = 0x01
	iirTHRI    = 0x02
	iirRDI     = 0x04
	iirTimeout = 0x0c // data that do not reach the trigger level
	iirFIFO    = 0xc0

	fcrEnable  = 0x01
	fcrClearRx = 0x02

	lcrDLAB = 0x80

	mcrDTR  = 0x01
	mcrRTS  = 0x02
	mcrOut1 = 0x04
	mcrOut2 = 0x08
	mcrLoop = 0x10
	mcrMask = 0x1f

	lsrDataReady = 0x01
	lsrTHRE      = 0x20
	lsrIdle      = 0x40

	msrCTS = 0x10
	msrDSR = 0x20
	msrRI  = 0x40
	msrDCD = 0x80
)

// uartInputMax bounds what waits to be read by the guest, in bytes; arbitrary.
const uartInputMax = 4096

// uart is a 16550A with FIFOs, as a register machine: it does no I/O by itself. The transmitter is always empty, as sending
// takes no time; the other end is always there. Safe for concurrent use.
type uart struct {
	send func(b byte)    // what the guest transmits
	line func(high bool) // the interrupt output, at each change

	mu                      sync.Mutex
	ier, lcr, mcr, fcr, scr byte
	divisor                 [2]byte
	thrEmpty                bool // an interrupt to come, or not yet read in IIR
	high                    bool
	input                   []byte // first to be read first
}

func newUART(send func(b byte), line func(high bool)) *uart {
	return &uart{send: send, line: line, divisor: [2]byte{1, 0}}
}

// Input queues bytes for the guest to receive, and returns how many there was room for.
func (u *uart) Input(p []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.receive(p)
	u.update()
	return n
}

func (u *uart) receive(p []byte) int {
	n := min(len(p), uartInputMax-len(u.input))
	u.input = append(u.input, p[:n]...)
	return n
}

// Read is a read of the register at offset.
func (u *uart) Read(offset uint16) byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer u.update()
	switch offset {
	case uartData, uartIER:
		if u.lcr&lcrDLAB != 0 {
			return u.divisor[offset]
		}
		if offset == uartIER {
			return u.ier
		}
		return u.take()
	case uartIIR:
		id := u.interrupt()
		if id == iirTHRI {
			u.thrEmpty = false
		}
		if u.fcr&fcrEnable != 0 {
			id |= iirFIFO
		}
		return id
	case uartLCR:
		return u.lcr
	case uartMCR:
		return u.mcr
	case uartLSR:
		if len(u.input) > 0 {
			return lsrTHRE | lsrIdle | lsrDataReady
		}
		return lsrTHRE | lsrIdle
	case uartMSR:
		return u.modem()
	case uartSCR:
		return u.scr
	}
	return 0xff
}

// take is the first received byte; 0 if there is none.
func (u *uart) take() byte {
	if len(u.input) == 0 {
		return 0
	}
	b := u.input[0]
	if u.input = u.input[1:]; len(u.input) == 0 {
		u.input = nil
	}
	return b
}

// modem is MSR: its inputs are the outputs of MCR in loopback, and else say that the other end is ready. Changes are not
// reported.
func (u *uart) modem() byte {
	if u.mcr&mcrLoop == 0 {
		return msrDCD | msrDSR | msrCTS
	}
	var b byte
	for out, in := range map[byte]byte{mcrDTR: msrDSR, mcrRTS: msrCTS, mcrOut1: msrRI, mcrOut2: msrDCD} {
		if u.mcr&out != 0 {
			b |= in
		}
	}
	return b
}

// Write is a write to the register at offset.
func (u *uart) Write(offset uint16, b byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer u.update()
	switch offset {
	case uartData, uartIER:
		switch {
		case u.lcr&lcrDLAB != 0:
			u.divisor[offset] = b
		case offset == uartData:
			u.transmit(b)
		default:
			// The transmitter is empty already when its interrupt is enabled.
			if b&^u.ier&ierTHRI != 0 {
				u.thrEmpty = true
			}
			u.ier = b & ierMask
		}
	case uartIIR: // FCR
		if b&fcrClearRx != 0 || (b^u.fcr)&fcrEnable != 0 {
			u.input = nil
		}
		u.fcr = b
	case uartLCR:
		u.lcr = b
	case uartMCR:
		u.mcr = b & mcrMask
	case uartSCR:
		u.scr = b
	}
}

func (u *uart) transmit(b byte) {
	if u.mcr&mcrLoop != 0 {
		u.receive([]byte{b})
	} else {
		u.send(b)
	}
	if u.thrEmpty {
		// The line goes down and up: an edge for each byte that was sent.
		u.thrEmpty = false
		u.update()
	}
	u.thrEmpty = true
}

// interrupt is what IIR tells: the pending interrupt of the highest priority.
func (u *uart) interrupt() byte {
	switch {
	case u.ier&ierRDI != 0 && len(u.input) >= u.trigger():
		return iirRDI
	case u.ier&ierRDI != 0 && len(u.input) > 0:
		return iirTimeout
	case u.ier&ierTHRI != 0 && u.thrEmpty:
		return iirTHRI
	}
	return iirNone
}

// trigger is how many bytes must have come for a data interrupt.
func (u *uart) trigger() int {
	if u.fcr&fcrEnable == 0 {
		return 1
	}
	return [4]int{1, 4, 8, 14}[u.fcr>>6]
}

// update drives the interrupt output. The caller holds mu.
func (u *uart) update() {
	if high := u.interrupt() != iirNone; high != u.high {
		u.high = high
		u.line(high)
	}
}
