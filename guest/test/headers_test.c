/* SPDX-License-Identifier: 0BSD */
/* Tests of the headers as a program of the host: a device that keeps the rules, and ones that do not. `make -C guest check`. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint32_t ports[3]; /* what was last written to doorbell, notify, high */
static unsigned port_writes;
#define LGUEST_OUTL(port, value) (ports[((port) - 0x1F10) / 4] = (value), port_writes++)

#include "../include/lguest_bus.h"
#include "../include/virtio_mmio.h"
#include "../include/virtio_net.h"
#include "../include/virtq.h"

#define CHECK(x) \
	do { \
		if (!(x)) { \
			printf("FAIL %s:%d: %s\n", __FILE__, __LINE__, #x); \
			exit(1); \
		} \
	} while (0)

enum { NUM = 8, ALIGN = 4096 };

struct rig {
	struct virtq q;
	struct virtq_slot slots[NUM];
	uint8_t *ring;
	uint16_t seen; /* the device's */
};

static void rig_init(struct rig *r, bool event_idx)
{
	free(r->ring);
	memset(r, 0, sizeof(*r));
	r->ring = aligned_alloc(ALIGN, 2 * ALIGN);
	CHECK(r->ring);
	virtq_clear(r->ring, 2 * ALIGN);
	CHECK(virtq_legacy_bytes(NUM, ALIGN) <= 2 * ALIGN);
	CHECK(virtq_init_legacy(&r->q, NUM, r->ring, ALIGN, r->slots, event_idx) == 0);
}

static void use(struct rig *r, uint32_t id, uint32_t len)
{
	uint8_t *used = r->ring + virtq_legacy_used(NUM, ALIGN);
	uint16_t idx = *(uint16_t *)(used + 2);

	memcpy(used + 4 + 8 * (idx % NUM), &id, 4);
	memcpy(used + 8 + 8 * (idx % NUM), &len, 4);
	*(uint16_t *)(used + 2) = (uint16_t)(idx + 1);
}

/* The device takes one available head. */
static uint16_t take(struct rig *r)
{
	uint16_t *avail = (uint16_t *)(r->ring + virtq_desc_bytes(NUM));

	CHECK(avail[1] != r->seen);
	return avail[2 + r->seen++ % NUM];
}

static void chains_come_back_in_any_order_for_several_rounds(void)
{
	static struct rig r;

	rig_init(&r, false);
	for (unsigned round = 0; round < 70000 / 3; round++) {
		uint16_t heads[3];

		for (uintptr_t i = 0; i < 3; i++) {
			struct virtq_buf b[2] = {{0x1000 + i, 16}, {0x2000 + i, 100}};

			CHECK(virtq_add(&r.q, b, 1, 1, (void *)(i + 1)) == 0);
		}
		CHECK(r.q.free_count == NUM - 6);
		CHECK(virtq_publish(&r.q));
		CHECK(!virtq_publish(&r.q));
		for (unsigned i = 0; i < 3; i++)
			heads[i] = take(&r);
		for (unsigned i = 0; i < 3; i++) {
			volatile struct virtq_desc *d = (void *)(r.ring + 16 * heads[(i + round) % 3]);

			CHECK(d->len == 16 && d->flags == VIRTQ_DESC_F_NEXT);
			CHECK(((volatile struct virtq_desc *)r.ring)[d->next].flags == VIRTQ_DESC_F_WRITE);
			use(&r, heads[(i + round) % 3], 50 + i);
		}
		CHECK(virtq_pending(&r.q));
		for (unsigned i = 0; i < 3; i++) {
			void *token;
			uint32_t len;

			CHECK(virtq_get(&r.q, &token, &len) == 1);
			CHECK(token == (void *)(uintptr_t)((i + round) % 3 + 1) && len == 50 + i);
		}
		CHECK(virtq_get(&r.q, &(void *){NULL}, &(uint32_t){0}) == 0);
		CHECK(r.q.free_count == NUM && virtq_outstanding(&r.q) == 0);
	}
}

static void a_full_queue_is_said_and_an_indirect_chain_takes_one_descriptor(void)
{
	static struct rig r;
	static struct virtq_desc table[4] __attribute__((aligned(16)));
	struct virtq_buf b[4] = {{1, 1}, {2, 2}, {3, 3}, {4, 4}};

	rig_init(&r, false);
	CHECK(virtq_add(&r.q, b, 4, 0, r.ring) == 0);
	CHECK(virtq_add_indirect(&r.q, table, 0x5000, b, 1, 3, r.ring) == 0);
	CHECK(r.q.free_count == NUM - 5);
	CHECK(virtq_add(&r.q, b, 2, 2, r.ring) == VIRTQ_FULL);
	CHECK(virtq_add(&r.q, b, 0, 0, r.ring) == VIRTQ_INVALID);
	CHECK(table[0].flags == VIRTQ_DESC_F_NEXT && table[3].flags == VIRTQ_DESC_F_WRITE && table[1].next == 2);
	CHECK(r.slots[4].writable == 9);
}

static void the_device_chooses_when_it_is_notified(void)
{
	static struct rig r;
	struct virtq_buf b = {1, 1};
	uint16_t *event;

	rig_init(&r, true);
	event = (uint16_t *)(r.ring + virtq_legacy_used(NUM, ALIGN) + 4 + 8 * NUM);
	*event = 1;
	CHECK(virtq_add(&r.q, &b, 1, 0, r.ring) == 0);
	CHECK(!virtq_publish(&r.q));
	CHECK(virtq_add(&r.q, &b, 1, 0, r.ring) == 0);
	CHECK(virtq_publish(&r.q));
	rig_init(&r, false);
	*(uint16_t *)(r.ring + virtq_legacy_used(NUM, ALIGN)) = VIRTQ_USED_F_NO_NOTIFY;
	CHECK(virtq_add(&r.q, &b, 1, 0, r.ring) == 0);
	CHECK(!virtq_publish(&r.q));
}

static void enabling_calls_tells_what_is_there_already(void)
{
	static struct rig r;
	struct virtq_buf b = {1, 1};

	for (int event_idx = 0; event_idx < 2; event_idx++) {
		rig_init(&r, event_idx);
		CHECK(!virtq_enable_calls(&r.q, 1));
		CHECK(virtq_add(&r.q, &b, 1, 0, r.ring) == 0);
		virtq_publish(&r.q);
		use(&r, take(&r), 0);
		CHECK(virtq_enable_calls(&r.q, 1));
		CHECK(virtq_enable_calls(&r.q, 2) == !event_idx);
	}
}

/* What a device must not put into the used ring, after two chains with 10 device-writable bytes each, at heads 0 and 2. */
static void a_hostile_device_breaks_the_queue_for_good(void)
{
	static const struct {
		uint32_t id, len;
		unsigned times;
	} bad[] = {{NUM, 0, 1}, {0xffffffff, 0, 1}, {1, 0, 1}, {0, 11, 1}, {0, 0xffffffff, 1}, {0, 0, 2}};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		static struct rig r;
		struct virtq_buf b[2] = {{1, 100}, {2, 10}};
		void *token;
		uint32_t len;

		rig_init(&r, false);
		CHECK(virtq_add(&r.q, b, 1, 1, r.ring) == 0);
		CHECK(virtq_add(&r.q, b, 1, 1, r.ring) == 0);
		virtq_publish(&r.q);
		for (unsigned k = 0; k < bad[i].times; k++)
			use(&r, bad[i].id, bad[i].len);
		for (unsigned k = 1; k < bad[i].times; k++)
			CHECK(virtq_get(&r.q, &token, &len) == 1);
		CHECK(virtq_get(&r.q, &token, &len) == VIRTQ_BROKEN);
		CHECK(virtq_get(&r.q, &token, &len) == VIRTQ_BROKEN);
		CHECK(virtq_add(&r.q, b, 1, 1, r.ring) == VIRTQ_BROKEN);
		CHECK(virtq_pending(&r.q) && virtq_enable_calls(&r.q, 1));
	}
}

