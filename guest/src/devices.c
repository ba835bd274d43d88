/* SPDX-License-Identifier: 0BSD */
/* Devices of both buses: found, started, kicked, reset. */
#include "guest.h"

enum {
	MMIO_BASE = 0xd0000000, /* of virtplug's KVM machine, where no command line tells: one device a page, without gaps */
	MMIO_STRIDE = 0x1000,
	QUEUE_SIZE_MAX = 256, /* arbitrary: what the program has memory for with 64 queues */
};

struct device devices[DEVICES_MAX];
unsigned device_count;
static struct lguest_bus bus;

const char *type_name(uint32_t type)
{
	switch (type) {
	case TYPE_NET:
		return "net";
	case TYPE_BLOCK:
		return "disk";
	case TYPE_CONSOLE:
		return "console";
	case TYPE_ENTROPY:
		return "rng";
	}
	return "device";
}

uint64_t device_known(uint32_t type)
{
	uint64_t ring = VIRTQ_F_INDIRECT_DESC | VIRTQ_F_EVENT_IDX | VIRTIO_MMIO_F_VERSION_1;

	if (type == TYPE_NET)
		return ring | NET_KNOWN;
	if (type == TYPE_BLOCK)
		return ring | BLOCK_F_RO | BLOCK_F_FLUSH | BLOCK_F_MQ | BLOCK_F_DISCARD | BLOCK_F_WRITE_ZEROES;
	return ring;
}

struct device *device_of_type(uint32_t type, unsigned n)
{
	for (unsigned i = 0; i < device_count; i++)
		if (devices[i].type == type && n-- == 0)
			return &devices[i];
	return NULL;
}

static struct device *add(uint32_t type, enum bus on)
{
	struct device *d = &devices[device_count];
	unsigned same_type = 0;

	if (device_count == DEVICES_MAX) {
		fail(NULL, "scan", "more than %u devices", DEVICES_MAX);
		return NULL;
	}
	while (device_of_type(type, same_type))
		same_type++;
	device_count++;
	d->bus = on;
	d->type = type;
	d->live = false;
	d->config_interrupts = 0;
	d->queues = 0;
	d->features = d->offered = 0;
	d->why = "";
	format(d->name, sizeof(d->name), "%s%u", type_name(type), same_type);
	return d;
}

static unsigned scan_lguest(void)
{
	const char *at = option("lguest", 0), *end;
	unsigned found = 0;
	uint32_t offset = 0;
	struct lguest_device l;
	uint64_t page = boot.top;

	if (at && same(at, "off"))
		return 0;
	if (at && (!parse_number(at, &end, &page) || *end)) {
		fail(NULL, "option", "lguest=%s: not an address", at);
		return 0;
	}
	if (page == 0 || page % LGUEST_PAGE != 0 || !map(page, (uint64_t)LGUEST_PAGES * LGUEST_PAGE))
		return 0;
	bus = (struct lguest_bus){(volatile uint8_t *)page, page, LGUEST_PORT};
	if (lguest_count(&bus) < 0) {
		if (at)
			fail(NULL, "scan", "lguest page 0x%lx: a record does not fit", page);
		return 0;
	}
	while (lguest_next(&bus, &offset, &l) == 1) {
		struct device *d = add(l.type, BUS_LGUEST);

		if (!d)
			break;
		found++;
		d->lguest = l;
		info(d->name, "found", "bus=lguest offset=0x%x type=%u queues=%u features=0x%x config=%u", l.offset, (unsigned)l.type,
		     (unsigned)l.num_vq, lguest_features(&l), (unsigned)l.config_len);
	}
	return found;
}

static bool add_mmio(uint64_t base, unsigned gsi)
{
	struct virtio_mmio m;
	struct device *d;
	void *registers = map(base, MMIO_STRIDE);
	int r = registers ? virtio_mmio_probe(&m, registers) : -1;

	if (r < 0)
		fail(NULL, "scan", "virtio-mmio at 0x%lx: a version other than 2, or out of reach", base);
	if (r <= 0 || !(d = add(m.device_id, BUS_MMIO)))
		return false;
	d->mmio = m;
	d->gsi = gsi;
	info(d->name, "found", "bus=mmio base=0x%lx type=%u gsi=%u vendor=0x%x", base, m.device_id, gsi, m.vendor_id);
	return true;
}

/* ADDRESS:GSI,… */
static unsigned scan_listed(const char *s)
{
	unsigned found = 0;
	uint64_t base, gsi;

	for (;; s++) {
		if (!parse_number(s, &s, &base) || *s++ != ':' || !parse_number(s, &s, &gsi) || (*s && *s != ',')) {
			fail(NULL, "option", "virtio_mmio: want ADDRESS:GSI,...");
			return found;
		}
		found += add_mmio(base, (unsigned)gsi);
		if (!*s)
			return found;
	}
}

