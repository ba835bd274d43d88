/* SPDX-License-Identifier: 0BSD */
/*
 * virtio_mmio.h: virtio devices behind memory-mapped registers, version 2 (VIRTIO 1.2, 4.2). One header, no library, no
 * global state. Version 1 ("legacy", 4.2.4) is recognised and refused.
 *
 *	struct virtio_mmio d;
 *	if (virtio_mmio_probe(&d, registers) != 1)
 *		continue;                                     // nothing there
 *	uint64_t features;
 *	if (virtio_mmio_begin(&d))                            // reset, ACKNOWLEDGE, DRIVER
 *		give up;
 *	features = virtio_mmio_features(&d) & what_I_know;    // VIRTIO_MMIO_F_VERSION_1 among it
 *	if (virtio_mmio_accept(&d, features))                 // FEATURES_OK
 *		give up;
 *	n = virtio_mmio_queue_max(&d, 0);                     // 0: no such queue
 *	zero the areas, virtq_init(...);
 *	virtio_mmio_queue_start(&d, 0, n, desc_phys, avail_phys, used_phys);
 *	virtio_mmio_ready(&d);                                // DRIVER_OK
 *	...
 *	virtio_mmio_kick(&d, 0);
 *	in the interrupt handler: what = virtio_mmio_interrupt(&d);
 *
 * The order is that of 3.1.1 and 4.2.3. Waiting for the device is bounded. One owner for each device; virtio_mmio_interrupt may run
 * in an interrupt at any time.
 */
#ifndef VIRTIO_MMIO_H
#define VIRTIO_MMIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum virtio_mmio_register { /* 4.2.2 */
	VIRTIO_MMIO_MAGIC = 0x000,
	VIRTIO_MMIO_VERSION = 0x004,
	VIRTIO_MMIO_DEVICE_ID = 0x008,
	VIRTIO_MMIO_VENDOR_ID = 0x00c,
	VIRTIO_MMIO_DEVICE_FEATURES = 0x010,
	VIRTIO_MMIO_DEVICE_FEATURES_SEL = 0x014,
	VIRTIO_MMIO_DRIVER_FEATURES = 0x020,
	VIRTIO_MMIO_DRIVER_FEATURES_SEL = 0x024,
	VIRTIO_MMIO_QUEUE_SEL = 0x030,
	VIRTIO_MMIO_QUEUE_NUM_MAX = 0x034,
	VIRTIO_MMIO_QUEUE_NUM = 0x038,
	VIRTIO_MMIO_QUEUE_READY = 0x044,
	VIRTIO_MMIO_QUEUE_NOTIFY = 0x050,
	VIRTIO_MMIO_INTERRUPT_STATUS = 0x060,
	VIRTIO_MMIO_INTERRUPT_ACK = 0x064,
	VIRTIO_MMIO_STATUS = 0x070,
	VIRTIO_MMIO_QUEUE_DESC_LOW = 0x080,
	VIRTIO_MMIO_QUEUE_DESC_HIGH = 0x084,
	VIRTIO_MMIO_QUEUE_DRIVER_LOW = 0x090,
	VIRTIO_MMIO_QUEUE_DRIVER_HIGH = 0x094,
	VIRTIO_MMIO_QUEUE_DEVICE_LOW = 0x0a0,
	VIRTIO_MMIO_QUEUE_DEVICE_HIGH = 0x0a4,
	VIRTIO_MMIO_CONFIG_GENERATION = 0x0fc,
	VIRTIO_MMIO_CONFIG = 0x100,
};

enum {
	VIRTIO_MMIO_MAGIC_VALUE = 0x74726976, /* "virt" */
	VIRTIO_MMIO_INT_VRING = 1,            /* a buffer was used */
	VIRTIO_MMIO_INT_CONFIG = 2,           /* the config space or the status changed */

	VIRTIO_MMIO_S_ACKNOWLEDGE = 1, /* device status, 2.1 */
	VIRTIO_MMIO_S_DRIVER = 2,
	VIRTIO_MMIO_S_DRIVER_OK = 4,
	VIRTIO_MMIO_S_FEATURES_OK = 8,
	VIRTIO_MMIO_S_NEEDS_RESET = 64,
	VIRTIO_MMIO_S_FAILED = 128,

