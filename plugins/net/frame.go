package main

// frame is one Ethernet frame on its way, without a checksum of its own. It belongs to whoever is called until the call returns.
type frame struct {
	// hdr is the packet's virtio_net_hdr (VIRTIO 1.2, 5.1.6), not the guest's bytes but a checked copy; num_buffers is not set.
	hdr header
	// bufs is the frame's bytes (sending) or the room for them (receiving), mostly guest memory: each byte is read at most once.
	bufs [][]byte
	// n is the frame's length in bytes; receiving: set by Receive.
	n int
	// dropped is set by Send for a frame that it dropped.
	dropped bool
}
