package kvm

import (
	"testing"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Rounds of a notification and its answer.
const rounds = 20

// mmioDriver sets up the first device, with a queue that is never used but for its notifications. It makes mmioWrites exits.
func mmioDriver() []byte {
	reg := func(offset uint64, v uint32) []byte { return store(windowsStart+offset, v) }
	read := func(offset uint64, v uint32) []byte { return join(load(windowsStart+offset), want(v)) }
	return join(
		read(mmio.RegMagicValue, mmio.MagicValue), read(mmio.RegVersion, 2), read(mmio.RegDeviceID, uint32(virtio.IDEntropy)),
		reg(mmio.RegStatus, 0), reg(mmio.RegStatus, 3),
		reg(mmio.RegDeviceFeaturesSel, 1), read(mmio.RegDeviceFeatures, 1),
		reg(mmio.RegDriverFeaturesSel, 1), reg(mmio.RegDriverFeatures, 1),
		reg(mmio.RegStatus, 11), read(mmio.RegStatus, 11),
		reg(mmio.RegQueueSel, 0), read(mmio.RegQueueNumMax, 8), reg(mmio.RegQueueNum, 8),
		reg(mmio.RegQueueDescLow, 0x21_0000), reg(mmio.RegQueueDriverLow, 0x21_1000), reg(mmio.RegQueueDeviceLow, 0x21_2000),
		reg(mmio.RegQueueReady, 1), reg(mmio.RegStatus, 15), read(mmio.RegInterruptStatus, 1),
	)
}

const mmioWrites = 13

func TestMMIONotificationsAndInterruptsDoNotWakeTheLauncher(t *testing.T) {
	t.Parallel()
	d, _ := newDevice(t, virtio.FVersion1)
	code := join(mmioDriver(), listen(lineGSI(0)))
	for i := range uint32(rounds) {
		code = join(code, store(windowsStart+mmio.RegQueueNotify, 0), await(i+1))
	}
	var counters map[string]uint64
	var guest *running
	e, _ := trial{
		code: join(code, powerOff(), forever()), devices: []*device.Device{d},
		more:    interrupts(store(windowsStart+mmio.RegInterruptACK, 1)),
		started: func(r *running) { guest = r },
	}.try(t)
	wantExit(t, e, machine.PowerOff, "")
	counters = guest.Counters()
	if counters["exits.mmio"] != mmioWrites || counters["kicks"] != 0 {
		t.Errorf("counters %v: want %d exits for registers, as many as the driver's set-up writes, and no kicks", counters, mmioWrites)
	}
	if _, ok := d.Negotiated(); ok || d.Status() != 0 {
		t.Error("the device was not reset when the guest ended")
	}
}

func TestLguestNotificationsAndInterruptsDoNotWakeTheLauncher(t *testing.T) {
	t.Parallel()
	const memory, page = 4 << 20, 4 << 20
	d, _ := newDevice(t, 0)
	status := func(v byte) []byte { return join(movRCX(page+4), []byte{0xc6, 0x01, v}) }
	code := join(
		load(page), []byte{0x25, 0xff, 0xff, 0, 0}, want(1<<8|uint32(virtio.IDEntropy)), // type, num_vq; and the rest away
		status(0), outl(doorbellPort, page>>12), // reset
		status(3), outl(highPort, 1), outl(notifyPort, page), // another address: 4 GiB above
		outl(notifyPort, page), // features are final
		status(7), listen(lineGSI(0)),
	)
	for i := range uint32(rounds) {
		code = join(code, outl(doorbellPort, page>>12+1), await(i+1))
	}
	var guest *running
	e, _ := trial{
		code: join(code, powerOff(), forever()), devices: []*device.Device{d}, memory: memory, bus: machine.BusLguest,
		more: interrupts(), started: func(r *running) { guest = r },
	}.try(t)
	wantExit(t, e, machine.PowerOff, "")
	if c := guest.Counters(); c["kicks"] != 3 {
		t.Errorf("counters %v: want 3 notifications, those of the status", c)
	}
	if _, err := guest.LguestPage(); err == nil {
		t.Error("there is a device page after the end")
	}
}

func TestTheLguestEarlyConsoleIsHeard(t *testing.T) {
	t.Parallel()
	e, out := trial{
		code: join(outl(notifyPort, flagAt), powerOff(), forever()), bus: machine.BusLguest,
		more: map[uint64][]byte{flagAt: []byte("early\n\x00late")},
	}.try(t)
	wantExit(t, e, machine.PowerOff, "")
	if out != "early\n" {
		t.Errorf("printed %q", out)
	}
}
