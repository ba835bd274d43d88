// Command virtplug-plugin-block is a virtio block device (VIRTIO 1.2, 5.2) on a raw image file or a block device.
//
// A request goes through three layers, each in its file: request.go makes sense of the guest's bytes, engine.go carries the
// request out (the seam for other storage engines), image.go and its neighbours know files and block devices.
package main

import "github.com/virtplug/virtplug/sdk"

func main() { sdk.Main(plugin()) }
