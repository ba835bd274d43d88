package mmio_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestTheConfigurationSpaceInEveryWidth(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, d *fake, g *guest) {
		t.Helper()
		for _, n := range []int{1, 2, 4, 8} {
			for at := range 14 {
				want := make([]byte, n)
				d.ReadConfigAt(want, at)
				if got := g.bytes(mmio.RegConfig+at, n); !bytes.Equal(got, want) {
					t.Errorf("%d bytes at %d: %x, want %x", n, at, got, want)
				}
			}
		}
		for _, n := range []int{1, 2, 4, 8} {
			for at := range 11 - n {
				generation := g.read(mmio.RegConfigGeneration)
				v := binary.LittleEndian.AppendUint64(nil, 0x1122334455667788+uint64(at*n))[:n] //nolint:gosec // small
				g.r.Write(uint64(mmio.RegConfig+at), v)
				if got := g.bytes(mmio.RegConfig+at, n); !bytes.Equal(got, v) {
					t.Errorf("%d bytes written at %d: %x, want %x", n, at, got, v)
				}
				if g.read(mmio.RegConfigGeneration) == generation {
					t.Error("the space changed, and its generation did not")
				}
			}
		}
		d.set(func() { d.refuse["config"] = errRefused })
		before, generation := g.bytes(mmio.RegConfig, 10), g.read(mmio.RegConfigGeneration)
		g.r.Write(mmio.RegConfig, []byte{0xff})
		if !bytes.Equal(g.bytes(mmio.RegConfig, 10), before) || g.read(mmio.RegConfigGeneration) != generation {
			t.Error("a refused write shows")
		}
	})
}

// Bit 0 stands as long as there may be used buffers; bit 1 for a change that the driver has not acknowledged.
func TestInterruptsTellOfChanges(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, d *fake, g *guest) {
		t.Helper()
		next := func() { d.changeConfig(func(c []byte) { c[0]++ }) }
		status := func(what string, want uint32) {
			t.Helper()
			g.want(what, g.read(mmio.RegInterruptStatus), want)
		}
		next()
		status("before a driver is there", 0)
		if err := g.linux(); err != nil {
			t.Fatal(err)
		}
		status("running", mmio.InterruptUsed)
		if g.count() != 0 {
			t.Error("an interrupt for a change from before the driver")
		}
		generation := g.read(mmio.RegConfigGeneration)
		next()
		status("changed", mmio.InterruptUsed|mmio.InterruptConfig)
		if g.read(mmio.RegConfigGeneration) == generation || g.count() != 1 || g.bytes(mmio.RegConfig, 1)[0] != 3 {
			t.Error("the change does not show")
		}
		g.write(mmio.RegInterruptACK, mmio.InterruptUsed)
		status("used buffers acknowledged", mmio.InterruptUsed|mmio.InterruptConfig)
		g.write(mmio.RegInterruptACK, 3)
		status("all acknowledged", mmio.InterruptUsed)
		d.askReset()
		status("needs a reset", mmio.InterruptUsed|mmio.InterruptConfig)
		g.want("status", uint32(g.status()), uint32(allOK|virtio.StatusNeedsReset))
		g.setStatus(0)
		status("after a reset", 0)
		g.want("status after a reset", uint32(g.status()), 0)

		g.setStatus(ack | drv) // what changes while the driver probes is told as soon as it can hear
		next()
		g.accept(wanted)
		g.setStatus(ack | drv | okF)
		status("not yet", 0)
		n := g.count()
		g.setStatus(allOK)
		status("told at DRIVER_OK", mmio.InterruptUsed|mmio.InterruptConfig)
		if g.count() != n+1 {
			t.Error("no interrupt at DRIVER_OK")
		}
		g.setStatus(0)
		g.setStatus(ack | drv)
		d.askReset()
		g.want("status", uint32(g.status()), uint32(ack|drv|virtio.StatusNeedsReset))
		g.accept(wanted)
		g.setQueue(0, 16, 0x1000, 0x2000, 0x3000)
		g.write(mmio.RegQueueReady, 1)
		g.setStatus(allOK)
		status("needs a reset at DRIVER_OK", mmio.InterruptUsed|mmio.InterruptConfig)
		if len(d.running()) > 0 {
			t.Error("a device that needs a reset was started")
		}
	})
}
