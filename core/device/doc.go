// Package device is the broker: one virtio device between a machine and a plugin instance.
//
// Toward the machine the Device is the device (VIRTIO 1.2, 2.1 and 3.1): it holds the negotiated features, the status, the
// configuration space, the memory table, the ring addresses, the kick and call descriptors and the in-flight regions.
// Toward the plugin it hands all that over, and hands it over again when the instance dies. So a machine's calls work, and
// the driver sees at most a pause, while there is no instance.
//
// # Flow
//
//	New → Open (starts the plugin, learns its offer)
//	machine: SetFeatures → SetMemory → per queue SetQueue, SetQueueBase, SetKick, SetCall, StartQueue → … → StopQueue → Reset
//	Close
//
// # While there is no instance
//
// Calls that only change what the plugin is told (features, memory, queues, a write to the configuration space) are applied
// here and replayed to the next instance. StopQueue waits for a bounded time and then answers from the rings and the
// in-flight region. Command and Statistics fail with ErrNoInstance.
//
// # Concurrency
//
// All methods of Device may be called from any goroutine; those that change the device run one after another. Callbacks
// (OnConfigChange, OnNeedsReset) run on a goroutine of the Device with no lock held; they may call its methods.
package device
