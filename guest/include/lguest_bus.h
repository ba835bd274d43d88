/* SPDX-License-Identifier: 0BSD */
/*
 * lguest_bus.h: finding and driving virtio devices on the lguest bus. One header, no library, no global state.
 *
 * The bus is one page of guest memory just above the highest RAM, with a packed record for each device:
 *
 *	type u8, num_vq u8, feature_len u8, config_len u8, status u8
 *	num_vq times: num u16 (entries), irq u16, pfn u32 (page number of the ring)
 *	host features, feature_len bytes: what the device offers
 *	guest features, feature_len bytes: what the driver accepts
 *	config, config_len bytes
 *
 * A type of 0 ends the list. It is legacy virtio: no VIRTIO_F_VERSION_1, native byte order, rings in one piece
 * (virtq_init_legacy with LGUEST_VRING_ALIGN), allocated and, at each reset, zeroed by the host. Where lguest had a hypercall, KVM
 * has ports:
 *
 *	base + 0x0  DOORBELL  value = pfn of a ring: its available buffer notification
 *	base + 0x4  NOTIFY    value = low half of a guest-physical address: tells the host to look at that device's record
 *	base + 0x8  HIGH      value = upper half for the next NOTIFY of the same CPU
 *
 * How a device is brought up:
 *
 *	struct lguest_bus bus = {page, page_phys, LGUEST_PORT};
 *	struct lguest_device d;
 *	for (uint32_t at = 0; (r = lguest_next(&bus, &at, &d)) == 1;) {
 *		lguest_reset(&bus, &d);
 *		lguest_set_status(&d, LGUEST_S_ACKNOWLEDGE);
 *		lguest_set_status(&d, LGUEST_S_ACKNOWLEDGE | LGUEST_S_DRIVER);
 *		lguest_accept(&bus, &d, lguest_features(&d) & what_I_know);
 *		for (i = 0; i < d.num_vq; i++) {
 *			struct lguest_vq v = lguest_vq(&d, i);
 *			if (!lguest_vq_ok(&bus, v))
				lguest_fail(&bus, &d), give up;
			map the ring at v.pfn * 4096, virtq_init_legacy(...), take interrupt v.irq
 *		}
 *		lguest_set_status(&d, LGUEST_S_ACKNOWLEDGE | LGUEST_S_DRIVER | LGUEST_S_DRIVER_OK);
 *	}
 *
 * Page and rings are ordinary memory, though no memory map has them: map them cached (write-back).
 *
 * The page is not trusted: nothing here reads or writes outside its 4096 bytes, whatever they hold. A ring's address and
 * size are for the caller to check (lguest_vq_ok). There is no interrupt for changes of the config space.
 * Not safe for concurrent use, other than on different devices. Needs virtq.h only for the rings.
 */
#ifndef LGUEST_BUS_H
#define LGUEST_BUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	LGUEST_PAGE = 4096,
	LGUEST_VRING_ALIGN = 4096,
	LGUEST_PAGES = 257,    /* the device page and at most 256 pages of rings above it */
	LGUEST_DESC_BYTES = 5, /* of a record, before its vqconfigs */
	LGUEST_VQ_BYTES = 8,
	LGUEST_PORT = 0x1F10, /* base of the ports; ACPI device VPLG0001 tells it too */

	LGUEST_S_ACKNOWLEDGE = 1, /* device status, VIRTIO 1.2, 2.1 */
	LGUEST_S_DRIVER = 2,
	LGUEST_S_DRIVER_OK = 4,
	LGUEST_S_FAILED = 128,
};

/*
 * Interrupts are numbered 1..31. On virtplug's KVM machine they are edge-triggered, active high, on this global system
 * interrupt (input of the IOAPIC; below 16 also line of the PICs). ACPI device VPLG0001 lists them in order.
 */
static inline unsigned lguest_gsi(uint16_t irq) { return 5u + (irq - 1u) % 18u; }

struct lguest_bus {
	volatile uint8_t *page; /* where the page is mapped */
	uint64_t phys;          /* its guest-physical address */
	uint16_t port;
};

