/* SPDX-License-Identifier: 0BSD */
/*
 * A driver of network devices that breaks the rules, or sends garbage: the device must end each chain or ask for a reset, answer a
 * wrong command with an error, and work after a reset. The back-end gives every frame back (loopback).
 */
#include "guest.h"

enum { GARBAGE_COMMANDS = 60, PATIENCE_TICKS = 10 };

static uint8_t area[4096] __attribute__((aligned(16)));
static struct net net;

/* How the device took a chain. */
enum taken { COMPLETED, ASKS_FOR_RESET, NOTHING, BROKE_THE_QUEUE };
struct outcome {
	struct device *device;
	struct virtq *queue;
	uint64_t since;
	bool patient; /* an answer must come, where one can be seen; else PATIENCE_TICKS are enough */
	enum taken taken;
};

static bool taken(void *arg)
{
	struct outcome *o = arg;
	void *token;
	uint32_t len;
	int r;

	do
		r = virtq_get(o->queue, &token, &len);
	while (r == 0 && virtq_enable_calls(o->queue, 1));
	o->taken = r == 1 ? COMPLETED : r < 0 ? BROKE_THE_QUEUE : NOTHING;
	if (o->taken == NOTHING && o->device->bus == BUS_MMIO && asks_for_reset(o->device))
		o->taken = ASKS_FOR_RESET;
	/* On the lguest bus nothing tells that a device has given up. */
	return o->taken != NOTHING || ((!o->patient || o->device->bus == BUS_LGUEST) && ticks - o->since > PATIENCE_TICKS);
}

/* Gives the device one chain. */
static enum taken give(unsigned queue, const struct virtq_buf *b, uint16_t out, uint16_t in)
{
	struct outcome o = {net.device, &net.device->q[queue].vq, ticks, true, NOTHING};

	if (virtq_add(o.queue, b, out, in, area)) {
		net.device->why = "the queue does not take a chain";
		return BROKE_THE_QUEUE;
	}
	device_kick(net.device, queue);
	wait_for(taken, &o);
	return o.taken;
}

/* A chain of a wrong shape may end, or cost a reset. */
static bool shaped(unsigned queue, const struct virtq_buf *b, uint16_t out, uint16_t in)
{
	enum taken t = give(queue, b, out, in);

	if (t == COMPLETED || t == ASKS_FOR_RESET || (t == NOTHING && net.device->bus == BUS_LGUEST))
		return true;
	net.device->why = t == NOTHING ? "the device neither ends the chain nor asks for a reset" : "the device broke the queue";
	return false;
}

/* A frame with such a header is one packet's fault: dropped or sent, its chain ends. */
static bool headed(struct virtio_net_hdr h, uint32_t frame)
{
	struct virtq_buf b[2] = {{phys(area), net.header}, {phys(area) + net.header, frame}};

	memset(area, 0xff, sizeof(area));
	memcpy(area, &h, net.header);
	memcpy(area + net.header, net.mac, MAC_BYTES);
	if (give(virtio_net_tx(0), b, frame ? 2 : 1, 0) == COMPLETED)
		return true;
	net.device->why = "a frame with a wrong header does not end";
	return false;
}

static bool headers_that_lie(void)
{
	static const struct virtio_net_hdr lies[] = {
		{.flags = 0xff},
		{.gso_type = 0x7f, .gso_size = 1},
		{.gso_type = VIRTIO_NET_HDR_GSO_TCPV4},
		{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 0, .hdr_len = 54},
		{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 1, .hdr_len = 0xffff},
		{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN, .gso_size = 0xffff},
		{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV6, .gso_size = 1, .csum_start = 34, .csum_offset = 16},
		{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_UDP, .gso_size = 8, .csum_start = 34, .csum_offset = 6},
		{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 0xffff, .csum_offset = 0xffff},
		{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 99, .csum_offset = 0},
		{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 0, .csum_offset = 99},
		{.flags = VIRTIO_NET_HDR_F_DATA_VALID, .num_buffers = 0xffff},
		{.hdr_len = 0xffff, .gso_size = 0xffff, .csum_start = 0xffff, .csum_offset = 0xffff},
	};

	for (unsigned i = 0; i < sizeof(lies) / sizeof(*lies); i++)
		if (!headed(lies[i], 100)) {
			info(net.device->name, "netabuse", "header %u", i);
			return false;
		}
	return true;
}

static bool frames_that_are_too_short(void)
{
	for (uint32_t n = 0; n < VIRTIO_NET_ETH_HEADER; n++)
		if (!headed((struct virtio_net_hdr){0}, n))
			return false;
	return true;
}

/* The whole of the memory that there is, again and again: longer than any frame. */
static bool a_frame_that_is_too_long(void)
{
	struct virtq_buf b[17];

	memset(area, 0, sizeof(area));
	for (unsigned i = 0; i < 17; i++)
		b[i] = (struct virtq_buf){phys(area), 8 * sizeof(area)};
	b[0].len = net.header;
	return shaped(virtio_net_tx(0), b, 17, 0);
}

