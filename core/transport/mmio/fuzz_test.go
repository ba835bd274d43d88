package mmio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Operations of a fuzzed sequence; each is 8 bytes: operation, register or width, offset le16, value le32.
const (
	opRegister = iota // a write of value to a register of the table
	opBytes           // a write of any width anywhere
	opQueue           // a queue is set up well and made ready
	opConfig          // the device changes its space
	opNeeds           // the device asks for a reset
	opRestart         // the device changes its space and takes features or not, as another instance does
	opRead            // a read of any width anywhere
	operations        // how many there are
)

// maxSteps bounds a sequence: arbitrary, enough for several set-ups.
const maxSteps = 200

// table are the registers that a write may matter to.
var table = []int{
	mmio.RegStatus, mmio.RegQueueReady, mmio.RegQueueSel, mmio.RegQueueNum, mmio.RegDriverFeatures, mmio.RegDriverFeaturesSel,
	mmio.RegDeviceFeaturesSel, mmio.RegInterruptACK, mmio.RegQueueNotify, mmio.RegQueueDescLow, mmio.RegQueueDescHigh,
	mmio.RegQueueDriverLow, mmio.RegQueueDriverHigh, mmio.RegQueueDeviceLow, mmio.RegQueueDeviceHigh, mmio.RegSHMSel,
	mmio.RegQueueReset, mmio.RegStatus, mmio.RegQueueReady, mmio.RegMagicValue,
}

// fuzzed is a guest with what must be true of it.
type fuzzed struct {
	*guest
	d      *fake
	before []byte // the window after the last operation
	kicked int
	sel    uint32 // what the driver wrote to QueueSel
}

// FuzzRegisters drives the registers with what a driver may write and a device may do, and checks after each step what the
// specification promises.
func FuzzRegisters(f *testing.F) {
	step := func(op, reg byte, offset uint16, v uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16([]byte{op, reg}, offset), v)
	}
	status := func(s virtio.Status) []byte { return step(opRegister, 0, 0, uint32(s)) }
	features := slices.Concat(step(opRegister, 5, 0, 1), step(opRegister, 4, 0, 1), step(opRegister, 5, 0, 0), step(opRegister, 4, 0, 1<<5))
	queue := func(i uint32) []byte { return step(opQueue, 0, 0, i) }
	good := slices.Concat(status(0), status(ack), status(ack|drv), features, status(ack|drv|okF), queue(0), queue(1), queue(2), status(allOK))
	f.Add(good)
	f.Add(slices.Concat(good, step(opConfig, 0, 3, 9), step(opRegister, 7, 0, 3), step(opRegister, 8, 0, 1), step(opNeeds, 0, 0, 0), good))
	f.Add(slices.Concat(good, step(opRegister, 2, 0, 1), step(opRegister, 1, 0, 0), queue(1), step(opBytes, 8, 0x103, 0xffff), step(opRead, 8, 0xffc, 0)))
	f.Add(slices.Concat(features, queue(0), status(allOK), step(opRestart, 1, 0, 0), status(allOK|0x80), status(0), step(opRestart, 1, 0, 0), features, status(okD)))
	f.Add(slices.Concat(features, step(opRegister, 3, 0, 3), step(opRegister, 1, 0, 1), status(allOK), step(opBytes, 4, 1, 7), step(opBytes, 3, 0x70, 7)))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newFake()
		g := &fuzzed{guest: newGuest(t, d, true, nil), d: d}
		g.before = bytes.Clone(g.page)
		for data = data[:min(len(data), 8*maxSteps)]; len(data) >= 8; {
			what := g.step(data[0], data[1], binary.LittleEndian.Uint16(data[2:]), binary.LittleEndian.Uint32(data[4:]))
			data = data[8:]
			if err := g.check(); err != nil {
				t.Fatalf("after %s: %v\ncalls %q", what, err, d.log())
			}
		}
		g.setStatus(0)
		if g.status() != 0 || g.read(mmio.RegInterruptStatus) != 0 || len(d.running()) > 0 {
			t.Fatalf("after a reset: status %#x, queues %v run", g.status(), d.running())
		}
		d.set(func() { delete(d.refuse, "features") })
		if err := g.linux(); err != nil {
			t.Fatalf("a good driver afterwards: %v", err)
		}
		if got := d.running(); !slices.Equal(got, []int{0, 1, 2}) {
			t.Fatalf("a good driver afterwards: queues %v run", got)
		}
	})
}