/* A record: what may not change is copied out of the page. */
struct lguest_device {
	volatile uint8_t *record; /* in the page */
	uint32_t offset;          /* of the record in the page */
	uint8_t type;             /* virtio device type: 1 net, 2 block, 3 console, 4 entropy, ... */
	uint8_t num_vq, feature_len, config_len;
};

struct lguest_vq {
	uint16_t num, irq;
	uint32_t pfn;
};

#ifndef LGUEST_OUTL
static inline void lguest_outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
/* Define LGUEST_OUTL before including this file to have port writes done by something else. */
#define LGUEST_OUTL(port, value) lguest_outl(port, value)
#endif

/* The length of d's record. At most 5 + 255 * 8 + 3 * 255. */
static inline uint32_t lguest_record_bytes(const struct lguest_device *d)
{
	return LGUEST_DESC_BYTES + LGUEST_VQ_BYTES * (uint32_t)d->num_vq + 2u * d->feature_len + d->config_len;
}

/*
 * Reads the record at offset *at (0 for the first) and moves *at behind it. Returns 1; 0: end of the list;
 * -1: the record does not fit into the page, and no later one can be found.
 */
static inline int lguest_next(const struct lguest_bus *bus, uint32_t *at, struct lguest_device *d)
{
	volatile uint8_t *r = bus->page + *at;

	if (*at >= LGUEST_PAGE)
		return 0;
	d->type = r[0];
	if (d->type == 0)
		return 0;
	if (LGUEST_PAGE - *at < LGUEST_DESC_BYTES)
		return -1;
	d->record = r;
	d->offset = *at;
	d->num_vq = r[1];
	d->feature_len = r[2];
	d->config_len = r[3];
	if (lguest_record_bytes(d) > LGUEST_PAGE - *at)
		return -1;
	*at += lguest_record_bytes(d);
	return 1;
}

/*
 * How many devices the page has; -1: a record does not fit, as where there is no memory and loads give all ones. For
 * drivers that look at the top of RAM without having been told that the bus is there.
 */
static inline int lguest_count(const struct lguest_bus *bus)
{
	struct lguest_device d;
	uint32_t at = 0;
	int n = 0, r;

	while ((r = lguest_next(bus, &at, &d)) == 1)
		n++;
	return r < 0 ? -1 : n;
}

/* Queue i's ring; all zero if there is no such queue. */
static inline struct lguest_vq lguest_vq(const struct lguest_device *d, unsigned i)
{
	struct lguest_vq v = {0, 0, 0};
	const volatile uint8_t *p = d->record + LGUEST_DESC_BYTES + LGUEST_VQ_BYTES * i;

	if (i >= d->num_vq)
		return v;
	v.num = (uint16_t)(p[0] | p[1] << 8);
	v.irq = (uint16_t)(p[2] | p[3] << 8);
	v.pfn = p[4] | (uint32_t)p[5] << 8 | (uint32_t)p[6] << 16 | (uint32_t)p[7] << 24;
	return v;
}

/* Whether v can be used: a power of two, an interrupt that exists, and the whole ring in the bus's pages above the device page. */
static inline bool lguest_vq_ok(const struct lguest_bus *bus, struct lguest_vq v)
{
	uint64_t first = bus->phys / LGUEST_PAGE + 1, pages;
	/* Descriptors and available ring, then the used ring on a page of its own. */
	uint64_t bytes = ((16ull * v.num + 6 + 2ull * v.num + LGUEST_VRING_ALIGN - 1) & ~(LGUEST_VRING_ALIGN - 1ull)) + 6 + 8ull * v.num;

	pages = (bytes + LGUEST_PAGE - 1) / LGUEST_PAGE;
	return v.num != 0 && (v.num & (v.num - 1)) == 0 && v.irq >= 1 && v.irq <= 31 && v.pfn >= first &&
	       v.pfn - first + pages <= LGUEST_PAGES - 1;
}

