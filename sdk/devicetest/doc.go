// Package devicetest checks that a device does what the contract and the specification ask of every device, without a
// launcher and without a VM. A device's author runs it as a test:
//
//	func TestConformance(t *testing.T) {
//		devicetest.Run(t, plugin(), devicetest.Options{Settings: map[string]any{"path": image}})
//	}
//
// Check runs the same cases against any Target; Program makes one of a plugin's program, in whatever language it is written
// (`virtplug plugin check` does that).
//
// The suite is a driver that knows nothing of the device's type. It sends chains of all shapes, whose readable bytes are all
// zero, all 0xff or counting, and wants each completed exactly once; what the device makes of them is its own
// affair. So a device may do to its back-end what a guest could: give it a scratch one.
//
// # Words
//
// A case is one rule; its Source says where the rule stands. A queue keeps chains if the device has nothing to put into
// them for now, such as a console's receiveq: chains may then stay available, but never be taken and forgotten.
package devicetest