/* SIZE@BASE:GSI, as Linux has it; one option for each device. */
static unsigned scan_linux_options(void)
{
	unsigned found = 0;
	uint64_t size, base, gsi;
	const char *s;

	for (unsigned i = 0; (s = option("virtio_mmio.device", i)); i++) {
		if (!parse_number(s, &s, &size) || *s++ != '@' || !parse_number(s, &s, &base) || *s++ != ':' ||
		    !parse_number(s, &s, &gsi))
			fail(NULL, "option", "virtio_mmio.device: want SIZE@ADDRESS:GSI");
		else
			found += add_mmio(base, (unsigned)gsi);
	}
	return found;
}

void devices_scan(void)
{
	const char *list = option("virtio_mmio", 0);
	unsigned lguest, mmio = 0;

	device_count = 0;
	lguest = scan_lguest();
	if (option("virtio_mmio.device", 0))
		mmio = scan_linux_options();
	else if (list && !same(list, "off"))
		mmio = scan_listed(list);
	else if (!list)
		while (mmio < DEVICES_MAX && add_mmio(MMIO_BASE + (uint64_t)mmio * MMIO_STRIDE, lguest_gsi((uint16_t)(mmio + 1))))
			mmio++;
	if (device_count)
		pass(NULL, "scan", "lguest=%u mmio=%u", lguest, mmio);
	else
		fail(NULL, "scan", "no devices: neither an lguest page at 0x%lx nor virtio-mmio windows at 0x%x", boot.top, MMIO_BASE);
}

bool device_reset(struct device *d)
{
	d->live = false;
	if (d->bus == BUS_LGUEST)
		lguest_reset(&bus, &d->lguest);
	else if (virtio_mmio_reset(&d->mmio)) {
		d->why = "the status does not become 0 after a reset";
		return false;
	}
	return true;
}

/* How many queues of those that the device has the program uses. */
static unsigned queues_wanted(struct device *d)
{
	uint64_t n;

	switch (d->type) {
	case TYPE_BLOCK:
		if ((d->features & BLOCK_F_MQ) && device_config(d, 34, 2, &n) && n)
			return n < BLOCK_QUEUES_MAX ? (unsigned)n : BLOCK_QUEUES_MAX;
		return 1;
	case TYPE_ENTROPY:
		return 1;
	case TYPE_NET:
		n = 1;
		if (d->features & VIRTIO_NET_F_MQ)
			device_config(d, VIRTIO_NET_CONFIG_PAIRS, 2, &n);
		return 2 * (unsigned)n + ((d->features & VIRTIO_NET_F_CTRL_VQ) != 0);
	}
	return 2;
}

/* Those of the features offered that the program can use: a network device may have more queue pairs than there is room for here. */
static uint64_t usable(struct device *d, uint64_t features)
{
	uint64_t pairs;

	if (d->type != TYPE_NET || !(features & VIRTIO_NET_F_MQ))
		return features;
	if (!(features & VIRTIO_NET_F_CTRL_VQ) || !device_config(d, VIRTIO_NET_CONFIG_PAIRS, 2, &pairs) || pairs < 1 ||
	    2 * pairs + 1 > QUEUES_MAX)
		features &= ~VIRTIO_NET_F_MQ;
	return features;
}

static bool queue_room(struct queue *q, uint16_t num, size_t ring_bytes)
{
	if (q->room >= num)
		return true;
	q->slots = alloc(num * sizeof(*q->slots), 16);
	q->memory = ring_bytes ? alloc(ring_bytes, 4096) : NULL;
	if (!q->slots || (ring_bytes && !q->memory))
		return false;
	q->room = num;
	return true;
}

static bool queue_start_mmio(struct device *d, unsigned i)
{
	struct queue *q = &d->q[i];
	uint64_t limit = option_number("qsize", QUEUE_SIZE_MAX);
	uint32_t num = virtio_mmio_queue_max(&d->mmio, i);
	size_t avail, used, bytes;

	while (num > limit || num > QUEUE_SIZE_MAX)
		num /= 2;
	if (num == 0 || (num & (num - 1)) != 0) {
		d->why = "a queue of size 0, or not a power of two";
		return false;
	}
	q->num = (uint16_t)num;
	avail = virtq_desc_bytes(q->num);
	used = (avail + virtq_avail_bytes(q->num) + 3) & ~3ull;
	bytes = used + virtq_used_bytes(q->num);
	if (!queue_room(q, q->num, bytes)) {
		d->why = "no memory left for a queue";
		return false;
	}
	virtq_clear(q->memory, bytes);
	virtq_init(&q->vq, q->num, q->memory, q->memory + avail, q->memory + used, q->slots, d->features & VIRTQ_F_EVENT_IDX);
	q->gsi = d->gsi;
	if (virtio_mmio_queue_start(&d->mmio, i, num, phys(q->memory), phys(q->memory + avail), phys(q->memory + used))) {
		d->why = "a queue is ready already after a reset";
		return false;
	}
	return true;
}

