package kvm

import (
	"sync"
	"testing"
	"time"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// A plugin may change the configuration space at any time, also while the guest's memory is being set up. Meant for -race.
func TestADeviceThatChangesWhileTheGuestIsMade(t *testing.T) {
	t.Parallel()
	needKVM(t)
	d, in := newDevice(t, virtio.FVersion1)
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for b := byte(0); ; b++ {
			select {
			case <-stop:
				return
			case in.events <- pluginrpc.ConfigChanged{Config: []byte{b, 0, 0, 0, 0, 0, 0, 0}}:
			case <-time.After(time.Second):
			}
		}
	})
	for range 20 {
		trial{code: powerOff(), devices: []*device.Device{d}, memory: 64 << 20}.try(t)
	}
	close(stop)
	all.Wait()
}
