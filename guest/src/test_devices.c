/* SPDX-License-Identifier: 0BSD */
/* Tests of consoles, sources of random data, and of what all devices have. */
#include "guest.h"

enum { LINE = 256, RECEIVE_BUFFERS = 4, RECEIVE_BYTES = 64, RANDOM_BYTES = 64 };

/* Starts every device with all features that the program knows. */
static void test_start(void)
{
	for (unsigned i = 0; i < device_count; i++) {
		struct device *d = &devices[i];

		if (!device_start(d, device_known(d->type))) {
			fail(d->name, "start", "%s", d->why);
			continue;
		}
		pass(d->name, "start", "offered=0x%lx accepted=0x%lx queues=%u size=%u gsi=%u", d->offered, d->features, d->queues,
		     d->queues ? d->q[0].num : 0u, d->queues ? d->q[0].gsi : 0u);
	}
}

struct transfer {
	struct device *device;
	unsigned queue;
	uint32_t len;
	int result; /* of virtq_get */
};

static bool transferred(void *arg)
{
	struct transfer *t = arg;
	void *token;

	do
		t->result = virtq_get(&t->device->q[t->queue].vq, &token, &t->len);
	while (t->result == 0 && virtq_enable_calls(&t->device->q[t->queue].vq, 1));
	return t->result != 0;
}

/* One chain of n buffers, all the device's to read or all its to write, and waits for it. False: d->why tells. */
static bool transfer(struct device *d, unsigned queue, const struct virtq_buf *b, uint16_t n, bool device_writes, uint32_t *len)
{
	struct transfer t = {d, queue, 0, 0};

	if (virtq_add(&d->q[queue].vq, b, device_writes ? 0 : n, device_writes ? n : 0, NULL)) {
		d->why = "the queue does not take a buffer";
		return false;
	}
	device_kick(d, queue);
	if (!wait_for(transferred, &t) || t.result < 0) {
		d->why = t.result < 0 ? "the device broke the queue" : "no answer in time";
		return false;
	}
	*len = t.len;
	return true;
}

static bool console_write(struct device *d, const char *s, size_t n)
{
	/* Two pieces: a console must not care. */
	struct virtq_buf b[2] = {{phys(s), (uint32_t)(n / 2)}, {phys(s) + n / 2, (uint32_t)(n - n / 2)}};
	uint32_t len;

	return n > 1 ? transfer(d, 1, b, 2, false, &len) : transfer(d, 1, b + 1, 1, false, &len);
}

static void test_console(void)
{
	struct device *d;

	for (unsigned i = 0; (d = device_of_type(TYPE_CONSOLE, i)); i++) {
		static char text[LINE];
		size_t n = format(text, sizeof(text), "hello from %s on the %s bus\n", d->name,
				  d->bus == BUS_LGUEST ? "lguest" : "virtio-mmio");

		if (!d->live)
			continue;
		if (console_write(d, text, n))
			pass(d->name, "write", "bytes=%lu", (uint64_t)n);
		else
			fail(d->name, "write", "%s", d->why);
	}
}

/* Reads one line from the console and answers. */
struct input {
	struct device *device;
	char line[LINE];
	size_t n;
	bool end, broken;
};
static char receive[RECEIVE_BUFFERS][RECEIVE_BYTES];

static bool post(struct device *d, char *buffer)
{
	struct virtq_buf b = {phys(buffer), RECEIVE_BYTES};

	return virtq_add(&d->q[0].vq, &b, 0, 1, buffer) == 0;
}

static bool line_read(void *arg)
{
	struct input *in = arg;
	void *token;
	uint32_t len;
	int r = 0;

	while (!in->end && !in->broken) {
		char *buffer;

		r = virtq_get(&in->device->q[0].vq, &token, &len);
		if (r == 0 && virtq_enable_calls(&in->device->q[0].vq, 1))
			continue;
		if (r != 1)
			break;
		buffer = token;

		for (uint32_t i = 0; i < len && !in->end; i++) {
			in->end = buffer[i] == '\n' || buffer[i] == '\r';
			if (!in->end && in->n < LINE - 1)
				in->line[in->n++] = buffer[i] >= ' ' && buffer[i] <= '~' ? buffer[i] : '?';
		}
		in->broken |= !post(in->device, buffer);
	}
	in->broken |= r < 0;
	if (!in->end)
		device_kick(in->device, 0);
	in->line[in->n] = 0;
	return in->end || in->broken;
}

static void test_input(void)
{
	static const char prompt[] = "type a line: ";
	static struct input in;
	static char text[LINE + 32];
	struct device *d = device_of_type(TYPE_CONSOLE, 0);

	if (!d || !d->live) {
		fail(NULL, "input", "no console");
		return;
	}
	in = (struct input){.device = d};
	for (unsigned i = 0; i < RECEIVE_BUFFERS; i++)
		in.broken |= !post(d, receive[i]);
	device_kick(d, 0);
	info(d->name, "input", "waits for a line");
	if (!console_write(d, prompt, sizeof(prompt) - 1) || !wait_for(line_read, &in) || in.broken)
		fail(d->name, "input", "%s", in.broken ? "the queue broke" : "no line in time");
	else if (!console_write(d, text, format(text, sizeof(text), "you typed: %s\n", in.line)))
		fail(d->name, "input", "answer: %s", d->why);
	else
		pass(d->name, "input", "line=\"%s\"", in.line);
	/* The receive buffers are still the device's. */
	if (!device_start(d, device_known(d->type)))
		fail(d->name, "input", "start again: %s", d->why);
}

static bool random_read(struct device *d, uint8_t *to)
{
	struct virtq_buf b = {phys(to), RANDOM_BYTES};
	uint32_t n = 0, len;

	/* A device may give fewer bytes than asked for (5.4.6.1), but not none. */
	while (n < RANDOM_BYTES) {
		b.addr = phys(to) + n;
		b.len = RANDOM_BYTES - n;
		if (!transfer(d, 0, &b, 1, true, &len))
			return false;
		if (len == 0) {
			d->why = "a buffer came back with nothing in it";
			return false;
		}
		n += len;
	}
	return true;
}

static void test_rng(void)
{
	static uint8_t a[RANDOM_BYTES], b[RANDOM_BYTES];
	struct device *d;

	for (unsigned i = 0; (d = device_of_type(TYPE_ENTROPY, i)); i++) {
		bool all_equal = true;

		if (!d->live)
			continue;
		if (!random_read(d, a) || !random_read(d, b)) {
			fail(d->name, "random", "%s", d->why);
			continue;
		}
		for (unsigned k = 1; k < RANDOM_BYTES; k++)
			all_equal &= a[k] == a[0];
		if (all_equal || memcmp(a, b, RANDOM_BYTES) == 0)
			fail(d->name, "random", "%s", all_equal ? "all bytes are equal" : "two reads gave the same");
		else
			pass(d->name, "random", "bytes=%u", 2u * RANDOM_BYTES);
	}
}

const struct test device_tests[] = {
	{"start", test_start, true},
	{"console", test_console, true},
	{"input", test_input, false},
	{"rng", test_rng, true},
	{NULL, NULL, false},
};
