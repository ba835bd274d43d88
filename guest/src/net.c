/* SPDX-License-Identifier: 0BSD */
/* Network devices (VIRTIO 1.2, 5.1): frames out and in, and commands. One device at a time: the memory is shared. */
#include "guest.h"

/* A frame on its way out: descriptors of its own, if it goes by an indirect chain, then header and frame. */
struct transmit {
	struct virtq_desc table[NET_PIECES_MAX];
	bool busy;
	uint8_t packet[] __attribute__((aligned(16)));
};

static uint8_t rx_pool[NET_PAIRS_MAX][NET_POOL] __attribute__((aligned(4096)));
static uint8_t tx_pool[NET_PAIRS_MAX][NET_POOL] __attribute__((aligned(4096)));
/* A frame that came in several buffers, put together. */
static uint8_t whole[VIRTIO_NET_PACKET_MAX + VIRTIO_NET_VLAN_TAG];

uint32_t net_frame_max(const struct net *n) { return n->mtu + VIRTIO_NET_ETH_HEADER; }

/* Between two transmit slots. */
static uint32_t stride(const struct net *n)
{
	return (uint32_t)(sizeof(struct transmit) + n->header + net_frame_max(n) + VIRTIO_NET_VLAN_TAG + 15) & ~15u;
}

static struct transmit *slot(struct net *n, unsigned pair, unsigned i)
{
	return (struct transmit *)(tx_pool[pair] + (size_t)i * stride(n));
}

uint8_t *net_buffer(struct net *n, unsigned pair, unsigned i) { return rx_pool[pair] + (size_t)i * n->room; }

/* A legacy device that does not have ANY_LAYOUT wants the header in a descriptor of its own (6.3). */
static bool header_alone(const struct net *n)
{
	return !(n->device->features & (VIRTIO_NET_F_VERSION_1 | VIRTIO_NET_F_ANY_LAYOUT));
}

static bool post_one(struct net *n, unsigned pair, uint8_t *buffer)
{
	struct virtq_buf b[2] = {{phys(buffer), n->header}, {phys(buffer) + n->header, n->room - n->header}};
	struct virtq *q = &n->device->q[virtio_net_rx(pair)].vq;

	/* With mergeable buffers each is one descriptor (5.1.6.3.2), also a legacy device's. */
	if (!header_alone(n) || (n->device->features & VIRTIO_NET_F_MRG_RXBUF) || n->room <= n->header) {
		b[0].len = n->room;
		return virtq_add(q, b, 0, 1, buffer) == 0;
	}
	return virtq_add(q, b, 0, 2, buffer) == 0;
}

bool net_post(struct net *n, uint32_t room, unsigned buffers)
{
	unsigned entries = n->device->q[0].num;

	n->room = room ? room : (virtio_net_room(n->device->features, n->mtu) + 15) & ~15u;
	n->buffers = NET_POOL / n->room;
	if (header_alone(n) && !(n->device->features & VIRTIO_NET_F_MRG_RXBUF))
		entries /= 2;
	if (n->buffers > entries)
		n->buffers = entries;
	if (n->buffers > buffers)
		n->buffers = buffers;
	for (unsigned p = 0; p < n->pairs; p++) {
		for (unsigned i = 0; i < n->buffers; i++)
			if (!post_one(n, p, net_buffer(n, p, i))) {
				n->device->why = "the queue does not take a receive buffer";
				return false;
			}
		device_kick(n->device, virtio_net_rx(p));
	}
	return true;
}

/* What the config space tells, with what holds where a feature is missing. */
static bool configure(struct net *n)
{
	struct device *d = n->device;
	uint64_t v;

	n->mtu = VIRTIO_NET_MTU_DEFAULT;
	n->pairs_max = 1;
	if (d->features & VIRTIO_NET_F_MTU) {
		if (!device_config(d, VIRTIO_NET_CONFIG_MTU, 2, &v) || v < 68) {
			d->why = "the config space has no MTU, or one less than 68 (5.1.4.1)";
			return false;
		}
		n->mtu = (uint32_t)v;
	}
	if (d->features & VIRTIO_NET_F_MQ) {
		device_config(d, VIRTIO_NET_CONFIG_PAIRS, 2, &v);
		n->pairs_max = (unsigned)v;
	}
	for (unsigned i = 0; i < MAC_BYTES; i++) {
		static const uint8_t own[MAC_BYTES] = {0x52, 0x54, 0, 0, 0, 1};

		n->mac[i] = own[i];
		if (!(d->features & VIRTIO_NET_F_MAC))
			continue;
		if (!device_config(d, VIRTIO_NET_CONFIG_MAC + i, 1, &v)) {
			d->why = "the config space has no MAC address";
			return false;
		}
		n->mac[i] = (uint8_t)v;
	}
	n->control = d->features & VIRTIO_NET_F_CTRL_VQ ? virtio_net_ctrl(n->pairs_max) : 0;
	if (d->queues < 2 * n->pairs_max + (n->control != 0)) {
		d->why = "the device has fewer queues than it says";
		return false;
	}
	return true;
}

