// Command console is a virtio console device (VIRTIO 1.2, 5.3): the console hvc0, and with port blocks further consoles and
// serial ports, each connected to a terminal, a pseudo-terminal, a unix socket or a log file.
//
// # What happens to bytes
//
// Output: a chain is finished when its last byte is written. A host's end that is there and does not read stops its own
// port only. While nobody is connected to a pseudo-terminal or socket, the setting unconnected decides; a write that fails
// (disk full) is counted, reported and lost, and the guest goes on. If the queue is stopped halfway through a chain, the
// chain goes back to the queue and this instance writes the rest when it is served again; another instance (after a crash
// or swap) writes the whole chain.
//
// Input is read from the host's end only when the driver has a buffer for it and has the port open, so nothing waits in
// this process: what is not read survives its death.
//
// Which ports the guest has open is known from control messages only. They are kept in the device's state (state.go), so that an
// instance that takes over from one that died continues exactly. Where the launcher keeps none, it repeats the handshake
// and takes the ports to be open (see control.resume).
package main

import (
	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func main() { sdk.Main(plugin()) }

// plugin describes the device type.
func plugin() sdk.Plugin[settings] {
	return sdk.Plugin[settings]{
		Name:        "console",
		Version:     "0.1.0",
		Device:      virtio.IDConsole,
		Description: "virtio console with several ports on terminals, pseudo-terminals, sockets and log files",
		Legacy:      true,
		State:       true,
		Commands: []sdk.CommandSpec{{
			Name: "resize", Description: "Change a console's size.", Args: resizeArgs{},
		}},
		New: newConsole,
	}
}
