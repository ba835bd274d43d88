// Package lguest is the bus of lguest's Launcher: devices described by one page of guest memory, rings allocated by the
// launcher, interrupts from 1, legacy virtio. The layout is that of Linux's include/linux/lguest_launcher.h (2.6.31 to 3.19).
//
// # The page
//
// One page of 4096 bytes just above the highest RAM address. It holds records, packed without alignment, in the order of the
// devices; a type of 0 ends the list. All fields are little-endian.
//
//	u8 type, u8 num_vq, u8 feature_len, u8 config_len, u8 status    type is the virtio device ID; status belongs to the guest
//	num_vq × { u16 num, u16 irq, u32 pfn }                          ring of num entries at guest-physical address pfn × 4096
//	feature_len bytes                                               features the device offers: bit n is bit n%8 of byte n/8
//	feature_len bytes                                               features the guest accepts, written by the guest
//	config_len bytes                                                the device configuration space
//
// Builder makes such a page, Parse reads one that a guest may have scribbled on.
//
// A ring is laid out as legacy virtio has it (VIRTIO 1.2, 2.7.2) with an alignment of 4096: descriptor table, available ring,
// then the used ring on a page of its own. It has 256 entries, or fewer if the device takes no more.
//
// # What a device must be
//
// The page has no room for feature bits above 31, so VIRTIO_F_VERSION_1 (bit 32) is never offered: a plugin must serve drivers
// that do not accept it (CAPABILITY_LEGACY). Of its configuration space the first 255 bytes are shown, since config_len is a
// byte; lguest knew no longer one. The guest's own writes to these bytes tell nobody. When the device changes its
// configuration space, the bytes in the page change, but the guest hears nothing: the bus has no interrupt for it.
// DEVICE_NEEDS_RESET cannot be told either; it is logged.
//
// # NOTIFY
//
// A guest reports to the launcher by notifying a guest-physical address; a machine hands each to Bus.Notify, unless a kick
// descriptor is registered for it (Requests.EventFD).
//
//	a record's address    the status changed: 0 or FAILED is a reset, anything else says that the features are final: the
//	                      device's queues are started
//	a ring's address      an available buffer notification (kick)
//	any other             a string that ends with a zero byte, for the early console
//
// DRIVER_OK is written without a notification. Guests before Linux 3.1 did it otherwise and are served too: they notify
// every change of the status, and their features are final only with DRIVER_OK, or at the first kick after it.
//
// # The launcher and its host
//
// The launcher speaks to what runs the guest through Requests, the words that lguest's Launcher wrote to /dev/lguest:
// LHREQ_INITIALIZE, LHREQ_EVENTFD, LHREQ_IRQ. DeviceFile writes them to such a file; a KVM machine translates them; the
// loopback machine (core/machine/loopback) carries them out in Go.
package lguest
