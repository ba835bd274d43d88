/* SPDX-License-Identifier: 0BSD */
/* Many requests, many devices, many resets: what interrupts and life cycles are measured with. */
#include "guest.h"

enum { DEPTH_MAX = 64, LOAD = 200, DEPTH = 8, REINIT = 3 };

static struct request requests[DEPTH_MAX];
static uint8_t data[DEPTH_MAX][SECTOR] __attribute__((aligned(512)));

struct load {
	struct device *device;
	unsigned wanted, started, finished, depth, bad;
	unsigned late;          /* answers found after a sleep that their interrupt did not end */
	uint32_t interrupts;    /* at the last look */
};

/* Interrupts on all lines of a device. */
static uint32_t interrupts_of(struct device *d)
{
	uint32_t sum = 0, lines = 0;

	for (unsigned q = 0; q < d->queues; q++) {
		if (!(lines >> d->q[q].gsi & 1))
			sum += gsi_count[d->q[q].gsi];
		lines |= 1u << d->q[q].gsi;
	}
	return sum;
}

/* Takes back what is done, and starts as many as there is room for. True when all are finished, or the device failed. */
static bool advance(void *arg)
{
	struct load *l = arg;
	struct device *d = l->device;
	uint32_t interrupts = interrupts_of(d);
	unsigned before = l->finished;

	if (!block_reap(d)) {
		l->bad++;
		return true;
	}
	for (unsigned i = 0; i < l->depth; i++) {
		struct request *r = &requests[i];
		unsigned queue = i % d->queues;

		if (r->done) {
			l->bad += r->status != BLOCK_OK;
			l->finished++;
			r->done = false;
			r->device = NULL;
		}
		if (r->device || l->started == l->wanted)
			continue;
		if (block_add(d, queue, r, BLOCK_IN, i, data[i], SECTOR, 1, (d->features & VIRTQ_F_INDIRECT_DESC) != 0)) {
			r->device = NULL;
			continue;
		}
		l->started++;
	}
	for (unsigned q = 0; q < d->queues; q++)
		device_kick(d, q);
	l->late += l->finished != before && interrupts == l->interrupts;
	l->interrupts = interrupts;
	return l->finished == l->wanted;
}

static void test_load(void)
{
	struct device *d = device_of_type(TYPE_BLOCK, 0);
	uint64_t count = option_number("load", LOAD), depth = option_number("depth", DEPTH), sectors;
	struct load l = {.device = d};
	uint32_t before, lines[QUEUES_MAX];
	uint64_t kicks = 0, slept = halts, since = ticks;

	if (!d)
		return;
	if (!device_start(d, device_known(d->type))) {
		fail(d->name, "load", "%s", d->why);
		return;
	}
	l.wanted = count > UINT32_MAX ? UINT32_MAX : (unsigned)count;
	l.depth = depth < 1 ? 1 : depth > DEPTH_MAX ? DEPTH_MAX : (unsigned)depth;
	if (device_config(d, 0, 8, &sectors) && sectors < l.depth)
		l.depth = sectors ? (unsigned)sectors : 1;
	memset(requests, 0, sizeof(requests));
	l.interrupts = interrupts_of(d);
	for (unsigned q = 0; q < d->queues; q++) {
		lines[q] = gsi_count[d->q[q].gsi];
		kicks -= d->q[q].kicks;
	}
	before = interrupts_of(d);
	if (!wait_for(advance, &l) || l.bad) {
		fail(d->name, "load", "%u of %u finished, %u bad: %s", l.finished, l.wanted, l.bad, d->why);
		return;
	}
	for (unsigned q = 0; q < d->queues; q++)
		kicks += d->q[q].kicks;
	for (unsigned q = 0; q < d->queues; q++)
		info(d->name, "load", "queue=%u gsi=%u interrupts=%u used=%u", q, d->q[q].gsi, gsi_count[d->q[q].gsi] - lines[q],
		     (unsigned)d->q[q].vq.used_idx);
	pass(d->name, "load", "requests=%u depth=%u interrupts=%u late=%u kicks=%lu halts=%lu ticks=%lu", l.finished, l.depth,
	     interrupts_of(d) - before, l.late, kicks, halts - slept, ticks - since);
}

/* Each request waits for an interrupt: it must come, not only the answer. */
struct answered {
	struct request *request;
	uint32_t before;
};

static bool interrupted(void *arg)
{
	struct answered *a = arg;
	struct device *d = a->request->device;

	return !block_reap(d) || (a->request->done && gsi_count[d->q[0].gsi] != a->before);
}

static void test_interrupts(void)
{
	struct device *d;

	for (unsigned i = 0; (d = device_of_type(TYPE_BLOCK, i)); i++) {
		struct request *r = &requests[0];
		struct answered a = {r, 0};
		const char *why = NULL;

		if (!device_start(d, device_known(d->type) & ~VIRTQ_F_EVENT_IDX))
			why = d->why;
		for (unsigned k = 0; k < 4 && !why; k++) {
			a.before = gsi_count[d->q[0].gsi];
			if (block_add(d, 0, r, BLOCK_IN, 0, data[0], SECTOR, 1, false))
				why = "the queue does not take the request";
			device_kick(d, 0);
			if (!why && !wait_for(interrupted, &a))
				why = r->done ? "the answer came, its interrupt did not" : "no answer in time";
			if (!why && !r->done)
				why = d->why;
		}
		if (why)
			fail(d->name, "interrupts", "%s", why);
		else
			pass(d->name, "interrupts", "gsi=%u count=%u", d->q[0].gsi, gsi_count[d->q[0].gsi]);
	}
}

