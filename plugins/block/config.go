package main

import (
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// settings are what a configuration says about a disk.
type settings struct {
	Path      sdk.File `config:"path,required" file:"write,read_only_if=read_only,block_device" help:"Raw image file or block device. A size that is not a whole number of blocks is rounded down: the rest is kept and not reachable."`
	ReadOnly  bool     `config:"read_only" default:"false" help:"The guest cannot write. Several devices may share a read-only image."`
	Cache     string   `config:"cache" default:"writeback" oneof:"writeback|writethrough" help:"writeback: a write is durable once the guest has flushed. writethrough: once it is answered. The guest may change it."`
	Direct    bool     `config:"direct" default:"false" help:"Bypass the host's page cache (O_DIRECT)."`
	Discard   string   `config:"discard" default:"unmap" oneof:"unmap|ignore" help:"unmap: what the guest discards is given back to the host's file system or device. ignore: discarding is not offered."`
	Locking   string   `config:"locking" default:"on" oneof:"on|off" help:"on: refuse an image that something else writes to, or, unless read_only, uses at all. off: do not lock."`
	Serial    string   `config:"serial" help:"What the guest reads as the serial number: 1 to 20 printable ASCII characters. Default: the device's name."`
	Queues    int      `config:"queues" default:"1" min:"1" max:"64" help:"Number of virtqueues, as a rule one for each virtual processor."`
	QueueSize int      `config:"queue_size" default:"256" min:"4" max:"1024" help:"Largest size of each virtqueue, in descriptors; a power of two."`

	BlockSize         sdk.Size `config:"block_size" min:"512" max:"4096" help:"Logical block size, a power of two. Default: a block device's own; for files 512, with direct what the file system needs."`
	PhysicalBlockSize sdk.Size `config:"physical_block_size" min:"512" max:"65536" help:"Physical block size, a power of two, at least block_size: what the guest aligns to. Default: a block device's own; for files 4096."`
	MinIOSize         sdk.Size `config:"min_io_size" min:"512" max:"33553920" help:"Smallest size of I/O without a penalty, a multiple of block_size. Default: the physical block size."`
	OptIOSize         sdk.Size `config:"opt_io_size" min:"512" max:"1073741824" help:"Best size for sustained I/O, a multiple of block_size. Default: a block device's own; none for files."`
}

// geometry is what the configuration space tells of the disk besides its capacity, all in bytes.
type geometry struct {
	block, physical, minIO, optIO int64
	// discardAlign is what discards are best aligned to.
	discardAlign int64
}

// shape fills in what the settings leave open from the image, and checks them against each other.
func shape(cfg *settings, img *image) (geometry, error) {
	g := defaults(img)
	if cfg.BlockSize != 0 {
		g.block = int64(cfg.BlockSize) //nolint:gosec // G115: bounded by its tag
	}
	if !powerOfTwo(g.block) {
		return g, sdk.SettingError("block_size", "%d is not a power of two", g.block)
	}
	if g.block < virtio.SectorSize || g.block > 4096 {
		return g, sdk.SettingError("block_size", "%s has blocks of %d bytes: set block_size to 512, 1024, 2048 or 4096", img.path, g.block)
	}
	if img.blockDevice && g.block < img.sector {
		return g, sdk.SettingError("block_size", "%d is smaller than the %d of %s", g.block, img.sector, img.path)
	}
	g.physical = max(g.physical, g.block)
	if cfg.PhysicalBlockSize != 0 {
		g.physical = int64(cfg.PhysicalBlockSize) //nolint:gosec // G115: bounded by its tag
	}
	if !powerOfTwo(g.physical) || g.physical < g.block {
		return g, sdk.SettingError("physical_block_size", "%d is not a power of two of at least block_size, %d", g.physical, g.block)
	}
	g.minIO = max(g.minIO, g.physical)
	if cfg.MinIOSize != 0 {
		g.minIO = int64(cfg.MinIOSize) //nolint:gosec // G115: bounded by its tag
	}
	if g.minIO%g.block != 0 || g.minIO/g.block > 65535 {
		return g, sdk.SettingError("min_io_size", "%d is not a multiple of block_size, %d, by at most 65535", g.minIO, g.block)
	}
	if cfg.OptIOSize != 0 {
		g.optIO = int64(cfg.OptIOSize) //nolint:gosec // G115: bounded by its tag
	}
	if g.optIO%g.block != 0 {
		return g, sdk.SettingError("opt_io_size", "%d is not a multiple of block_size, %d", g.optIO, g.block)
	}
	g.discardAlign = max(g.discardAlign, g.block)
	return g, nil
}

// defaults is the geometry that the image itself suggests.
func defaults(img *image) geometry {
	g := geometry{block: virtio.SectorSize, physical: 4096, discardAlign: 4096}
	if img.blockDevice {
		g.block = img.sector
		// What a device does not tell is not an error: these are hints.
		hint := func(request uint) int64 {
			n, err := unix.IoctlGetInt(img.fd, request)
			if err != nil || n < 0 || int64(n)%g.block != 0 {
				return 0
			}
			return int64(n)
		}
		g.physical, g.minIO, g.optIO = hint(unix.BLKPBSZGET), hint(unix.BLKIOMIN), hint(unix.BLKIOOPT)
		g.discardAlign = max(g.physical, g.block)
		if !powerOfTwo(g.physical) {
			g.physical = g.block
		}
		if g.minIO/g.block > 65535 {
			g.minIO = g.physical
		}
		return g
	}
	if img.direct != nil {
		g.block = img.direct.align
	}
	return g
}

func powerOfTwo(n int64) bool { return n > 0 && n&(n-1) == 0 }

// log2 of a power of two.
func log2(n int64) uint8 { return uint8(bits.TrailingZeros64(uint64(n))) } //nolint:gosec // G115: at most 63

// serialOf is the serial number: the setting, or the device's name as far as it fits.
func serialOf(cfg *settings, device string) ([virtio.BlkIDSize]byte, error) {
	var id [virtio.BlkIDSize]byte
	if cfg.Serial == "" {
		copy(id[:], device)
		return id, nil
	}
	if len(cfg.Serial) > len(id) {
		return id, sdk.SettingError("serial", "%q has %d bytes: at most %d", cfg.Serial, len(cfg.Serial), len(id))
	}
	for _, c := range []byte(cfg.Serial) {
		if c <= ' ' || c > '~' {
			return id, sdk.SettingError("serial", "%q: only printable ASCII characters without spaces", cfg.Serial)
		}
	}
	copy(id[:], cfg.Serial)
	return id, nil
}

// foreignFormat names the image format that the first bytes of a file belong to; empty: none that we know.
func foreignFormat(head []byte) string {
	has := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
	switch {
	case has(0, "QFI\xfb"):
		return "qcow2"
	case has(0, "KDMV"), has(0, "COWD"), has(0, "# Disk DescriptorFile"):
		return "vmdk"
	case has(0, "vhdxfile"):
		return "vhdx"
	case has(0, "conectix"):
		return "vhd"
	case has(64, "\x7f\x10\xda\xbe"):
		return "vdi"
	case has(0, "QED\x00"):
		return "qed"
	}
	return ""
}
