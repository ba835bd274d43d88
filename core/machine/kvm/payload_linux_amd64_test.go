package kvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/boot"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/kvm"
	"github.com/virtplug/virtplug/core/machine"
)

// needKVM skips where KVM cannot be used.
func needKVM(t *testing.T) {
	t.Helper()
	s, err := openSystem(kvm.Device)
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// codeStart is where payloads are loaded; each is entered in 64-bit mode, with the first 4 GiB mapped one to one.
const codeStart = 0x10_0000

// Pieces of x86-64 machine code.
func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func imm32(op []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(op, v) }
func imm64(op []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(op, v) }

// movDX is "mov $port, %dx".
func movDX(port uint16) []byte { return []byte{0x66, 0xba, byte(port), byte(port >> 8)} } //nolint:gosec // G115: bytes

// movEAX is "mov $v, %eax", movRAX "movabs $v, %rax", movRCX the same with %rcx.
func movEAX(v uint32) []byte { return imm32([]byte{0xb8}, v) }
func movRAX(v uint64) []byte { return imm64([]byte{0x48, 0xb8}, v) }
func movRCX(v uint64) []byte { return imm64([]byte{0x48, 0xb9}, v) }

// outb, outl, inb and inl access a port with %al or %eax.
func outb(port uint16, v byte) []byte   { return join(movDX(port), []byte{0xb0, v, 0xee}) }
func outl(port uint16, v uint32) []byte { return join(movDX(port), movEAX(v), []byte{0xef}) }
func inb(port uint16) []byte            { return join(movDX(port), []byte{0xec}) }
func inl(port uint16) []byte            { return join(movDX(port), []byte{0xed}) }

// store is "movl $v, (at)", load "mov (at), %eax"; both use %rcx.
func store(at uint64, v uint32) []byte { return join(movRCX(at), imm32([]byte{0xc7, 0x01}, v)) }
func load(at uint64) []byte            { return join(movRCX(at), []byte{0x8b, 0x01}) }

// want is "cmp $v, %eax; je over; ud2": without a handler a wrong value is a triple fault here.
func want(v uint32) []byte { return join(imm32([]byte{0x3d}, v), []byte{0x74, 0x02, 0x0f, 0x0b}) }

// wantAL is the same for %al.
func wantAL(v byte) []byte { return []byte{0x3c, v, 0x74, 0x02, 0x0f, 0x0b} }

// say prints on the serial port.
func say(text string) []byte {
	out := movDX(serialPort)
	for _, c := range []byte(text) {
		out = append(out, 0xb0, c, 0xee)
	}
	return out
}

func powerOff() []byte { return outb(sleepPort, 5<<2|1<<5) }
func forever() []byte  { return []byte{0xeb, 0xfe} }
func ud2() []byte      { return []byte{0x0f, 0x0b} }

// Places of payloads that take interrupts.
const (
	idtAt     = 0x11_0000
	idtrAt    = 0x12_0000
	handlerAt = 0x13_0000
	flagAt    = 0x20_0000 // counts interrupts
	vector    = 0x50
)

// interrupts is memory for a payload that takes interrupts: a handler that counts at flagAt, does more, and ends the interrupt.
func interrupts(more ...[]byte) map[uint64][]byte {
	idt := make([]byte, 256*16)
	gate := idt[vector*16:]
	binary.LittleEndian.PutUint16(gate, handlerAt&0xffff)
	binary.LittleEndian.PutUint16(gate[2:], boot.SelectorCode)
	binary.LittleEndian.PutUint16(gate[4:], 0x8e00)
	binary.LittleEndian.PutUint16(gate[6:], handlerAt>>16)
	handler := join(movRCX(flagAt), []byte{0xff, 0x01}, join(more...), store(lapicAddr+0xb0, 0), []byte{0x48, 0xcf})
	return map[uint64][]byte{
		idtAt: idt, idtrAt: imm64([]byte{0xff, 0x0f}, idtAt), handlerAt: handler, flagAt: make([]byte, 4096),
	}
}

// listen makes line gsi interrupt at vector; with no others, and still held off.
func listen(gsi uint32) []byte {
	return join(
		movRAX(idtrAt), []byte{0x0f, 0x01, 0x18}, // lidt (%rax)
		outb(0x21, 0xff), outb(0xa1, 0xff), // the PIC is masked
		store(lapicAddr+0xf0, 0x1ff), // the local APIC is enabled
		store(ioapicAddr, 0x11+2*gsi), store(ioapicAddr+0x10, 0),
		store(ioapicAddr, 0x10+2*gsi), store(ioapicAddr+0x10, vector),
	)
}

// await waits until flagAt has become n. It does not halt, as emulated processors may take the interrupt before the HLT.
func await(n uint32) []byte {
	// again: sti; pause; cli; cmpl $n, (flagAt); jne again
	body := join([]byte{0xfb, 0xf3, 0x90, 0xfa}, load(flagAt), imm32([]byte{0x3d}, n))
	return append(body, 0x75, byte(-(len(body) + 2))) //nolint:gosec // G115: a displacement of 8 bits
}

// startAP lets virtual CPU 1 execute code in real mode, with the offset of its beginning as 0.
func startAP(code []byte) []byte {
	const at = 0x7_0000
	var out []byte
	for i := 0; i < len(code); i += 4 {
		var w [4]byte
		copy(w[:], code[i:])
		out = append(out, store(at+uint64(i), binary.LittleEndian.Uint32(w[:]))...)
	}
	return join(out, store(lapicAddr+0xf0, 0x1ff),
		store(lapicAddr+0x310, 1<<24), store(lapicAddr+0x300, 0x4500), // INIT
		store(lapicAddr+0x310, 1<<24), store(lapicAddr+0x300, 0x4600|at>>12)) // SIPI
}

// kernelFile makes an ELF program of code, at codeStart and entered there; more is memory that follows, by its address.
func kernelFile(t *testing.T, code []byte, more map[uint64][]byte) string {
	t.Helper()
	segments := map[uint64][]byte{codeStart: code}
	maps.Copy(segments, more)
	const head, entry = 64, 56
	le := binary.LittleEndian
	off := uint64(head + entry*len(segments))
	f := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	f = le.AppendUint16(f, 2)  // ET_EXEC
	f = le.AppendUint16(f, 62) // x86-64
	f = le.AppendUint32(f, 1)
	f = le.AppendUint64(f, codeStart)
	f = le.AppendUint64(f, head)
	f = le.AppendUint64(f, 0)
	f = le.AppendUint32(f, 0)
	for _, v := range []uint16{head, entry, uint16(len(segments)), 0, 0, 0} { //nolint:gosec // G115: few
		f = le.AppendUint16(f, v)
	}
	var data []byte
	for at, b := range segments {
		n := uint64(len(b))
		f = le.AppendUint32(f, 1) // PT_LOAD
		f = le.AppendUint32(f, 7)
		for _, v := range []uint64{off, at, at, n, n, 1} {
			f = le.AppendUint64(f, v)
		}
		data = append(data, b...)
		off += n
	}
	path := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(path, append(f, data...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// trial is one run of a payload.
type trial struct {
	code    []byte
	more    map[uint64][]byte
	memory  uint64 // 0: 4 MiB
	cpus    int
	devices []*device.Device
	started func(*running)
	grace   time.Duration
	ctx     context.Context //nolint:containedctx // of one call
	bus     string
}

// try runs a payload and returns how it ended and what it printed.
func (tr trial) try(t *testing.T) (machine.Exit, string) {
	t.Helper()
	needKVM(t)
	if tr.memory == 0 {
		tr.memory = 4 << 20
	}
	var console text
	g := machine.Guest{
		Name: "trial", MemoryBytes: tr.memory, VCPUs: tr.cpus, Bus: tr.bus,
		Kernel: kernelFile(t, tr.code, tr.more), Console: &console, RunDir: t.TempDir(),
	}
	if tr.started != nil {
		g.Started = func(r machine.Running) {
			if got, ok := r.(*running); ok {
				tr.started(got)
			}
		}
	}
	ctx := tr.ctx
	if ctx == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(t.Context(), patience, errors.New("the guest hangs"))
		defer cancel()
	}
	exit, err := New(Options{Grace: tr.grace}).Run(ctx, g, tr.devices)
	if err != nil {
		t.Fatal(err)
	}
	return exit, console.String()
}

func wantExit(t *testing.T, e machine.Exit, reason machine.Reason, detail string) {
	t.Helper()
	if e.Reason != reason || !strings.Contains(e.Detail, detail) {
		t.Errorf("exit reason %d: %s\nwant reason %d with %q", e.Reason, e.Detail, reason, detail)
	}
}
