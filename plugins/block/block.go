package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// plugin describes the device type.
func plugin() sdk.Plugin[settings] {
	return sdk.Plugin[settings]{
		Name:        "block",
		Version:     "0.1.0",
		Device:      virtio.IDBlock,
		Description: "Disk on a raw image file or a block device",
		Legacy:      true,
		Commands:    []sdk.CommandSpec{resizeCommand},
		New: func(env *sdk.Env, cfg settings) (sdk.Device, error) {
			return newBlock(env.Name, env, func(err error) { env.Log.Error("I/O failed", "error", err) }, &cfg)
		},
	}
}

// host is the part of sdk.Env that tells others what happens here.
type host interface {
	ConfigChanged()
	Fail(err error, needsReset bool)
	Notice(message string, facts map[string]string)
}

// block is one disk. Safe for concurrent use; the methods that the SDK calls while no queue runs change what queues only
// read.
type block struct {
	host     host
	img      *image
	cfg      *settings
	geometry geometry
	serial   [virtio.BlkIDSize]byte
	queues   []queue
	failures *reporter
	cache    cacheMode
}

// newBlock makes the disk of that name. The file in cfg is its own if it succeeds.
func newBlock(name string, h host, log func(error), cfg *settings) (*block, error) {
	if !powerOfTwo(int64(cfg.QueueSize)) {
		return nil, sdk.SettingError("queue_size", "%d is not a power of two", cfg.QueueSize)
	}
	serial, err := serialOf(cfg, name)
	if err != nil {
		return nil, err
	}
	if cfg.Path.File == nil {
		return nil, sdk.SettingError("path", "%s was not opened by the launcher", cfg.Path.Path)
	}
	img, err := openImage(cfg.Path.Path, cfg.Path.File, cfg.ReadOnly)
	if err != nil {
		return nil, sdk.SettingError("path", "%s: %w", cfg.Path.Path, err)
	}
	if cfg.Locking != "off" {
		if err := img.lock(); err != nil {
			return nil, sdk.SettingError("path", "%s %w", img.path, err)
		}
	}
	b := &block{host: h, img: img, cfg: cfg, serial: serial}
	if err := b.prepare(); err != nil {
		return nil, err
	}
	b.failures = newReporter(func(err error) {
		log(err)
		h.Fail(err, false)
	})
	b.queues = make([]queue, cfg.Queues)
	for i := range b.queues {
		q := &b.queues[i]
		q.failures = b.failures
		q.engine = newInline(img, &b.cache.through, q.done)
	}
	return b, b.Reset()
}

// prepare settles how the image is used: caching, block size, capacity.
func (b *block) prepare() error {
	img, cfg := b.img, b.cfg
	if err := img.setDirect(cfg.Direct); err != nil {
		return sdk.SettingError("direct", "%s: %w", img.path, err)
	}
	img.unmap = cfg.Discard != "ignore" && !cfg.ReadOnly
	var err error
	if b.geometry, err = shape(cfg, img); err != nil {
		return err
	}
	img.unit = b.geometry.block
	if img.direct != nil {
		img.unit = max(img.unit, img.direct.align)
		if img.direct.align > b.geometry.block {
			b.host.Notice(fmt.Sprintf("%s: block_size is %d, direct I/O needs %d: writes of single blocks are slow",
				img.path, b.geometry.block, img.direct.align), map[string]string{"image": img.path})
		}
	}
	size, err := img.measure()
	if err != nil {
		return sdk.SettingError("path", "%s: %w", img.path, err)
	}
	usable := img.usable(size)
	if usable == 0 {
		return sdk.SettingError("path", "%s has %d bytes, a disk needs at least one block of %d: make the image first, for example: truncate -s 1G %s",
			img.path, size, img.unit, img.path)
	}
	img.bytes.Store(usable)
	b.tellOddities(size)
	return nil
}

// tellOddities tells the user what is allowed and yet probably a mistake.
func (b *block) tellOddities(size int64) {
	img := b.img
	if rest := size - img.usable(size); rest > 0 {
		b.host.Notice(fmt.Sprintf("%s has %d bytes, not a whole number of blocks of %d: its last %d bytes are kept as they are, out of the guest's reach",
			img.path, size, img.unit, rest), map[string]string{"image": img.path})
	}
	s := scratch{}
	head := make([]byte, virtio.SectorSize)
	if _, err := img.read(&s, s.single(head), extent{size: int64(len(head))}); err != nil {
		b.host.Fail(err, false)
		return
	}
	if format := foreignFormat(head); format != "" {
		b.host.Notice(fmt.Sprintf("%s looks like a %s image; it is served as it is, raw. To convert it: qemu-img convert -O raw %s NEW",
			img.path, format, img.path), map[string]string{"image": img.path, "format": format})
	}
}