// step does one operation and returns what it was.
func (g *fuzzed) step(op, arg byte, offset uint16, v uint32) string {
	d := g.d
	switch op % operations {
	case opRegister:
		reg := table[int(arg)%len(table)]
		g.write(reg, v)
		g.selects(reg, v)
		return fmt.Sprintf("a write of %#x to register %#x", v, reg)
	case opBytes:
		p := make([]byte, arg%17)
		for i := range p {
			p[i] = byte(v >> (8 * (i % 4))) //nolint:gosec // one of four
		}
		g.r.Write(uint64(offset), p)
		if len(p) == 4 {
			g.selects(int(offset), v)
		}
		return fmt.Sprintf("a write of %x at %#x", p, offset)
	case opQueue:
		i := int(v % 3)
		g.sel = uint32(i)
		g.setQueue(i, uint32(d.sizes[i]), 0x1000, 0x8000, 0xa000)
		g.write(mmio.RegQueueReady, 1)
		return fmt.Sprintf("set-up of queue %d", i)
	case opConfig:
		d.changeConfig(func(c []byte) { c[int(offset)%len(c)] = byte(v) }) //nolint:gosec // any byte
		return "the device's change of its space"
	case opNeeds:
		d.askReset()
		return "the device's wish for a reset"
	case opRestart:
		d.set(func() {
			delete(d.refuse, "features")
			if arg%2 == 1 {
				d.refuse["features"] = errRefused
			}
		})
		d.changeConfig(func(c []byte) { c[0]++ })
		d.set(func() { delete(d.refuse, "start") })
		return "a new instance"
	}
	g.r.Read(uint64(offset), make([]byte, arg%17))
	return "a read"
}

// selects follows QueueSel, which cannot be read.
func (g *fuzzed) selects(reg int, v uint32) {
	switch {
	case reg == mmio.RegQueueSel:
		g.sel = v
	case reg == mmio.RegStatus && v == 0:
		g.sel = 0
	}
}

// check tells what is not as it must be.
func (g *fuzzed) check() error {
	all := make([]byte, mmio.WindowSize)
	g.r.Read(0, all)
	if !bytes.Equal(all, g.page) {
		return errors.New("the page is not what Read answers")
	}
	before := g.before
	g.before = all
	space := func(window []byte) []byte { return window[mmio.RegConfig:] }
	generation := func(window []byte) uint32 { return binary.LittleEndian.Uint32(window[mmio.RegConfigGeneration:]) }
	if bytes.Equal(space(before), space(all)) != (generation(before) == generation(all)) {
		return errors.New("the generation changed without the space, or the space without it")
	}
	if c := make([]byte, len(g.d.config)); g.d.ReadConfigAt(c, 0) != len(c) || !bytes.Equal(space(all)[:len(c)], c) {
		return fmt.Errorf("the space is %x, not the device's %x", space(all)[:len(c)], c)
	}
	if err := g.checkStatus(virtio.Status(binary.LittleEndian.Uint32(before[mmio.RegStatus:]))); err != nil { //nolint:gosec // 8 bits
		return err
	}
	return g.checkQueues()
}

func (g *fuzzed) checkStatus(before virtio.Status) error {
	d, s := g.d, g.status()
	const needs = virtio.StatusNeedsReset
	reset := s&^needs == 0
	switch {
	case s&^(allOK|needs|virtio.StatusFailed) != 0:
		return fmt.Errorf("status %#x has bits that there are not", s)
	case before&^s != 0 && !reset:
		return fmt.Errorf("status went from %#x to %#x without a reset", before, s)
	case s.Has(okF) && !d.featuresSet:
		return errors.New("FEATURES_OK, and the device was told no features")
	case d.features&^(d.offered&^(0x1f<<37)) != 0:
		return fmt.Errorf("features %v were not offered", d.features)
	case s.Has(okD) && !d.featuresSet:
		return errors.New("DRIVER_OK without features")
	case d.status != s&^needs:
		return fmt.Errorf("the device was told status %#x, the driver %#x", d.status, s)
	case d.needs && !s.Has(needs):
		return errors.New("the device needs a reset, and the status does not tell")
	}
	interrupts := g.read(mmio.RegInterruptStatus)
	if (interrupts&mmio.InterruptUsed != 0) != s.Has(okD) || interrupts > 3 || reset && interrupts != 0 {
		return fmt.Errorf("InterruptStatus %d in status %#x", interrupts, s)
	}
	return nil
}

func (g *fuzzed) checkQueues() error {
	d, s := g.d, g.status()
	running := d.running()
	if len(running) > 0 && (!s.Has(okD) || !d.featuresSet) {
		return fmt.Errorf("queues %v run in status %#x", running, s)
	}
	if kicks := len(g.kicks); kicks != g.kicked {
		g.kicked = kicks
		if last := int(g.kicks[kicks-1]); !slices.Contains(running, last) {
			return fmt.Errorf("queue %d was kicked, and does not run", last)
		}
	}
	ready := g.ready()
	for _, i := range running {
		if !slices.Contains(ready, i) {
			return fmt.Errorf("queue %d runs, and is not ready", i)
		}
		if q := d.queues[i]; q.size > d.sizes[i] || q.size&(q.size-1) != 0 {
			return fmt.Errorf("queue %d runs with size %d", i, q.size)
		}
	}
	if s.Has(okD) && !s.Has(virtio.StatusNeedsReset) && !s.Has(virtio.StatusFailed) && !slices.Equal(running, ready) {
		return fmt.Errorf("queues %v are ready, %v run", ready, running)
	}
	return nil
}

// ready are the queues that are, found by a look at each.
func (g *fuzzed) ready() (is []int) {
	for i := range g.d.sizes {
		g.write(mmio.RegQueueSel, uint32(i))
		if g.read(mmio.RegQueueReady) == 1 {
			is = append(is, i)
		}
	}
	g.write(mmio.RegQueueSel, g.sel)
	return is
}
