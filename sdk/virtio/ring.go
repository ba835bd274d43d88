package virtio

// Split virtqueue layout (2.7). Sizes and offsets in bytes.
const (
	// QueueSizeMax is the largest queue size, in entries (2.7).
	QueueSizeMax = 32768

	// DescSize is one entry of the descriptor table: le64 addr, le32 len, le16 flags, le16 next (2.7.5).
	DescSize = 16
	// DescAlign, AvailAlign and UsedAlign are the areas' alignments (2.7).
	DescAlign  = 16
	AvailAlign = 2
	UsedAlign  = 4

	// DescFNext: the chain continues at next. DescFWrite: device-writable. DescFIndirect: addr is a table (2.7.5).
	DescFNext     = 1
	DescFWrite    = 2
	DescFIndirect = 4

	// AvailFNoInterrupt: the driver wants no used buffer notification (2.7.6).
	AvailFNoInterrupt = 1
	// UsedFNoNotify: the device wants no available buffer notification (2.7.8).
	UsedFNoNotify = 1
)

// DescTableBytes is the size of the descriptor table of a queue of n entries.
func DescTableBytes(n uint16) int { return DescSize * int(n) }

// AvailRingBytes is the size of the available ring: flags, idx, ring[n], used_event (2.7.6).
func AvailRingBytes(n uint16) int { return 6 + 2*int(n) }

// UsedRingBytes is the size of the used ring: flags, idx, n elements of le32 id and le32 len, avail_event (2.7.8).
func UsedRingBytes(n uint16) int { return 6 + 8*int(n) }
