package devicetest

import (
	"fmt"
	"slices"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// legacySight is what a driver of the legacy interface knows of: 32 feature bits (2.2.3), so not VIRTIO_F_VERSION_1.
const legacySight virtio.Features = 1<<32 - 1

// legacy tells whether the plugin declares that it serves legacy drivers.
func (t *runner) legacy() bool {
	return slices.Contains(t.desc.GetCapabilities(), pluginv1.Capability_CAPABILITY_LEGACY)
}

// featuresLegacy has a legacy driver's features served if the plugin declares it, and refused if not; a modern driver is
// served before and after in both cases.
func featuresLegacy(t *runner) {
	if t.legacy() {
		legacyQueues(0)(t)
		return
	}
	target := t.opened()
	offer := t.configure(target)
	set := func(f virtio.Features) error {
		ctx, cancel := t.limited()
		defer cancel()
		_, err := target.SetFeatures(ctx, f)
		return err
	}
	for _, f := range []virtio.Features{0, offer.Features & legacySight, offer.Features &^ virtio.FVersion1} {
		t.refused(fmt.Sprintf("SetFeatures %v, without VIRTIO_F_VERSION_1 and without CAPABILITY_LEGACY", f), set(f), pluginrpc.ErrInvalid)
	}
	t.must("SetFeatures after refused ones", set(offer.Features))
}

// legacyQueues serves a legacy driver, a modern one after it, and a legacy one again: nothing of the former must be left.
func legacyQueues(ring virtio.Features) func(*runner) {
	return func(t *runner) {
		if !t.legacy() {
			t.Skipf("the plugin has not CAPABILITY_LEGACY")
		}
		m := t.machineFor(legacySight, ring, defaultSize)
		if len(m.queues) == 0 {
			t.Skipf("the device has no queues")
		}
		m.exchange()
		legacy := m.features
		m.features |= virtio.FVersion1
		m.reset()
		m.startAll()
		m.works()
		m.features = legacy
		m.reset()
		m.exchange()
	}
}
