package kvm

import (
	"testing"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/kvm"
	"github.com/virtplug/virtplug/core/machine/kernellog"
	"github.com/virtplug/virtplug/core/transport/mmio"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// FuzzAccesses makes any accesses to ports and addresses, of any size, as exits would. Six bytes are one access.
func FuzzAccesses(f *testing.F) {
	f.Add([]byte{0, 0xf8, 3, 1, 'x', 0, 1, 0x10, 0x1f, 4, 1, 0})
	f.Add([]byte{2, 0x70, 0, 4, 0, 0, 2, 0x70, 0, 4, 15, 0, 3, 0xff, 0xf, 8, 0, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		d, _ := newDevice(t, virtio.FVersion1)
		b := &mmioBus{devices: []*device.Device{d}}
		b.windows = []*mmio.Registers{mmio.New(d, mmio.Options{Context: t.Context()})}
		r := &run{bus: b, gate: newGate(nil), ended: func() {}, out: kernellog.New(nil)}
		r.uart = newUART(func(byte) {}, func(bool) {})
		for ; len(ops) >= 6; ops = ops[6:] {
			data := make([]byte, int(ops[3])%9)
			for i := range data {
				data[i] = ops[4]
			}
			low := uint16(ops[1]) | uint16(ops[2])<<8
			switch ops[0] & 3 {
			case 0, 1:
				r.port(nil, kvm.PortAccess{Port: low, Size: int(ops[5] & 7), Out: ops[0]&1 != 0, Data: data})
			default:
				r.memory(kvm.MemoryAccess{Addr: windowsStart + uint64(low) - uint64(ops[5]&1)<<12, Write: ops[0]&1 != 0, Data: data})
			}
		}
	})
}