static void a_device_that_scribbles_over_everything_is_survived(void)
{
	static struct rig r;

	srand(1);
	for (unsigned round = 0; round < 20000; round++) {
		void *token;
		uint32_t len;

		if (round % 50 == 0)
			rig_init(&r, round % 100 == 0);
		for (unsigned k = 0; k < 4; k++) {
			struct virtq_buf b[2] = {{1, 1}, {2, 1}};

			(void)virtq_add(&r.q, b, 1, 1, &r);
		}
		(void)virtq_publish(&r.q);
		for (unsigned k = 0; k < 64; k++)
			r.ring[(unsigned)rand() % (k % 2 ? 2 * ALIGN : 256)] = (uint8_t)(rand() % NUM);
		for (unsigned k = 0; k < 4; k++)
			r.ring[virtq_legacy_used(NUM, ALIGN) + (unsigned)rand() % 80] = (uint8_t)(rand() % NUM);
		while (virtq_get(&r.q, &token, &len) == 1)
			CHECK(token == &r && len <= 1);
		CHECK(r.q.free_count <= NUM);
	}
}

/* A page with nothing mapped behind it. */
static uint8_t *guarded_page(void)
{
	uint8_t *p = mmap(NULL, 2 * LGUEST_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	CHECK(mprotect(p + LGUEST_PAGE, LGUEST_PAGE, PROT_NONE) == 0);
	return p;
}

/* The golden page of lguest's own Launcher for a network card, a disk and a console. */
static const uint8_t golden[] = {
	1, 2, 4, 8, 0, 0, 1, 1, 0, 1, 0x40, 0, 0, 0, 1, 2, 0, 4, 0x40, 0, 0, 0xa3, 0x3b, 0, 0x10, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0,
	2, 1, 2, 16, 0, 0, 1, 3, 0, 7, 0x40, 0, 0, 4, 2, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254, 0, 0, 0,
	3, 2, 0, 0, 0, 0, 1, 4, 0, 10, 0x40, 0, 0, 0, 1, 5, 0, 13, 0x40, 0, 0, 0,
};

static void the_golden_page_is_read(void)
{
	struct lguest_bus bus = {guarded_page(), 0x4000000, LGUEST_PORT};
	struct lguest_device d;
	uint32_t at = 0;
	uint64_t capacity = 0;

	memcpy((void *)bus.page, golden, sizeof(golden));
	CHECK(lguest_count(&bus) == 3);
	CHECK(lguest_next(&bus, &at, &d) == 1 && d.type == 1 && d.num_vq == 2 && lguest_features(&d) == 0x10003ba3);
	CHECK(lguest_vq(&d, 1).pfn == 0x4004 && lguest_vq(&d, 1).irq == 2 && lguest_vq(&d, 2).num == 0);
	CHECK(lguest_vq_ok(&bus, lguest_vq(&d, 1)) && !lguest_vq_ok(&bus, lguest_vq(&d, 2)));
	CHECK(lguest_next(&bus, &at, &d) == 1 && d.offset == 0x25 && d.type == 2 && lguest_features(&d) == 0x204);
	CHECK(lguest_config_read(&d, 0, &capacity, 8) && capacity == 8);
	CHECK(!lguest_config_read(&d, 9, &capacity, 8) && !lguest_config_read(&d, 0xffffffff, &capacity, 8));
	port_writes = 0;
	lguest_reset(&bus, &d);
	CHECK(port_writes == 1 && ports[1] == 0x4000025 && lguest_status(&d) == 0);
	CHECK(lguest_accept(&bus, &d, 0xffffffff) == -1 && port_writes == 1);
	lguest_set_status(&d, LGUEST_S_ACKNOWLEDGE | LGUEST_S_DRIVER);
	CHECK(lguest_accept(&bus, &d, 0xfffffdff) == 0 && port_writes == 2);
	CHECK(bus.page[0x25 + 13 + 2] == 4 && bus.page[0x25 + 13 + 3] == 0);
	lguest_kick(&bus, 0x4007);
	CHECK(ports[0] == 0x4007);
	bus.phys = 0x123000000;
	lguest_reset(&bus, &d);
	CHECK(ports[2] == 1 && ports[1] == 0x23000025 && port_writes == 5);
	CHECK(lguest_next(&bus, &at, &d) == 1 && d.type == 3 && lguest_features(&d) == 0);
	CHECK(lguest_next(&bus, &at, &d) == 0);
	munmap((void *)bus.page, 2 * LGUEST_PAGE);
}

static void any_page_is_read_within_its_bounds(void)
{
	struct lguest_bus bus = {guarded_page(), 0x4000000, LGUEST_PORT};

	srand(2);
	for (unsigned round = 0; round < 20000; round++) {
		uint32_t at = 0;
		struct lguest_device d;
		unsigned mask = 1u << rand() % 8;

		for (unsigned i = 0; i < LGUEST_PAGE; i++)
			bus.page[i] = (uint8_t)(round == 0 ? 0xff : 1 + (unsigned)rand() % mask);
		while (lguest_next(&bus, &at, &d) == 1) {
			uint64_t v;

			CHECK(at <= LGUEST_PAGE && d.offset + lguest_record_bytes(&d) == at);
			lguest_set_status(&d, 1);
			(void)lguest_accept(&bus, &d, lguest_features(&d));
			(void)lguest_vq_ok(&bus, lguest_vq(&d, d.num_vq - 1u));
			(void)lguest_config_read(&d, d.config_len, &v, 8);
			(void)lguest_config_write(&d, 0, &v, 8);
		}
	}
	munmap((void *)bus.page, 2 * LGUEST_PAGE);
}

static void a_ring_outside_the_bus_is_refused(void)
{
	struct lguest_bus bus = {NULL, 0x4000000, LGUEST_PORT};
	static const struct {
		struct lguest_vq v;
		bool ok;
	} c[] = {
		{{256, 1, 0x4001}, true}, {{256, 31, 0x40fe}, true}, {{256, 1, 0x40ff}, false}, {{256, 1, 0x4000}, false},
		{{256, 0, 0x4001}, false}, {{256, 32, 0x4001}, false}, {{255, 1, 0x4001}, false}, {{0, 1, 0x4001}, false},
		{{32768, 1, 0x4001}, true}, {{32768, 1, 0x4060}, false}, {{1, 1, 0xffffffff}, false}, {{1, 1, 0}, false},
	};

	for (unsigned i = 0; i < sizeof(c) / sizeof(*c); i++)
		CHECK(lguest_vq_ok(&bus, c[i].v) == c[i].ok);
}

static void virtio_mmio_takes_version_2_only(void)
{
	static uint32_t page[1024];
	struct virtio_mmio d;
	uint64_t v;

	CHECK(virtio_mmio_probe(&d, page) == 0);
	page[0] = VIRTIO_MMIO_MAGIC_VALUE;
	page[1] = 1;
	CHECK(virtio_mmio_probe(&d, page) == -1);
	page[1] = 2;
	CHECK(virtio_mmio_probe(&d, page) == 0);
	page[2] = 2;
	CHECK(virtio_mmio_probe(&d, page) == 1 && d.device_id == 2);
	page[VIRTIO_MMIO_CONFIG / 4] = 0x12345678;
	page[VIRTIO_MMIO_CONFIG / 4 + 1] = 0x9abcdef0;
	CHECK(virtio_mmio_config_read(&d, 0, 8, &v) == 0 && v == 0x9abcdef012345678);
	CHECK(virtio_mmio_config_read(&d, 2, 1, &v) == 0 && v == 0x34);
	CHECK(virtio_mmio_config_read(&d, 0, 3, &v) == -1);
	CHECK(virtio_mmio_accept(&d, 0) == -1 && (virtio_mmio_status(&d) & VIRTIO_MMIO_S_FAILED));
	CHECK(virtio_mmio_queue_start(&d, 0, 256, 0, 0, 0) == -1);
}

static void a_packets_header_is_as_long_as_the_features_say(void)
{
	uint8_t packet[64] = {VIRTIO_NET_HDR_F_DATA_VALID, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 99};
	struct virtio_net_hdr h;

	CHECK(sizeof(h) == 12 && virtio_net_hdr_bytes(0) == 10);
	CHECK(virtio_net_hdr_bytes(VIRTIO_NET_F_MRG_RXBUF) == 12 && virtio_net_hdr_bytes(VIRTIO_NET_F_VERSION_1) == 12);
	/* Legacy: the two bytes after ten are the frame's. */
	CHECK(virtio_net_received(packet, 10, 0, &h) == 1 && h.num_buffers == 0 && h.csum_offset == 4 && h.hdr_len == 1);
	CHECK(virtio_net_received(packet, 9, 0, &h) == 0);
	CHECK(virtio_net_received(packet, 64, VIRTIO_NET_F_MRG_RXBUF, &h) == 5 && h.num_buffers == 5);
	CHECK(virtio_net_received(packet, 11, VIRTIO_NET_F_MRG_RXBUF, &h) == 0);
	packet[10] = 0;
	CHECK(virtio_net_received(packet, 64, VIRTIO_NET_F_MRG_RXBUF, &h) == 0);
	CHECK(virtio_net_received(packet, 64, VIRTIO_NET_F_VERSION_1, &h) == 1);
	CHECK(virtio_net_room(0, 1500) == 1528 && virtio_net_room(VIRTIO_NET_F_VERSION_1, 9000) == 9030);
	CHECK(virtio_net_room(VIRTIO_NET_F_GUEST_TSO4, 1500) == 65566);
	CHECK(virtio_net_ctrl(1) == 2 && virtio_net_rx(3) == 6 && virtio_net_tx(3) == 7 && virtio_net_ctrl(4) == 8);
}

static void a_header_may_promise_only_what_was_negotiated(void)
{
	enum { CSUM = VIRTIO_NET_HDR_F_NEEDS_CSUM, T4 = VIRTIO_NET_HDR_GSO_TCPV4, T6 = VIRTIO_NET_HDR_GSO_TCPV6, ECN = VIRTIO_NET_HDR_GSO_ECN };
	const uint64_t csum = VIRTIO_NET_F_GUEST_CSUM, tso = csum | VIRTIO_NET_F_GUEST_TSO4;
	const struct {
		struct virtio_net_hdr h;
		uint64_t features;
		bool ok;
	} c[] = {
		{{.flags = 0}, 0, true},
		{{.flags = CSUM, .csum_start = 34, .csum_offset = 16}, 0, false},
		{{.flags = CSUM, .csum_start = 34, .csum_offset = 16}, csum, true},
		{{.flags = CSUM, .csum_start = 90, .csum_offset = 8}, csum, true},
		{{.flags = CSUM, .csum_start = 90, .csum_offset = 9}, csum, false},
		{{.flags = CSUM, .csum_start = 0xffff, .csum_offset = 0xffff}, csum, false},
		{{.flags = CSUM, .gso_type = T4, .gso_size = 50}, csum, false},
		{{.flags = CSUM, .gso_type = T4, .gso_size = 50}, tso, true},
		{{.flags = CSUM, .gso_type = T4, .gso_size = 0}, tso, false},
		{{.flags = CSUM, .gso_type = T4, .gso_size = 101}, tso, false},
		{{.flags = 0, .gso_type = T4, .gso_size = 50}, tso, false},
		{{.flags = CSUM, .gso_type = T6, .gso_size = 50}, tso, false},
		{{.flags = CSUM, .gso_type = T4 | ECN, .gso_size = 50}, tso, false},
		{{.flags = CSUM, .gso_type = T4 | ECN, .gso_size = 50}, tso | VIRTIO_NET_F_GUEST_ECN, true},
		{{.flags = CSUM, .gso_type = ECN, .gso_size = 50}, ~0ull, false},
		{{.flags = CSUM, .gso_type = 2, .gso_size = 50}, ~0ull, false},
	};

	for (unsigned i = 0; i < sizeof(c) / sizeof(*c); i++)
		CHECK(virtio_net_hdr_ok(&c[i].h, c[i].features, 100) == c[i].ok);
}

/* A device cannot have used what it was not told of, even if the driver has it ready. */
static void what_is_not_published_cannot_be_used(void)
{
	static struct rig r;
	struct virtq_buf b = {1, 1};
	void *token;
	uint32_t len;

	rig_init(&r, false);
	CHECK(virtq_add(&r.q, &b, 0, 1, r.ring) == 0);
	use(&r, 0, 1);
	CHECK(virtq_get(&r.q, &token, &len) == VIRTQ_BROKEN);
}

/* 2.7.5: no chain is longer than 2^32 bytes. A sum that wrapped would make an honest device look broken. */
static void a_chain_of_too_many_bytes_is_refused(void)
{
	static struct rig r;
	static struct virtq_desc table[2] __attribute__((aligned(16)));
	struct virtq_buf b[2] = {{0, 0xf0000000}, {0, 0x20000000}};

	rig_init(&r, false);
	CHECK(virtq_add(&r.q, b, 0, 2, r.ring) == VIRTQ_INVALID);
	CHECK(virtq_add_indirect(&r.q, table, 0x1000, b, 1, 1, r.ring) == VIRTQ_INVALID);
	CHECK(r.q.free_count == NUM && !virtq_publish(&r.q));
	b[0].len = 0xdfffffff;
	CHECK(virtq_add(&r.q, b, 0, 2, r.ring) == 0 && r.slots[0].writable == 0xffffffff);
}

int main(void)
{
	chains_come_back_in_any_order_for_several_rounds();
	a_full_queue_is_said_and_an_indirect_chain_takes_one_descriptor();
	the_device_chooses_when_it_is_notified();
	enabling_calls_tells_what_is_there_already();
	a_hostile_device_breaks_the_queue_for_good();
	a_device_that_scribbles_over_everything_is_survived();
	what_is_not_published_cannot_be_used();
	a_chain_of_too_many_bytes_is_refused();
	the_golden_page_is_read();
	any_page_is_read_within_its_bounds();
	a_ring_outside_the_bus_is_refused();
	virtio_mmio_takes_version_2_only();
	a_packets_header_is_as_long_as_the_features_say();
	a_header_may_promise_only_what_was_negotiated();
	puts("PASS headers");
	return 0;
}