static bool queue_start_lguest(struct device *d, unsigned i)
{
	struct queue *q = &d->q[i];
	struct lguest_vq v = lguest_vq(&d->lguest, i);
	uint8_t *ring;

	if (!lguest_vq_ok(&bus, v)) {
		d->why = "a queue whose size, interrupt or page cannot be";
		return false;
	}
	ring = (uint8_t *)((uint64_t)v.pfn * LGUEST_PAGE);
	q->num = v.num;
	q->pfn = v.pfn;
	q->gsi = lguest_gsi(v.irq);
	if (!queue_room(q, q->num, 0)) {
		d->why = "no memory left for a queue";
		return false;
	}
	for (size_t at = 0; at < virtq_legacy_bytes(q->num, LGUEST_VRING_ALIGN) - 3; at += 8)
		if (*(volatile uint64_t *)(ring + at)) {
			d->why = "a ring is not zero after a reset";
			return false;
		}
	virtq_init_legacy(&q->vq, q->num, ring, LGUEST_VRING_ALIGN, q->slots, d->features & VIRTQ_F_EVENT_IDX);
	return true;
}

static bool negotiate_lguest(struct device *d, uint64_t want)
{
	lguest_set_status(&d->lguest, LGUEST_S_ACKNOWLEDGE);
	lguest_set_status(&d->lguest, LGUEST_S_ACKNOWLEDGE | LGUEST_S_DRIVER);
	d->offered = lguest_features(&d->lguest);
	d->features = usable(d, d->offered & want);
	if (lguest_accept(&bus, &d->lguest, (uint32_t)d->features)) {
		d->why = "the status became 0 by itself";
		return false;
	}
	return true;
}

static bool negotiate_mmio(struct device *d, uint64_t want)
{
	virtio_mmio_add_status(&d->mmio, VIRTIO_MMIO_S_ACKNOWLEDGE);
	virtio_mmio_add_status(&d->mmio, VIRTIO_MMIO_S_DRIVER);
	d->offered = virtio_mmio_features(&d->mmio);
	d->features = usable(d, d->offered & (want | VIRTIO_MMIO_F_VERSION_1));
	if (virtio_mmio_accept(&d->mmio, d->features)) {
		d->why = "it does not accept the features";
		return false;
	}
	return true;
}

bool device_start(struct device *d, uint64_t want)
{
	bool on_lguest = d->bus == BUS_LGUEST;

	if (!device_reset(d) || !(on_lguest ? negotiate_lguest(d, want) : negotiate_mmio(d, want)))
		return false;
	d->queues = queues_wanted(d);
	if (d->queues > QUEUES_MAX) {
		d->why = "its configuration has changed meanwhile";
		return false;
	}
	if (on_lguest && d->queues > d->lguest.num_vq)
		d->queues = d->lguest.num_vq;
	for (unsigned i = 0; i < d->queues; i++) {
		if (!(on_lguest ? queue_start_lguest(d, i) : queue_start_mmio(d, i)))
			return false;
		if (!gsi_enable(d->q[i].gsi)) {
			d->why = "its interrupt line does not exist on this interrupt controller";
			return false;
		}
	}
	d->live = true;
	if (on_lguest)
		lguest_set_status(&d->lguest, LGUEST_S_ACKNOWLEDGE | LGUEST_S_DRIVER | LGUEST_S_DRIVER_OK);
	else
		virtio_mmio_ready(&d->mmio);
	return true;
}

void device_kick(struct device *d, unsigned queue)
{
	struct queue *q = &d->q[queue];

	if (!virtq_publish(&q->vq))
		return;
	q->kicks++;
	if (d->bus == BUS_LGUEST)
		lguest_kick(&bus, q->pfn);
	else
		virtio_mmio_kick(&d->mmio, queue);
}

bool device_config(struct device *d, uint32_t offset, uint32_t size, uint64_t *v)
{
	*v = 0;
	if (d->bus == BUS_LGUEST)
		return lguest_config_read(&d->lguest, offset, v, size);
	return virtio_mmio_config_read(&d->mmio, offset, size, v) == 0;
}

void devices_interrupt(unsigned gsi)
{
	for (unsigned i = 0; i < device_count; i++) {
		struct device *d = &devices[i];

		if (d->bus == BUS_MMIO && d->gsi == gsi && (virtio_mmio_interrupt(&d->mmio) & VIRTIO_MMIO_INT_CONFIG))
			d->config_interrupts++;
	}
}
