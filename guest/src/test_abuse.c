/* SPDX-License-Identifier: 0BSD */
/* A driver that breaks the rules: the device must ask for a reset where the bus can say so, and work well after one. */
#include "guest.h"

static uint8_t data[SECTOR] __attribute__((aligned(16)));

/* What is wrong with the chain at head 0. */
static void outside_memory(struct queue *q)
{
	q->vq.desc[0].addr = 1ull << 60;
	q->vq.desc[0].len = 4096;
}

static void wraps_around(struct queue *q)
{
	q->vq.desc[0].addr = UINT64_MAX - 100;
	q->vq.desc[0].len = 4096;
}

static void loops(struct queue *q)
{
	q->vq.desc[0].addr = phys(data);
	q->vq.desc[0].len = 16;
	q->vq.desc[0].flags = VIRTQ_DESC_F_NEXT;
	q->vq.desc[0].next = 0;
}

static void next_is_no_descriptor(struct queue *q)
{
	loops(q);
	q->vq.desc[0].next = q->num;
}

static void readable_after_writable(struct queue *q)
{
	loops(q);
	q->vq.desc[0].flags = VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE;
	q->vq.desc[0].next = 1;
	q->vq.desc[1].addr = phys(data);
	q->vq.desc[1].len = 16;
	q->vq.desc[1].flags = 0;
}

static void indirect_of_odd_length(struct queue *q)
{
	q->vq.desc[0].addr = phys(data);
	q->vq.desc[0].len = 17;
	q->vq.desc[0].flags = VIRTQ_DESC_F_INDIRECT;
}

static void head_is_no_descriptor(struct queue *q) { q->vq.avail[2] = 0xffff; }

static void index_jumps(struct queue *q) { q->vq.avail_idx = (uint16_t)(q->num + 100); }

static const struct {
	const char *name;
	void (*prepare)(struct queue *q);
} abuses[] = {
	{"outside_memory", outside_memory},
	{"wraps_around", wraps_around},
	{"loops", loops},
	{"next_is_no_descriptor", next_is_no_descriptor},
	{"readable_after_writable", readable_after_writable},
	{"indirect_of_odd_length", indirect_of_odd_length},
	{"head_is_no_descriptor", head_is_no_descriptor},
	{"index_jumps", index_jumps},
};

bool asks_for_reset(void *arg)
{
	struct device *d = arg;

	return (virtio_mmio_status(&d->mmio) & VIRTIO_MMIO_S_NEEDS_RESET) != 0;
}

struct told {
	struct device *device;
	uint32_t before;
};

static bool told(void *arg)
{
	struct told *t = arg;

	return t->device->config_interrupts != t->before;
}

const char *abuse_name(unsigned i) { return i < sizeof(abuses) / sizeof(*abuses) ? abuses[i].name : NULL; }

bool abuse_queue(struct device *d, unsigned queue, unsigned i)
{
	struct queue *q = &d->q[queue];
	uint32_t interrupts = d->config_interrupts;

	memset(data, 0, sizeof(data));
	q->vq.avail[2] = 0;
	q->vq.avail_idx = 1;
	abuses[i].prepare(q);
	device_kick(d, queue);
	if (d->bus == BUS_LGUEST)
		return true;
	if (!wait_for(asks_for_reset, d)) {
		d->why = "the device does not ask for a reset";
		return false;
	}
	/* It comes after the status that it tells of. */
	if (!wait_for(told, &(struct told){d, interrupts})) {
		d->why = "the device asks for a reset, without an interrupt";
		return false;
	}
	return true;
}

static bool abuse(struct device *d, unsigned i) { return device_start(d, device_known(d->type)) && abuse_queue(d, 0, i); }

static void test_abuse(void)
{
	struct device *d;

	for (unsigned n = 0; (d = device_of_type(TYPE_BLOCK, n)); n++)
		for (unsigned i = 0; abuse_name(i); i++) {
			if (!abuse(d, i))
				fail(d->name, "abuse", "%s: %s", abuses[i].name, d->why);
			else if (!device_start(d, device_known(d->type)) || block_do(d, BLOCK_IN, 0, data, SECTOR, 1, false) != BLOCK_OK)
				fail(d->name, "abuse", "%s: after the reset: %s", abuses[i].name, d->why);
			else
				pass(d->name, "abuse", "%s", abuses[i].name);
		}
}

const struct test abuse_tests[] = {
	{"abuse", test_abuse, false},
	{NULL, NULL, false},
};