	/* How often a register is read in waiting for the device. Arbitrary; a device that needs more is taken for dead. */
	VIRTIO_MMIO_TRIES = 1000000,
};

#define VIRTIO_MMIO_F_VERSION_1 (1ull << 32)

struct virtio_mmio {
	volatile uint8_t *base;
	uint32_t device_id; /* virtio device type: 1 net, 2 block, 3 console, 4 entropy, ... */
	uint32_t vendor_id;
};

/* One access is one plain mov: hypervisors decode these instructions. */
static inline uint32_t virtio_mmio_read(const struct virtio_mmio *d, uint32_t reg)
{
#if defined(__x86_64__) || defined(__i386__)
	uint32_t v;

	__asm__ volatile("movl %1, %0" : "=r"(v) : "m"(*(volatile uint32_t *)(d->base + reg)) : "memory");
	return v;
#else
	uint32_t v = *(volatile uint32_t *)(d->base + reg);

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return v;
#endif
}

static inline void virtio_mmio_write(const struct virtio_mmio *d, uint32_t reg, uint32_t v)
{
#if defined(__x86_64__) || defined(__i386__)
	__asm__ volatile("movl %1, %0" : "=m"(*(volatile uint32_t *)(d->base + reg)) : "r"(v) : "memory");
#else
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	*(volatile uint32_t *)(d->base + reg) = v;
#endif
}

/*
 * Looks at the registers at base. Returns 1: a device; 0: none (no magic value, or device ID 0, a placeholder);
 * -1: a device of another version.
 */
static inline int virtio_mmio_probe(struct virtio_mmio *d, volatile void *base)
{
	d->base = (volatile uint8_t *)base;
	d->device_id = d->vendor_id = 0;
	if (virtio_mmio_read(d, VIRTIO_MMIO_MAGIC) != VIRTIO_MMIO_MAGIC_VALUE)
		return 0;
	if (virtio_mmio_read(d, VIRTIO_MMIO_VERSION) != 2)
		return -1;
	d->device_id = virtio_mmio_read(d, VIRTIO_MMIO_DEVICE_ID);
	if (d->device_id == 0)
		return 0;
	d->vendor_id = virtio_mmio_read(d, VIRTIO_MMIO_VENDOR_ID);
	return 1;
}

static inline uint32_t virtio_mmio_status(const struct virtio_mmio *d) { return virtio_mmio_read(d, VIRTIO_MMIO_STATUS); }

/* Sets further status bits. */
static inline void virtio_mmio_add_status(const struct virtio_mmio *d, uint32_t bits)
{
	virtio_mmio_write(d, VIRTIO_MMIO_STATUS, virtio_mmio_status(d) | bits);
}

/* Resets the device and waits until it is done (4.2.2.1). Returns 0, or -1 if the status does not become 0. */
static inline int virtio_mmio_reset(const struct virtio_mmio *d)
{
	virtio_mmio_write(d, VIRTIO_MMIO_STATUS, 0);
	for (int i = 0; i < VIRTIO_MMIO_TRIES; i++)
		if (virtio_mmio_status(d) == 0)
			return 0;
	return -1;
}

/* Reset, ACKNOWLEDGE, DRIVER: steps 1 to 3 of 3.1.1. Returns 0 or -1. */
static inline int virtio_mmio_begin(const struct virtio_mmio *d)
{
	if (virtio_mmio_reset(d))
		return -1;
	virtio_mmio_add_status(d, VIRTIO_MMIO_S_ACKNOWLEDGE);
	virtio_mmio_add_status(d, VIRTIO_MMIO_S_DRIVER);
	return 0;
}

