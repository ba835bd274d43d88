package kvm

import (
	"bytes"
	"testing"
)

// port is a uart with what it did: bytes sent, and edges of its interrupt.
type port struct {
	*uart
	sent  bytes.Buffer
	high  bool
	edges int
}

func newPort() *port {
	p := &port{}
	p.uart = newUART(func(b byte) { p.sent.WriteByte(b) }, func(high bool) {
		if p.high = high; high {
			p.edges++
		}
	})
	return p
}

func (p *port) want(t *testing.T, what string, register uint16, value byte) {
	t.Helper()
	if got := p.Read(register); got != value {
		t.Errorf("%s: register %d is %#02x: want %#02x", what, register, got, value)
	}
}

func TestSerialPortTransmits(t *testing.T) {
	t.Parallel()
	p := newPort()
	for _, b := range []byte("hello") {
		p.want(t, "transmitter", uartLSR, lsrTHRE|lsrIdle)
		p.Write(uartData, b)
	}
	if p.sent.String() != "hello" || p.edges != 0 {
		t.Errorf("sent %q with %d interrupts: want no interrupt that is not enabled", p.sent.String(), p.edges)
	}
}

// The sequence is that of Linux's probe (drivers/tty/serial/8250/8250_port.c, autoconfig and serial8250_do_startup).
func TestSerialPortIsFoundToBeA16550A(t *testing.T) {
	t.Parallel()
	p := newPort()
	p.Write(uartIER, 0)
	p.want(t, "IER", uartIER, 0)
	p.Write(uartIER, 0x0f)
	p.want(t, "IER", uartIER, 0x0f)
	p.Write(uartIER, 0)
	p.Write(uartMCR, mcrLoop|mcrOut2|mcrRTS)
	p.want(t, "loopback", uartMSR, msrDCD|msrCTS)
	p.Write(uartMCR, 0)
	p.want(t, "modem", uartMSR, msrDCD|msrDSR|msrCTS)
	p.Write(uartIIR, fcrEnable)
	p.want(t, "FIFO", uartIIR, iirFIFO|iirNone)
	p.Write(uartLCR, lcrDLAB)
	p.Write(uartData, 0x34)
	p.Write(uartIER, 0x12)
	p.want(t, "divisor", uartData, 0x34)
	p.want(t, "divisor", uartIER, 0x12)
	p.Write(uartLCR, 3)
	p.want(t, "LCR", uartLCR, 3)
	p.Write(uartSCR, 0xa5)
	p.want(t, "scratch", uartSCR, 0xa5)
	p.want(t, "nothing came", uartData, 0)
	if p.sent.Len() != 0 {
		t.Errorf("the divisor was sent: %q", p.sent.Bytes())
	}
	// The test for transmitters that do not interrupt when they are empty already.
	for range 2 {
		p.Write(uartIER, ierTHRI)
		p.want(t, "empty", uartIIR, iirFIFO|iirTHRI)
		p.want(t, "read once", uartIIR, iirFIFO|iirNone)
		p.Write(uartIER, 0)
	}
}

func TestSerialPortInterruptsWhenItHasSent(t *testing.T) {
	t.Parallel()
	p := newPort()
	p.Write(uartIER, ierTHRI)
	for n := 1; n <= 3; n++ {
		if !p.high || p.edges != n {
			t.Fatalf("line high %v after %d edges: want edge %d", p.high, p.edges, n)
		}
		p.want(t, "empty", uartIIR, iirTHRI)
		if p.high {
			t.Fatal("the interrupt was read and stays")
		}
		p.Write(uartData, 'x')
	}
	// A write without the read in between is an edge too.
	p.Write(uartData, 'y')
	if !p.high || p.edges != 5 {
		t.Errorf("line high %v after %d edges", p.high, p.edges)
	}
	p.Write(uartIER, 0)
	if p.high {
		t.Error("the line is high although the interrupt is off")
	}
}

func TestSerialPortReceives(t *testing.T) {
	t.Parallel()
	p := newPort()
	p.Write(uartIIR, fcrEnable|1<<6) // trigger at 4
	p.Write(uartIER, ierRDI|ierTHRI)
	if n := p.Input([]byte("ab")); n != 2 {
		t.Errorf("took %d bytes", n)
	}
	p.want(t, "below the trigger", uartIIR, iirFIFO|iirTimeout)
	p.Input([]byte("cd"))
	p.want(t, "data before transmitter", uartIIR, iirFIFO|iirRDI)
	for _, b := range []byte("abcd") {
		p.want(t, "data ready", uartLSR, lsrTHRE|lsrIdle|lsrDataReady)
		p.want(t, "data", uartData, b)
	}
	p.want(t, "no data", uartLSR, lsrTHRE|lsrIdle)
	p.want(t, "transmitter", uartIIR, iirFIFO|iirTHRI)
	if p.high {
		t.Error("the line is high with nothing to tell")
	}
	if n := p.Input(make([]byte, 2*uartInputMax)); n != uartInputMax {
		t.Errorf("took %d bytes: want %d", n, uartInputMax)
	}
	p.Write(uartIIR, fcrEnable|fcrClearRx)
	p.want(t, "cleared", uartLSR, lsrTHRE|lsrIdle)
	p.Write(uartMCR, mcrLoop)
	p.Write(uartData, 'L')
	p.want(t, "loopback", uartData, 'L')
	if p.sent.Len() != 0 {
		t.Error("loopback reached the outside")
	}
}

func FuzzSerialPort(f *testing.F) {
	f.Add([]byte{0x81, 2, 0x80, 'x', 2, 0, 0x84, 0x10, 0x80, 'y', 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p := newPort()
		for len(ops) > 1 {
			register, b := uint16(ops[0]&0xf), ops[1]
			switch {
			case ops[0]&0x40 != 0:
				p.Input(ops[1:min(len(ops), 40)])
			case ops[0]&0x80 != 0:
				p.Write(register, b)
			default:
				p.Read(register)
			}
			ops = ops[2:]
			if p.high != (p.interrupt() != iirNone) || len(p.input) > uartInputMax {
				t.Fatalf("line high %v, interrupt %#x, %d bytes wait", p.high, p.interrupt(), len(p.input))
			}
		}
	})
}
