package main

import (
	"encoding/binary"
	"fmt"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// ReadConfig is struct virtio_blk_config (5.2.4) as it is now.
func (b *block) ReadConfig() []byte {
	c := make([]byte, virtio.BlkCfgSize)
	le, g := binary.LittleEndian, &b.geometry
	blocks := func(n int64) uint32 { return uint32(n / g.block) }            //nolint:gosec // G115: bounded by the settings
	sectors := func(n int64) uint32 { return uint32(n / virtio.SectorSize) } //nolint:gosec // G115: bounded by the settings
	whole := func(most uint32) uint32 { return most / sectors(g.block) * sectors(g.block) }
	le.PutUint64(c[virtio.BlkCfgCapacity:], b.img.sectors())
	// A chain also holds the header and the status.
	le.PutUint32(c[virtio.BlkCfgSegMax:], uint32(b.cfg.QueueSize-2)) //nolint:gosec // G115: 4 to 1024
	le.PutUint32(c[virtio.BlkCfgBlkSize:], uint32(g.block))          //nolint:gosec // G115: at most 4096
	c[virtio.BlkCfgPhysicalBlockExp] = log2(g.physical / g.block)
	le.PutUint16(c[virtio.BlkCfgMinIOSize:], uint16(blocks(g.minIO))) //nolint:gosec // G115: checked by shape
	le.PutUint32(c[virtio.BlkCfgOptIOSize:], blocks(g.optIO))
	if !b.cache.through.Load() {
		c[virtio.BlkCfgWriteback] = 1
	}
	le.PutUint16(c[virtio.BlkCfgNumQueues:], uint16(len(b.queues))) //nolint:gosec // G115: at most 64
	if b.cfg.ReadOnly {
		return c
	}
	if b.img.unmap {
		le.PutUint32(c[virtio.BlkCfgMaxDiscardSectors:], whole(maxDiscardSectors))
		le.PutUint32(c[virtio.BlkCfgMaxDiscardSeg:], maxDiscardSegments)
		le.PutUint32(c[virtio.BlkCfgDiscardSectorAlign:], sectors(g.discardAlign))
		c[virtio.BlkCfgWriteZeroesMayUnmap] = 1
	}
	le.PutUint32(c[virtio.BlkCfgMaxWriteZeroSectors:], whole(maxZeroSectors))
	le.PutUint32(c[virtio.BlkCfgMaxWriteZeroSeg:], maxZeroSegments)
	return c
}

// WriteConfig takes the one field that a driver may write, writeback; what a wider write says of its neighbours is ignored.
// Turning the cache off makes durable what was answered before, for the driver will not flush any more.
func (b *block) WriteConfig(offset int, data []byte) error {
	i := virtio.BlkCfgWriteback - offset
	if i < 0 || i >= len(data) || b.cfg.ReadOnly {
		return fmt.Errorf("write configuration space: bytes %d to %d: only writeback, byte %d, can be written (VIRTIO 1.2, 5.2.5)",
			offset, offset+len(data)-1, virtio.BlkCfgWriteback)
	}
	if data[i] > 1 {
		return fmt.Errorf("write configuration space: writeback %d: want 0 or 1 (VIRTIO 1.2, 5.2.5)", data[i])
	}
	if !b.cache.set(data[i] == 0) {
		return nil
	}
	if err := b.img.sync(); err != nil {
		b.failures.failed(opFlush, err)
		return fmt.Errorf("write configuration space: turn the write cache off: %w", err)
	}
	return nil
}