/* Feature bits 0..63 that the device offers. */
static inline uint64_t virtio_mmio_features(const struct virtio_mmio *d)
{
	uint64_t f;

	virtio_mmio_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	f = (uint64_t)virtio_mmio_read(d, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
	virtio_mmio_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	return f | virtio_mmio_read(d, VIRTIO_MMIO_DEVICE_FEATURES);
}

/*
 * Accepts features and sets FEATURES_OK: steps 4 to 6. Returns 0, or -1 if VIRTIO_MMIO_F_VERSION_1 is not among them or the
 * device does not take them (it is then FAILED).
 */
static inline int virtio_mmio_accept(const struct virtio_mmio *d, uint64_t features)
{
	virtio_mmio_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	virtio_mmio_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
	virtio_mmio_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	virtio_mmio_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
	if (features & VIRTIO_MMIO_F_VERSION_1) {
		virtio_mmio_add_status(d, VIRTIO_MMIO_S_FEATURES_OK);
		if (virtio_mmio_status(d) & VIRTIO_MMIO_S_FEATURES_OK)
			return 0;
	}
	virtio_mmio_add_status(d, VIRTIO_MMIO_S_FAILED);
	return -1;
}

/* The largest size of a queue; 0: there is none of this index. */
static inline uint32_t virtio_mmio_queue_max(const struct virtio_mmio *d, uint32_t queue)
{
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_SEL, queue);
	return virtio_mmio_read(d, VIRTIO_MMIO_QUEUE_NUM_MAX);
}

/*
 * Gives the device a queue's areas (4.2.3.2), between virtio_mmio_accept and virtio_mmio_ready. The addresses are
 * guest-physical; the areas are zeroed. Returns 0; -1: the queue runs already, does not exist, or num is too large.
 */
static inline int virtio_mmio_queue_start(const struct virtio_mmio *d, uint32_t queue, uint32_t num, uint64_t desc, uint64_t avail,
					  uint64_t used)
{
	if (virtio_mmio_queue_max(d, queue) < num || num == 0 || virtio_mmio_read(d, VIRTIO_MMIO_QUEUE_READY) != 0)
		return -1;
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_NUM, num);
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)desc);
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(desc >> 32));
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_DRIVER_LOW, (uint32_t)avail);
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_DRIVER_HIGH, (uint32_t)(avail >> 32));
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_DEVICE_LOW, (uint32_t)used);
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_DEVICE_HIGH, (uint32_t)(used >> 32));
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_READY, 1);
	return 0;
}

/* Sets DRIVER_OK: the device is live. */
static inline void virtio_mmio_ready(const struct virtio_mmio *d) { virtio_mmio_add_status(d, VIRTIO_MMIO_S_DRIVER_OK); }

/* Notifies the device of available buffers in a queue. */
static inline void virtio_mmio_kick(const struct virtio_mmio *d, uint32_t queue)
{
	virtio_mmio_write(d, VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

/* For the interrupt handler: what happened (VIRTIO_MMIO_INT_*), acknowledged; 0: this device did not ask. */
static inline uint32_t virtio_mmio_interrupt(const struct virtio_mmio *d)
{
	uint32_t what = virtio_mmio_read(d, VIRTIO_MMIO_INTERRUPT_STATUS) & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);

	if (what)
		virtio_mmio_write(d, VIRTIO_MMIO_INTERRUPT_ACK, what);
	return what;
}

/*
 * Reads size bytes (1, 2, 4 or 8) at offset of the config space by accesses of that field's size (4.2.2.2), and again until no
 * change came between. Returns 0, or -1: another size, or the space does not come to rest.
 */
static inline int virtio_mmio_config_read(const struct virtio_mmio *d, uint32_t offset, uint32_t size, uint64_t *value)
{
	for (int i = 0; i < VIRTIO_MMIO_TRIES; i++) {
		uint32_t before = virtio_mmio_read(d, VIRTIO_MMIO_CONFIG_GENERATION);
		volatile uint8_t *p = d->base + VIRTIO_MMIO_CONFIG + offset;

		switch (size) {
		case 1:
			*value = *p;
			break;
		case 2:
			*value = *(volatile uint16_t *)p;
			break;
		case 4:
			*value = virtio_mmio_read(d, VIRTIO_MMIO_CONFIG + offset);
			break;
		case 8:
			*value = virtio_mmio_read(d, VIRTIO_MMIO_CONFIG + offset) |
				 (uint64_t)virtio_mmio_read(d, VIRTIO_MMIO_CONFIG + offset + 4) << 32;
			break;
		default:
			return -1;
		}
		if (virtio_mmio_read(d, VIRTIO_MMIO_CONFIG_GENERATION) == before)
			return 0;
	}
	return -1;
}

#endif
