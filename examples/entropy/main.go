// Command entropy is a virtio entropy device (VIRTIO 1.2, 5.4).
package main

import (
	"context"
	"crypto/rand"
	"io"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// entropy fills every buffer of its requestq with bytes from src.
type entropy struct{ src io.Reader }

// Spec describes the device to the driver: no features of its own, one queue.
func (entropy) Spec() sdk.Spec { return sdk.Spec{QueueSizes: []uint16{64}} }

// HandleChain fills the device-writable part of c. The SDK popped c, completes it with the count that its Writer kept, and
// notifies the driver if that wants it.
func (e entropy) HandleChain(_ context.Context, _ *sdk.Queue, c *virtq.Chain) error {
	w := c.Writer()
	_, err := io.CopyN(w, e.src, int64(w.Len()))
	return err
}

func plugin() sdk.Plugin[sdk.NoConfig] {
	return sdk.Plugin[sdk.NoConfig]{
		Name: "entropy", Version: "0.1.0", Device: virtio.IDEntropy, Description: "Random bytes for the guest (virtio-rng).",
		Legacy: true, // bytes are bytes, for drivers of any age
		New:    func(*sdk.Env, sdk.NoConfig) (sdk.Device, error) { return entropy{src: rand.Reader}, nil },
	}
}

func main() { sdk.Main(plugin()) }