// Spec offers what the settings allow.
func (b *block) Spec() sdk.Spec {
	f := virtio.FBlkSegMax | virtio.FBlkBlkSize | virtio.FBlkTopology
	switch {
	case b.cfg.ReadOnly:
		f |= virtio.FBlkRO
	default:
		f |= virtio.FBlkFlush | virtio.FBlkConfigWCE | virtio.FBlkWriteZeroes
		if b.img.unmap {
			f |= virtio.FBlkDiscard
		}
	}
	if len(b.queues) > 1 {
		f |= virtio.FBlkMQ
	}
	sizes := make([]uint16, len(b.queues))
	for i := range sizes {
		sizes[i] = uint16(b.cfg.QueueSize) //nolint:gosec // G115: at most 1024
	}
	return sdk.Spec{Features: f, QueueSizes: sizes}
}

// HandleBatch serves chains of one queue, on that queue's thread.
func (b *block) HandleBatch(_ context.Context, q *sdk.Queue, batch []*virtq.Chain) error {
	b.queues[q.Index()].handle(b.img.sectors(), q, batch)
	return nil
}

// SetFeatures takes what the driver accepted. No queue runs.
func (b *block) SetFeatures(f virtio.Features) error {
	if !f.Has(virtio.FVersion1) && f.Has(virtio.FBlkConfigWCE) {
		b.cache.noFlush.Store(false)
		b.accept(f) // a legacy driver may have set writeback before: the cache mode stays (5.2.5.3)
		return nil
	}
	b.start(f, f.Has(virtio.FBlkFlush))
	return nil
}

// Reset forgets what the driver set. No queue runs.
func (b *block) Reset() error {
	b.start(0, true)
	return nil
}

// start sets what depends on the driver's features, the cache mode too.
func (b *block) start(f virtio.Features, canFlush bool) {
	b.cache.start(b.cfg.Cache == "writethrough", canFlush)
	b.accept(f)
}

// accept sets what requests are checked against.
func (b *block) accept(f virtio.Features) {
	for i := range b.queues {
		b.queues[i].rules = rules{
			readOnly: b.cfg.ReadOnly,
			discard:  f.Has(virtio.FBlkDiscard),
			zeroes:   f.Has(virtio.FBlkWriteZeroes),
			serial:   b.serial,
		}
	}
}

// Health tells whether writes were lost.
func (b *block) Health() error {
	if lost := b.img.lost.Load(); lost != nil {
		return lost
	}
	return nil
}

// Close ends the engines and closes the image. No queue runs.
func (b *block) Close() error {
	var errs []error
	for i := range b.queues {
		errs = append(errs, b.queues[i].engine.close())
	}
	b.failures.close()
	return errors.Join(append(errs, b.img.close())...)
}

// cacheMode is who makes writes durable (5.2.5, 5.2.6.2).
type cacheMode struct {
	// through: a write is durable when answered. The engines read it while the driver may change it.
	through atomic.Bool
	// noFlush: the driver cannot flush, so through stays.
	noFlush atomic.Bool
}

// start is what the settings say and the driver's features allow; a driver without FLUSH relies on every answered write.
func (c *cacheMode) start(through, canFlush bool) {
	c.noFlush.Store(!canFlush)
	c.through.Store(through || !canFlush)
}

// set is the driver's choice. It tells whether writes answered before now have to be made durable.
func (c *cacheMode) set(through bool) (turnedThrough bool) {
	through = through || c.noFlush.Load()
	return !c.through.Swap(through) && through
}

// interface checks: a method that does not fit would be ignored silently.
var (
	_ sdk.BatchHandler  = (*block)(nil)
	_ sdk.ConfigReader  = (*block)(nil)
	_ sdk.ConfigWriter  = (*block)(nil)
	_ sdk.FeatureSetter = (*block)(nil)
	_ sdk.Resetter      = (*block)(nil)
	_ sdk.Commander     = (*block)(nil)
	_ sdk.StatsReader   = (*block)(nil)
	_ sdk.HealthChecker = (*block)(nil)
)