bool net_start(struct net *n, struct device *d, uint64_t features, uint32_t room, unsigned buffers)
{
	uint16_t pairs;

	*n = (struct net){.device = d, .frame = n->frame, .arg = n->arg};
	if (!device_start(d, features) || !configure(n))
		return false;
	n->header = virtio_net_hdr_bytes(d->features);
	n->pairs = n->pairs_max < NET_PAIRS_MAX ? n->pairs_max : NET_PAIRS_MAX;
	n->slots = NET_POOL / stride(n);
	if (n->slots > NET_BUFFERS_MAX)
		n->slots = NET_BUFFERS_MAX;
	for (unsigned p = 0; p < n->pairs; p++)
		for (unsigned i = 0; i < n->slots; i++)
			slot(n, p, i)->busy = false;
	if (!net_post(n, room, buffers))
		return false;
	pairs = (uint16_t)n->pairs;
	if (n->pairs > 1 && net_control(n, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_PAIRS_SET, &pairs, 2) != VIRTIO_NET_OK) {
		d->why = "the device does not take the number of queue pairs";
		return false;
	}
	return true;
}

static struct transmit *free_slot(struct net *n, unsigned pair)
{
	if (n->busy[pair] == n->slots)
		return NULL;
	while (slot(n, pair, n->next[pair])->busy)
		n->next[pair] = (n->next[pair] + 1) % n->slots;
	return slot(n, pair, n->next[pair]);
}

uint8_t *net_room(struct net *n, unsigned pair)
{
	struct transmit *t = free_slot(n, pair);

	return t ? t->packet + n->header : NULL;
}

bool net_can_send(struct net *n, unsigned pair)
{
	struct virtq *q = &n->device->q[virtio_net_tx(pair)].vq;

	return n->busy[pair] < n->slots && q->free_count >= (q->num < 2 * NET_PIECES_MAX ? 2 : NET_PIECES_MAX);
}

/* The shapes in which a packet lies in descriptors: all in one, header alone, header and 14 bytes, anywhere; short queues take two. */
static uint16_t pieces(struct net *n, struct virtq_buf *b, uint64_t at, uint32_t bytes, unsigned shape)
{
	uint32_t cuts[NET_PIECES_MAX];
	uint32_t from = 0;
	uint16_t count = 0, used = 0;

	shape %= n->device->q[1].num < 2 * NET_PIECES_MAX ? 2 : 4;
	if (shape == 0 && header_alone(n))
		shape = 1;
	if (shape == 3 && !header_alone(n))
		cuts[count++] = 3;
	if (shape != 0)
		cuts[count++] = n->header;
	if (shape >= 2)
		cuts[count++] = n->header + VIRTIO_NET_ETH_HEADER;
	cuts[count++] = bytes;
	for (unsigned i = 0; i < count; i++) {
		if (cuts[i] > bytes || cuts[i] == from)
			continue;
		b[used++] = (struct virtq_buf){at + from, cuts[i] - from};
		from = cuts[i];
	}
	return used;
}

bool net_send(struct net *n, unsigned pair, uint32_t len, unsigned shape)
{
	struct virtq_buf b[NET_PIECES_MAX];
	struct transmit *t = free_slot(n, pair);
	struct virtq *q = &n->device->q[virtio_net_tx(pair)].vq;
	bool indirect = (n->device->features & VIRTQ_F_INDIRECT_DESC) && shape & 4;
	uint16_t count;
	int r;

	if (!t) {
		n->device->why = "no transmit buffer is free";
		return false;
	}
	memset(t->packet, 0, n->header);
	count = pieces(n, b, phys(t->packet), n->header + len, shape);
	r = indirect ? virtq_add_indirect(q, t->table, phys(t->table), b, count, 0, t) : virtq_add(q, b, count, 0, t);
	if (r) {
		n->device->why = "the queue does not take a frame";
		return false;
	}
	t->busy = true;
	n->busy[pair]++;
	n->sent++;
	return true;
}

