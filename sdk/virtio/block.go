package virtio

// Block device (5.2).
const (
	// SectorSize is the unit of every sector number and capacity, whatever the block size, in bytes (5.2.4).
	SectorSize = 512

	FBlkSizeMax     Features = 1 << 1
	FBlkSegMax      Features = 1 << 2
	FBlkGeometry    Features = 1 << 4
	FBlkRO          Features = 1 << 5
	FBlkBlkSize     Features = 1 << 6
	FBlkFlush       Features = 1 << 9
	FBlkTopology    Features = 1 << 10
	FBlkConfigWCE   Features = 1 << 11
	FBlkMQ          Features = 1 << 12
	FBlkDiscard     Features = 1 << 13
	FBlkWriteZeroes Features = 1 << 14

	// Request types (5.2.6).
	BlkTIn          = 0
	BlkTOut         = 1
	BlkTFlush       = 4
	BlkTGetID       = 8
	BlkTDiscard     = 11
	BlkTWriteZeroes = 13

	// Status byte of a request (5.2.6).
	BlkSOK     = 0
	BlkSIOErr  = 1
	BlkSUnsupp = 2

	// BlkHeaderSize: le32 type, le32 reserved, le64 sector (5.2.6).
	BlkHeaderSize = 16
	// BlkIDSize is the length of the serial number answered to GET_ID, NUL-padded (5.2.6).
	BlkIDSize = 20
	// BlkRangeSize: le64 sector, le32 num_sectors, le32 flags: one segment of DISCARD and WRITE_ZEROES (5.2.6).
	BlkRangeSize = 16
	// BlkRangeFUnmap: WRITE_ZEROES may deallocate (5.2.6).
	BlkRangeFUnmap = 1

	// Offsets in struct virtio_blk_config (5.2.4).
	BlkCfgCapacity            = 0
	BlkCfgSizeMax             = 8
	BlkCfgSegMax              = 12
	BlkCfgBlkSize             = 20
	BlkCfgPhysicalBlockExp    = 24
	BlkCfgAlignmentOffset     = 25
	BlkCfgMinIOSize           = 26
	BlkCfgOptIOSize           = 28
	BlkCfgWriteback           = 32
	BlkCfgNumQueues           = 34
	BlkCfgMaxDiscardSectors   = 36
	BlkCfgMaxDiscardSeg       = 40
	BlkCfgDiscardSectorAlign  = 44
	BlkCfgMaxWriteZeroSectors = 48
	BlkCfgMaxWriteZeroSeg     = 52
	BlkCfgWriteZeroesMayUnmap = 56
	BlkCfgSize                = 60
)