/* The feature bits 0..31 that the device offers. The bus can carry no others to a legacy driver. */
static inline uint32_t lguest_features(const struct lguest_device *d)
{
	const volatile uint8_t *p = d->record + LGUEST_DESC_BYTES + LGUEST_VQ_BYTES * (uint32_t)d->num_vq;
	uint32_t f = 0;

	for (unsigned i = 0; i < 4 && i < d->feature_len; i++)
		f |= (uint32_t)p[i] << (8 * i);
	return f;
}

static inline uint8_t lguest_status(const struct lguest_device *d) { return d->record[4]; }

/*
 * Tells the host to look at d's record: its status is 0, FAILED, or the features are final. Done when this returns.
 * Of an address from 4 GiB on the upper half goes first, and counts for the same CPU: the caller must not be moved to
 * another one in between, and interrupt handlers must not call this.
 */
static inline void lguest_notify(const struct lguest_bus *bus, const struct lguest_device *d)
{
	uint64_t addr = bus->phys + d->offset;

	if (addr >> 32)
		LGUEST_OUTL(bus->port + 8, (uint32_t)(addr >> 32));
	LGUEST_OUTL(bus->port + 4, (uint32_t)addr);
}

/* Notes progress; the host looks at it only when notified. Not for 0 and FAILED. */
static inline void lguest_set_status(const struct lguest_device *d, uint8_t status) { d->record[4] = status; }

/* Resets the device: its rings are zeroed, nothing is in flight any more, accepted features are forgotten. */
static inline void lguest_reset(const struct lguest_bus *bus, const struct lguest_device *d)
{
	d->record[4] = 0;
	lguest_notify(bus, d);
}

/* Gives up on the device. */
static inline void lguest_fail(const struct lguest_bus *bus, const struct lguest_device *d)
{
	d->record[4] = (uint8_t)(d->record[4] | LGUEST_S_FAILED);
	lguest_notify(bus, d);
}

/*
 * Accepts features, of those offered, and tells the host that they are final: it starts the device. Once after each reset,
 * with ACKNOWLEDGE and DRIVER set, before the rings are used. Returns -1 and does nothing if the status is 0, for that would
 * be a reset.
 */
static inline int lguest_accept(const struct lguest_bus *bus, const struct lguest_device *d, uint32_t features)
{
	volatile uint8_t *p = d->record + LGUEST_DESC_BYTES + LGUEST_VQ_BYTES * (uint32_t)d->num_vq + d->feature_len;

	if (lguest_status(d) == 0)
		return -1;
	features &= lguest_features(d);
	for (unsigned i = 0; i < d->feature_len; i++)
		p[i] = (uint8_t)(i < 4 ? features >> (8 * i) : 0);
	lguest_notify(bus, d);
	return 0;
}

/* The doorbell of the ring at pfn. */
static inline void lguest_kick(const struct lguest_bus *bus, uint32_t pfn) { LGUEST_OUTL(bus->port, pfn); }

static inline volatile uint8_t *lguest_config(const struct lguest_device *d)
{
	return d->record + LGUEST_DESC_BYTES + LGUEST_VQ_BYTES * (uint32_t)d->num_vq + 2u * d->feature_len;
}

/* Copies len bytes at offset out of the config space; false if they are not all there. Little-endian, unaligned. */
static inline bool lguest_config_read(const struct lguest_device *d, uint32_t offset, void *to, uint32_t len)
{
	const volatile uint8_t *p = lguest_config(d);

	if (offset > d->config_len || len > d->config_len - offset)
		return false;
	for (uint32_t i = 0; i < len; i++)
		((uint8_t *)to)[i] = p[offset + i];
	return true;
}

/* Writes into the config space. The host is not told: what a device does with it is between it and the driver. */
static inline bool lguest_config_write(const struct lguest_device *d, uint32_t offset, const void *from, uint32_t len)
{
	volatile uint8_t *p = lguest_config(d);

	if (offset > d->config_len || len > d->config_len - offset)
		return false;
	for (uint32_t i = 0; i < len; i++)
		p[offset + i] = ((const uint8_t *)from)[i];
	return true;
}

#endif
