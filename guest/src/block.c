/* SPDX-License-Identifier: 0BSD */
/* Requests to block devices (VIRTIO 1.2, 5.2.6), and content that the host can make again. */
#include "guest.h"

int block_add(struct device *d, unsigned queue, struct request *r, uint32_t type, uint64_t sector, void *data, uint32_t len,
	      unsigned segments, bool indirect)
{
	struct virtq_buf b[SEGMENTS_MAX + 2];
	bool writes = type == BLOCK_IN || type == BLOCK_GET_ID; /* the device does */
	uint16_t n = 0;

	r->header.type = type;
	r->header.reserved = 0;
	r->header.sector = sector;
	r->device = d;
	r->queue = queue;
	r->status = 0xff;
	r->done = false;
	b[n++] = (struct virtq_buf){phys(&r->header), sizeof(r->header)};
	if (segments < 1 || len < segments)
		segments = 1;
	if (segments > SEGMENTS_MAX)
		segments = SEGMENTS_MAX;
	for (uint32_t at = 0, left = segments; at < len; left--) {
		/* Uneven on purpose; the last takes the rest. */
		uint32_t part = left == 1 ? len - at : (len / segments) - (left & 1);

		b[n++] = (struct virtq_buf){phys(data) + at, part};
		at += part;
	}
	b[n++] = (struct virtq_buf){phys(&r->status), 1};
	if (indirect)
		return virtq_add_indirect(&d->q[queue].vq, r->table, phys(r->table), b, writes ? 1 : (uint16_t)(n - 1),
					  writes ? (uint16_t)(n - 1) : 1, r);
	return virtq_add(&d->q[queue].vq, b, writes ? 1 : (uint16_t)(n - 1), writes ? (uint16_t)(n - 1) : 1, r);
}

bool block_reap(struct device *d)
{
	for (unsigned i = 0; i < d->queues; i++) {
		void *token;
		uint32_t len;
		int r;

		do {
			while ((r = virtq_get(&d->q[i].vq, &token, &len)) == 1) {
				struct request *q = token;

				q->used_len = len;
				q->done = true;
			}
		} while (r == 0 && virtq_enable_calls(&d->q[i].vq, 1));
		if (r < 0) {
			d->why = "the device used a chain that it was not given, or wrote more than it may";
			return false;
		}
	}
	return true;
}

static bool finished(void *arg)
{
	struct request *r = arg;

	return !block_reap(r->device) || r->done;
}

bool block_wait(struct device *d, struct request *r)
{
	if (!wait_for(finished, r)) {
		d->why = "no answer in time";
		return false;
	}
	return r->done;
}

int block_do(struct device *d, uint32_t type, uint64_t sector, void *data, uint32_t len, unsigned segments, bool indirect)
{
	static struct request r;

	if (block_add(d, 0, &r, type, sector, data, len, segments, indirect)) {
		d->why = "the queue does not take the request";
		return -1;
	}
	device_kick(d, 0);
	if (!block_wait(d, &r))
		return -1;
	if (r.status == BLOCK_OK && type == BLOCK_IN && r.used_len != len + 1) {
		d->why = "used.len of a read is not data and status";
		return -1;
	}
	return r.status;
}

void pattern_fill(void *to, uint64_t first_word, uint32_t words, uint64_t seed)
{
	uint64_t *p = to;

	for (uint32_t i = 0; i < words; i++) {
		uint64_t x = seed + (first_word + i) * 0x9e3779b97f4a7c15ull;

		x ^= x >> 30;
		x *= 0xbf58476d1ce4e5b9ull;
		x ^= x >> 27;
		p[i] = x;
	}
}

uint32_t crc32c(uint32_t crc, const void *p, size_t n)
{
	static uint32_t table[256];
	const uint8_t *b = p;

	if (!table[1])
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t c = i;

			for (int k = 0; k < 8; k++)
				c = (c >> 1) ^ (c & 1 ? 0x82f63b78 : 0); /* Castagnoli, reflected */
			table[i] = c;
		}
	crc = ~crc;
	for (size_t i = 0; i < n; i++)
		crc = table[(crc ^ b[i]) & 255] ^ (crc >> 8);
	return ~crc;
}