static bool half_a_header(void)
{
	struct virtq_buf b = {phys(area), net.header - 1};

	memset(area, 0, sizeof(area));
	return shaped(virtio_net_tx(0), &b, 1, 0);
}

static bool one_byte_to_send(void)
{
	struct virtq_buf b = {phys(area), 1};

	return shaped(virtio_net_tx(0), &b, 1, 0);
}

static bool writable_where_it_sends(void)
{
	struct virtq_buf b[2] = {{phys(area), 100}, {phys(area) + 100, 100}};

	memset(area, 0, sizeof(area));
	return shaped(virtio_net_tx(0), b, 1, 1);
}

static bool nothing_to_send_but_room(void)
{
	struct virtq_buf b = {phys(area), 100};

	return shaped(virtio_net_tx(0), &b, 0, 1);
}

/* For a receive buffer to be looked at, a frame must come. */
static bool receive_buffer(const struct virtq_buf *b, uint16_t out, uint16_t in)
{
	struct device *d = net.device;
	uint8_t *room = net_room(&net, 0);
	struct outcome o = {d, &d->q[virtio_net_rx(0)].vq, ticks, false, NOTHING};

	if (virtq_add(o.queue, b, out, in, area) || !room) {
		d->why = "the queue does not take a chain";
		return false;
	}
	device_kick(d, virtio_net_rx(0));
	memset(room, 0, 100);
	memcpy(room, net.mac, MAC_BYTES);
	if (!net_send(&net, 0, 100, 0))
		return false;
	device_kick(d, virtio_net_tx(0));
	/* What comes of it differs; nobody may wait for it, and nothing may break. */
	wait_for(taken, &o);
	if (o.taken != BROKE_THE_QUEUE)
		return true;
	d->why = "the device broke the receive queue";
	return false;
}

static bool receive_buffer_of_one_byte(void)
{
	struct virtq_buf b = {phys(area), 1};

	return receive_buffer(&b, 0, 1);
}

static bool receive_buffer_to_read(void)
{
	struct virtq_buf b[2] = {{phys(area), 2048}, {phys(area) + 2048, 2048}};

	return receive_buffer(b, 1, 1);
}

static bool receive_buffer_without_room(void)
{
	struct virtq_buf b = {phys(area), 2048};

	return receive_buffer(&b, 1, 0);
}

static bool receive_buffer_of_pieces(void)
{
	struct virtq_buf b[64];

	for (unsigned i = 0; i < 64; i++)
		b[i] = (struct virtq_buf){phys(area) + i, 1};
	return receive_buffer(b, 0, 64);
}

/* A command that the device must refuse. */
static bool refused(uint8_t class, uint8_t command, const void *data, uint32_t len)
{
	int answer = net_control(&net, class, command, data, len);

	if (answer == VIRTIO_NET_ERR)
		return true;
	if (answer >= 0)
		net.device->why = answer == VIRTIO_NET_OK ? "a wrong command is answered with OK" : "an answer that there is not";
	info(net.device->name, "netabuse", "class=%u command=%u bytes=%u", (unsigned)class, (unsigned)command, len);
	return false;
}

static bool commands_that_are_wrong(void)
{
	static const uint8_t many[] = {0xff, 0xff, 0xff, 0xff}, one[] = {1, 0, 0, 0}, zero[8];
	static const uint8_t odd[] = {0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f};

	const uint16_t too_many = (uint16_t)(net.pairs_max + 1);

	if (!net.control)
		return true;
	return refused(99, 0, zero, 1) && refused(VIRTIO_NET_CTRL_RX, 99, zero, 1) && refused(VIRTIO_NET_CTRL_RX, 0, NULL, 0) &&
	       refused(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, NULL, 0) &&
	       refused(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, zero, 3) &&
	       refused(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, many, 4) &&
	       refused(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, one, 4) &&
	       refused(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, odd, 8) &&
	       refused(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, zero, 5) &&
	       refused(VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, many, 2) && refused(VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, zero, 1) &&
	       refused(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_PAIRS_SET, zero, 2) &&
	       refused(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_PAIRS_SET, many, 2) &&
	       refused(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_PAIRS_SET, &too_many, 2) &&
	       refused(VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, zero, 7);
}

static bool commands_of_garbage(void)
{
	static uint8_t data[2048];
	uint64_t x = 1;

	if (!net.control)
		return true;
	for (unsigned i = 0; i < GARBAGE_COMMANDS; i++) {
		int answer;

		pattern_fill(data, x, sizeof(data) / 8, i);
		x = x * 0x5851f42d4c957f2dull + 0x14057b7ef767814full;
		answer = net_control(&net, (uint8_t)(x >> 60), (uint8_t)(x >> 57 & 3), data, (uint32_t)(x >> 40) % sizeof(data));
		if (answer < 0)
			return false;
		if (answer != VIRTIO_NET_OK && answer != VIRTIO_NET_ERR) {
			net.device->why = "an answer that there is not";
			return false;
		}
	}
	return true;
}