/* The rest of a frame whose first buffer had len bytes of it, from further buffers. False: it is not there, or too long. */
static bool merge(struct net *n, unsigned pair, const uint8_t *first, uint32_t *len, uint32_t buffers)
{
	struct virtq *q = &n->device->q[virtio_net_rx(pair)].vq;
	uint32_t used, at = *len;
	void *token;

	memcpy(whole, first, at);
	while (--buffers) {
		if (virtq_get(q, &token, &used) != 1) {
			n->device->why = "a frame is in more buffers than the device has used";
			return false;
		}
		if (used > sizeof(whole) - at) {
			n->device->why = "a merged frame is longer than any can be";
			return false;
		}
		memcpy(whole + at, token, used);
		at += used;
		if (!post_one(n, pair, token)) {
			n->device->why = "the queue does not take a receive buffer back";
			return false;
		}
	}
	n->merged++;
	*len = at;
	return true;
}

static bool receive(struct net *n, unsigned pair, uint8_t *buffer, uint32_t len)
{
	struct virtio_net_hdr h;
	uint32_t buffers = virtio_net_received(buffer, len, n->device->features, &h);
	const uint8_t *frame = buffer + n->header;

	if (buffers == 0 || buffers > n->device->q[0].num) {
		n->device->why = "a packet without a whole header, or in 0 buffers, or in more than there are";
		return false;
	}
	if (!(n->device->features & VIRTIO_NET_F_MRG_RXBUF) && n->header == 12 && h.num_buffers != 1) {
		n->device->why = "num_buffers is not 1 without MRG_RXBUF (5.1.6.4)";
		return false;
	}
	len -= n->header;
	if (buffers > 1) {
		if (!merge(n, pair, frame, &len, buffers))
			return false;
		frame = whole;
	}
	if (!virtio_net_hdr_ok(&h, n->device->features, len)) {
		n->device->why = "a packet's header asks for what was not negotiated, or points out of the frame";
		return false;
	}
	n->received++;
	if (n->frame && !n->frame(n, pair, frame, len))
		return false;
	if (!post_one(n, pair, buffer)) {
		n->device->why = "the queue does not take a receive buffer back";
		return false;
	}
	return true;
}

/* Takes back what was used on one queue, until none is there and an interrupt will tell of the next. */
static bool reap(struct net *n, unsigned pair, bool rx)
{
	struct virtq *q = &n->device->q[rx ? virtio_net_rx(pair) : virtio_net_tx(pair)].vq;
	void *token;
	uint32_t len;
	int r;

	do {
		while ((r = virtq_get(q, &token, &len)) == 1) {
			if (rx) {
				if (!receive(n, pair, token, len))
					return false;
				continue;
			}
			((struct transmit *)token)->busy = false;
			n->busy[pair]--;
			n->completed++;
		}
	} while (r == 0 && virtq_enable_calls(q, 1));
	if (r < 0) {
		n->device->why = rx ? "the device used a receive chain that it was not given, or wrote more than it may"
				    : "the device used a transmit chain that it was not given, or wrote into it";
		return false;
	}
	if (rx)
		device_kick(n->device, virtio_net_rx(pair));
	return true;
}

bool net_reap(struct net *n)
{
	for (unsigned p = 0; p < n->pairs; p++)
		if (!reap(n, p, false) || !reap(n, p, true))
			return false;
	return true;
}

struct answer {
	struct virtq *queue;
	int result; /* of virtq_get */
};

static bool answered(void *arg)
{
	struct answer *a = arg;
	void *token;
	uint32_t len;

	do
		a->result = virtq_get(a->queue, &token, &len);
	while (a->result == 0 && virtq_enable_calls(a->queue, 1));
	return a->result != 0;
}

int net_control(struct net *n, uint8_t class, uint8_t command, const void *data, uint32_t len)
{
	static uint8_t head[2], ack, copy[2048];
	struct virtq_buf b[3] = {{phys(head), 2}, {phys(copy), len}, {phys(&ack), 1}};
	struct answer a = {&n->device->q[n->control].vq, 0};
	uint16_t out = len ? 2 : 1;

	if (!n->control || len > sizeof(copy)) {
		n->device->why = "there is no control queue, or the command is too long";
		return -1;
	}
	head[0] = class;
	head[1] = command;
	ack = 0xee;
	memcpy(copy, data, len);
	if (!len)
		b[1] = b[2];
	if (virtq_add(a.queue, b, out, 1, NULL)) {
		n->device->why = "the control queue does not take a command";
		return -1;
	}
	device_kick(n->device, n->control);
	if (!wait_for(answered, &a) || a.result < 0) {
		n->device->why = a.result < 0 ? "the device broke the control queue" : "no answer to a command in time";
		return -1;
	}
	return *(volatile uint8_t *)&ack;
}
