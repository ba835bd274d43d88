package pluginrpc

import (
	"context"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// Bare gives the RPCs themselves, with nothing checked or converted: for tests that break the contract on purpose.
func (c *Client) Bare() pluginv1.DeviceClient { return c.rpc }

// SendDescriptors passes copies of fds to the plugin and returns how a request of Bare names them.
func (c *Client) SendDescriptors(ctx context.Context, fds []int) (*pluginv1.Descriptors, error) {
	return c.send(ctx, "send descriptors", fds)
}