/* A request on every disk at once. */
static bool all_done(void *arg)
{
	unsigned n = *(unsigned *)arg, done = 0;

	for (unsigned i = 0; i < n; i++) {
		if (!block_reap(requests[i].device))
			return true;
		done += requests[i].done;
	}
	return done == n;
}

static void test_together(void)
{
	struct device *d;
	unsigned n = 0, bad = 0;

	for (; n < DEPTH_MAX && (d = device_of_type(TYPE_BLOCK, n)); n++) {
		if (!device_start(d, device_known(d->type)) ||
		    block_add(d, 0, &requests[n], BLOCK_IN, 0, data[n], SECTOR, 2, false)) {
			fail(d->name, "together", "%s", d->why);
			return;
		}
	}
	if (n < 2)
		return;
	for (unsigned i = 0; i < n; i++)
		device_kick(requests[i].device, 0);
	wait_for(all_done, &n);
	for (unsigned i = 0; i < n; i++)
		bad += !requests[i].done || requests[i].status != BLOCK_OK;
	if (bad)
		fail(NULL, "together", "%u of %u disks did not answer well", bad, n);
	else
		pass(NULL, "together", "disks=%u", n);
}

/* Reset and start anew, each time with requests under way that the reset must stop. */
static void test_reinit(void)
{
	uint64_t rounds = option_number("reinit", REINIT);

	for (unsigned i = 0; i < device_count; i++) {
		struct device *d = &devices[i];
		bool ok = true;

		for (uint64_t k = 0; k < rounds && ok; k++) {
			ok = device_start(d, device_known(d->type));
			if (!ok || d->type != TYPE_BLOCK)
				continue;
			ok = block_do(d, BLOCK_IN, 0, data[0], SECTOR, 1, false) == BLOCK_OK;
			for (unsigned n = 0; n < 4 && ok; n++)
				ok = block_add(d, 0, &requests[n], BLOCK_IN, 0, data[n], SECTOR, 1, false) == 0;
			device_kick(d, 0);
		}
		ok = ok && device_start(d, device_known(d->type));
		if (ok && d->type == TYPE_BLOCK)
			ok = block_do(d, BLOCK_IN, 0, data[0], SECTOR, 1, false) == BLOCK_OK;
		if (ok)
			pass(d->name, "reinit", "rounds=%lu", rounds);
		else
			fail(d->name, "reinit", "%s", d->why);
	}
}

/*
 * As if another kernel took over without a word (kexec): nothing is remembered of devices that run, with buffers that they hold.
 * The console must still write, and disks still read.
 */
static void test_takeover(void)
{
	struct device *d = device_of_type(TYPE_BLOCK, 0);

	if (d && d->live) {
		for (unsigned n = 0; n < 4; n++)
			(void)block_add(d, 0, &requests[n], BLOCK_IN, 0, data[n], SECTOR, 1, false);
		device_kick(d, 0);
	}
	memset(devices, 0, sizeof(devices));
	devices_scan();
	for (unsigned i = 0; i < device_count; i++) {
		d = &devices[i];
		if (!device_start(d, device_known(d->type)))
			fail(d->name, "takeover", "%s", d->why);
		else if (d->type == TYPE_BLOCK && block_do(d, BLOCK_IN, 0, data[0], SECTOR, 1, false) != BLOCK_OK)
			fail(d->name, "takeover", "read: %s", d->why);
		else
			pass(d->name, "takeover", "");
	}
}

/* reboots=N: counts in the first disk's last sector, and reboots until the count is N. */
static void test_reboots(void)
{
	static const char magic[] = "virtplug reboots";
	struct device *d = device_of_type(TYPE_BLOCK, 0);
	uint64_t wanted = option_number("reboots", 0), sectors, *count = (uint64_t *)(data[0] + sizeof(magic) - 1);

	if (!wanted)
		return;
	if (!d || !device_start(d, device_known(d->type)) || !device_config(d, 0, 8, &sectors) || sectors == 0 ||
	    block_do(d, BLOCK_IN, sectors - 1, data[0], SECTOR, 1, false) != BLOCK_OK) {
		fail(NULL, "reboots", "no disk whose last sector can be read");
		return;
	}
	if (memcmp(data[0], magic, sizeof(magic) - 1) != 0) {
		memset(data[0], 0, SECTOR);
		memcpy(data[0], magic, sizeof(magic) - 1);
	}
	if (*count >= wanted) {
		pass(NULL, "reboots", "count=%lu", *count);
		return;
	}
	++*count;
	if (block_do(d, BLOCK_OUT, sectors - 1, data[0], SECTOR, 1, false) != BLOCK_OK) {
		fail(NULL, "reboots", "the last sector of %s cannot be written", d->name);
		return;
	}
	info(NULL, "reboots", "count=%lu of %lu", *count, wanted);
	end("reboot");
}

const struct test load_tests[] = {
	{"interrupts", test_interrupts, true},
	{"together", test_together, true},
	{"load", test_load, true},
	{"reinit", test_reinit, true},
	{"takeover", test_takeover, true},
	{"reboots", test_reboots, true},
	{NULL, NULL, false},
};