static bool control(const struct virtq_buf *b, uint16_t out, uint16_t in)
{
	if (!net.control)
		return true;
	memset(area, 0xee, sizeof(area));
	area[0] = VIRTIO_NET_CTRL_RX;
	area[1] = VIRTIO_NET_CTRL_RX_PROMISC;
	area[2] = 1;
	return shaped(net.control, b, out, in);
}

static bool a_command_without_room_for_an_answer(void)
{
	struct virtq_buf b = {phys(area), 3};

	return control(&b, 1, 0);
}

static bool room_for_an_answer_without_a_command(void)
{
	struct virtq_buf b = {phys(area) + 64, 1};

	return control(&b, 0, 1);
}

static bool half_a_command(void)
{
	struct virtq_buf b[2] = {{phys(area), 1}, {phys(area) + 64, 1}};

	return control(b, 1, 1);
}

/* Any framing of a good command is good (2.7.4.2). */
static bool a_good_command_in_pieces(void)
{
	struct virtq_buf b[4] = {{phys(area), 1}, {phys(area) + 1, 1}, {phys(area) + 2, 1}, {phys(area) + 64, 1}};

	if (!net.control || !(net.device->features & VIRTIO_NET_F_CTRL_RX))
		return true;
	if (!control(b, 3, 1))
		return false;
	if (*(volatile uint8_t *)(area + 64) == VIRTIO_NET_OK)
		return true;
	net.device->why = "a good command in several buffers is refused";
	return false;
}

static const struct {
	const char *name;
	bool (*run)(void);
	bool receives; /* brings receive buffers of its own */
	bool pairs;    /* with several queue pairs, if there are */
} cases[] = {
	{"headers_that_lie", headers_that_lie, false, false},
	{"frames_that_are_too_short", frames_that_are_too_short, false, false},
	{"a_frame_that_is_too_long", a_frame_that_is_too_long, false, false},
	{"half_a_header", half_a_header, false, false},
	{"one_byte_to_send", one_byte_to_send, false, false},
	{"writable_where_it_sends", writable_where_it_sends, false, false},
	{"nothing_to_send_but_room", nothing_to_send_but_room, false, false},
	{"receive_buffer_of_one_byte", receive_buffer_of_one_byte, true, false},
	{"receive_buffer_to_read", receive_buffer_to_read, true, false},
	{"receive_buffer_without_room", receive_buffer_without_room, true, false},
	{"receive_buffer_of_pieces", receive_buffer_of_pieces, true, false},
	{"commands_that_are_wrong", commands_that_are_wrong, false, true},
	{"commands_of_garbage", commands_of_garbage, false, true},
	{"a_command_without_room_for_an_answer", a_command_without_room_for_an_answer, false, false},
	{"room_for_an_answer_without_a_command", room_for_an_answer_without_a_command, false, false},
	{"half_a_command", half_a_command, false, false},
	{"a_good_command_in_pieces", a_good_command_in_pieces, false, false},
};

static bool works(struct device *d)
{
	if (net_start(&net, d, device_known(d->type) & ~VIRTIO_NET_F_MQ, 0, NET_BUFFERS_MAX) && net_echo(&net, 5))
		return true;
	info(d->name, "netabuse", "after a reset: %s", d->why);
	return false;
}

static void one(struct device *d, unsigned i, uint64_t without)
{
	without |= cases[i].pairs ? 0 : VIRTIO_NET_F_MQ;
	net = (struct net){.device = d};
	if (!net_start(&net, d, device_known(d->type) & ~without, 0, cases[i].receives ? 0 : NET_BUFFERS_MAX) ||
	    !cases[i].run() || !works(d))
		fail(d->name, "netabuse", "%s: %s", cases[i].name, d->why);
	else
		pass(d->name, "netabuse", "%s", cases[i].name);
}

/* The rules of virtqueues, on each queue. */
static void queues(struct device *d)
{
	for (unsigned q = 0; q < 3; q++)
		for (unsigned i = 0; abuse_name(i); i++) {
			bool ok;

			net = (struct net){.device = d};
			ok = net_start(&net, d, device_known(d->type) & ~VIRTIO_NET_F_MQ, 0, 0);
			if (ok && q >= d->queues)
				return;
			/* A receive queue is looked at when there is something for it. */
			ok = ok && (q != 0 || (memset(net_room(&net, 0), 0xff, 100) && net_send(&net, 0, 100, 0)));
			if (ok && q == 0)
				device_kick(d, virtio_net_tx(0));
			if (!ok || !abuse_queue(d, q, i) || !works(d))
				fail(d->name, "netabuse", "queue %u: %s: %s", q, abuse_name(i), d->why);
			else
				pass(d->name, "netabuse", "queue %u: %s", q, abuse_name(i));
		}
}

static void test_netabuse(void)
{
	struct device *d;

	for (unsigned n = 0; (d = device_of_type(TYPE_NET, n)); n++) {
		for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
			one(d, i, VIRTIO_NET_F_MRG_RXBUF);
			one(d, i, 0);
		}
		queues(d);
	}
}

const struct test net_abuse_tests[] = {
	{"netabuse", test_netabuse, false},
	{NULL, NULL, false},
};
