// Command virtplug-plugin-net is a virtio network device (VIRTIO 1.2, 5.1).
//
//	driver ─▶ tx.go ─▶ port.Send    ─▶ backend_*.go ─▶ network
//	driver ◀─ rx.go ◀─ port.Receive ◀─ backend_*.go ◀─ network
//
// The device (net.go, queues.go, features.go, control.go, filter.go, link.go, limits.go) knows nothing of what it is connected to; a
// back-end (backend.go has the seam) knows nothing of virtqueues. A frame is on its way between them with a checked copy of its
// header, and its bytes where the guest has them.
package main

import "github.com/virtplug/virtplug/sdk"

func main() { sdk.Main(plugin()) }
