package pluginhost

import (
	"testing"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

func TestOnlyWhoKeepsAStateGetsTheRegion(t *testing.T) {
	t.Parallel()
	for want, capabilities := range map[int][]pluginv1.Capability{
		0: {pluginv1.Capability_CAPABILITY_INFLIGHT, pluginv1.Capability_CAPABILITY_LEGACY},
		5: {pluginv1.Capability_CAPABILITY_INFLIGHT, pluginv1.Capability_CAPABILITY_STATE},
	} {
		s := settingsFor(pluginrpc.Settings{State: 5, DeviceName: "d", Identity: [16]byte{1}}, &pluginv1.DescribeResponse{Capabilities: capabilities})
		if s.State != want || s.DeviceName != "d" || s.Identity != [16]byte{1} {
			t.Errorf("%v: %+v: want state %d", capabilities, s, want)
		}
	}
}
