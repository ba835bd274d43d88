/* SPDX-License-Identifier: 0BSD */
/* Tests of network devices whose back-end gives every frame back (loopback): sizes, shapes, a driver without buffers, resets. */
#include "guest.h"

enum {
	FRAMES = 256,     /* default, and the most for all but the first way; all sizes of an MTU of 1500 are 1501 */
	IN_FLIGHT = 100,  /* default */
	FRAME_MIN = VIRTIO_NET_ETH_HEADER,
	MERGED_ROOM = 300, /* of a buffer where a frame is to come in several */
	ETHERTYPE = 0x88b5, /* for experiments (IEEE 802) */
	SEQUENCE_AT = VIRTIO_NET_ETH_HEADER, LENGTH_AT = SEQUENCE_AT + 4, PATTERN_AT = LENGTH_AT + 4,
	STARVED = 600, /* frames sent to a driver without receive buffers: more than a back-end may keep */
	BURST = 50,
	AFTERWARDS = 20,
	RESET_BURST = 40,
};

static uint8_t expected[VIRTIO_NET_PACKET_MAX + 8];

/* Frame number seq of len bytes, as it goes or as it comes back: the back-end swaps the addresses. */
static void build(struct net *n, uint8_t *to, uint32_t seq, uint32_t len, bool back)
{
	static const uint8_t peer[MAC_BYTES] = {0x52, 0x54, 0, 0xaa, 0xbb, 0xcc};
	uint8_t head[PATTERN_AT];
	uint64_t x = (seq + 1) * 0x9e3779b97f4a7c15ull;
	uint32_t at = PATTERN_AT;

	memcpy(head, back ? n->mac : peer, MAC_BYTES);
	memcpy(head + MAC_BYTES, back ? peer : n->mac, MAC_BYTES);
	head[12] = ETHERTYPE >> 8;
	head[13] = ETHERTYPE & 255;
	memcpy(head + SEQUENCE_AT, &seq, 4);
	memcpy(head + LENGTH_AT, &len, 4);
	memcpy(to, head, len < PATTERN_AT ? len : PATTERN_AT);
	for (; at + 8 <= len; at += 8, x += 0xbf58476d1ce4e5b9ull)
		*(uint64_t *)(to + at) = x;
	for (; at < len; at++, x >>= 8)
		to[at] = (uint8_t)x;
}

/* A run of frames, numbered for each pair, whose sizes grow from the smallest to the largest. */
struct echo {
	struct net net;
	uint32_t wanted, in_flight;
	uint32_t sent[NET_PAIRS_MAX], came[NET_PAIRS_MAX];
	uint32_t lost, most; /* in flight at a time */
	uint32_t shortest, longest;
	bool lossy;  /* frames may be missing, but never come twice or out of order */
	uint32_t base;  /* the first number */
	bool alternate; /* short, long, short, … */
	bool stale;     /* frames of earlier runs may still come: a reset does not empty the network */
	bool late_ones; /* what was given up may still come */
	uint32_t late;
	bool noise;  /* between them are frames to others, which the device must keep back */
	bool broken;
};

static uint32_t length_of(const struct echo *e, uint32_t seq)
{
	if (e->alternate)
		return seq % 2 ? e->longest : e->shortest;
	if (e->wanted < 2)
		return e->shortest;
	return e->shortest + (uint32_t)((uint64_t)(e->longest - e->shortest) * (seq % e->wanted) / (e->wanted - 1));
}

static bool came(struct net *n, unsigned pair, const uint8_t *frame, uint32_t len)
{
	struct echo *e = n->arg;
	uint32_t seq = e->came[pair], said;

	if (e->stale && len >= PATTERN_AT) {
		memcpy(&said, frame + SEQUENCE_AT, 4);
		if (said - e->base >= e->wanted)
			return true;
	}
	if (e->lossy && len >= PATTERN_AT) {
		memcpy(&said, frame + SEQUENCE_AT, 4);
		said -= e->base;
		if (e->late_ones && said < seq && len == length_of(e, said)) {
			build(n, expected, e->base + said, len, true);
			e->late++;
			return memcmp(frame, expected, len) == 0;
		}
		if (said - seq >= e->sent[pair] - seq) {
			n->device->why = "a frame came twice, out of order, or was never sent";
			return false;
		}
		e->lost += said - seq;
		seq = said;
	}
	if (seq >= e->sent[pair]) {
		n->device->why = "more frames came than were sent";
		return false;
	}
	if (len != length_of(e, seq)) {
		n->device->why = "a frame of another length than the next one sent";
		return false;
	}
	build(n, expected, e->base + seq, len, true);
	if (memcmp(frame, expected, len) != 0) {
		n->device->why = "a frame's content is not what was sent";
		return false;
	}
	e->came[pair] = seq + 1;
	return true;
}

/* A frame that comes back addressed to somebody else. */
static bool send_noise(struct echo *e, unsigned pair)
{
	uint8_t *room = net_room(&e->net, pair);

	if (!net_can_send(&e->net, pair))
		return true;
	memset(room, 0x42, FRAME_MIN);
	return net_send(&e->net, pair, FRAME_MIN, 0);
}

/* Sends as many frames as may be under way. False: d->why tells. */
static bool fill(struct echo *e, unsigned pair)
{
	bool any = false;

	while (e->sent[pair] < e->wanted && e->sent[pair] - e->came[pair] < e->in_flight) {
		uint32_t seq = e->sent[pair], len = length_of(e, seq);

		if (!net_can_send(&e->net, pair))
			break;
		build(&e->net, net_room(&e->net, pair), e->base + seq, len, false);
		if (!net_send(&e->net, pair, len, seq))
			return false;
		e->sent[pair]++;
		any = true;
		if (e->sent[pair] - e->came[pair] > e->most)
			e->most = e->sent[pair] - e->came[pair];
		if (e->noise && seq % 8 == 0 && !send_noise(e, pair))
			return false;
		/* Not all at once: the device works while the next ones are made. */
		if (seq % 16 == 15)
			device_kick(e->net.device, virtio_net_tx(pair));
	}
	if (any)
		device_kick(e->net.device, virtio_net_tx(pair));
	return true;
}

static bool all_came(void *arg)
{
	struct echo *e = arg;
	bool all = true;

	if (!net_reap(&e->net)) {
		e->broken = true;
		return true;
	}
	for (unsigned p = 0; p < e->net.pairs; p++) {
		if (!fill(e, p)) {
			e->broken = true;
			return true;
		}
		all &= e->came[p] == e->wanted;
	}
	return all && e->net.completed == e->net.sent;
}

static void echo_init(struct echo *e, uint32_t wanted)
{
	static uint32_t runs;

	*e = (struct echo){.wanted = wanted, .in_flight = (uint32_t)option_number("inflight", IN_FLIGHT), .shortest = FRAME_MIN};
	e->base = runs++ << 16;
	e->net.frame = came;
	e->net.arg = e;
}

/* For a run after one that ended in the middle. */
static void echo_init_after(struct echo *e, uint32_t wanted)
{
	echo_init(e, wanted);
	e->stale = true;
	e->shortest = PATTERN_AT;
}

/* What the device has room for at a time, so that nothing is lost. */
static void echo_limit(struct echo *e)
{
	uint32_t packet = e->net.header + net_frame_max(&e->net), each = (packet + e->net.room - 1) / e->net.room;

	/* A device may hold the buffers of one frame back, to have them at hand for the next one. */
	if (each > 1 && e->in_flight > e->net.buffers / each - 1)
		e->in_flight = e->net.buffers / each - 1;
	if (e->in_flight > e->net.buffers)
		e->in_flight = e->net.buffers;
	if (e->in_flight < 1)
		e->in_flight = 1;
	if (e->longest == 0)
		e->longest = net_frame_max(&e->net);
}

/* Sends e->wanted frames over each pair and gets them back. */
static bool echo_run(struct echo *e)
{
	struct device *d = e->net.device;

	if (!wait_for(all_came, e)) {
		for (unsigned p = 0; p < e->net.pairs; p++)
			info(d->name, "echo", "pair=%u sent=%u came=%u completed=%u of %u", p, e->sent[p], e->came[p], e->net.completed,
			     e->net.sent);
		d->why = "not all frames came back in time";
		return false;
	}
	return !e->broken;
}

bool net_echo(struct net *n, uint32_t frames)
{
	static struct echo e;

	echo_init_after(&e, frames);
	e.longest = 200;
	n->frame = came;
	n->arg = &e;
	e.net = *n;
	echo_limit(&e);
	return echo_run(&e);
}

static void test_netconfig(void)
{
	static struct net n;
	struct device *d;
	uint64_t status = VIRTIO_NET_S_LINK_UP;

	for (unsigned i = 0; (d = device_of_type(TYPE_NET, i)); i++) {
		n = (struct net){.device = d};
		if (!net_start(&n, d, device_known(d->type), 0, NET_BUFFERS_MAX)) {
			fail(d->name, "config", "%s", d->why);
			continue;
		}
		if (n.mac[0] & 1 || (n.mac[0] | n.mac[1] | n.mac[2] | n.mac[3] | n.mac[4] | n.mac[5]) == 0) {
			fail(d->name, "config", "the MAC address is a group's or zero");
			continue;
		}
		if (d->features & VIRTIO_NET_F_STATUS)
			device_config(d, VIRTIO_NET_CONFIG_STATUS, 2, &status);
		pass(d->name, "config", "mac=%x:%x:%x:%x:%x:%x mtu=%u pairs=%u queues=%u status=%lu header=%u", n.mac[0], n.mac[1], n.mac[2],
		     n.mac[3], n.mac[4], n.mac[5], n.mtu, n.pairs_max, d->queues, status, n.header);
	}
}

/* Each way in which buffers and rings can be used. */
static const struct {
	const char *name;
	uint64_t with, without;
	bool merged;
} ways[] = {
	{"plain", 0, VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_MQ | VIRTQ_F_INDIRECT_DESC | VIRTQ_F_EVENT_IDX, false},
	{"ring", VIRTQ_F_INDIRECT_DESC | VIRTQ_F_EVENT_IDX, VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_MQ, false},
	{"merged", VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MQ, true},
	{"pairs", VIRTIO_NET_F_MQ, 0, false},
};

/* Of buffers in several of which a frame is to come, if a queue of so many holds two frames. */
static uint32_t merged_room(struct net *n)
{
	uint32_t least = 2 * (net_frame_max(n) + n->header) / n->device->q[0].num + 1;

	return least > MERGED_ROOM ? least : MERGED_ROOM;
}

static bool echo_way(struct device *d, unsigned way, uint32_t frames)
{
	static struct echo e;
	uint64_t known = device_known(d->type) & ~ways[way].without, since = ticks;

	echo_init(&e, frames);
	if (!net_start(&e.net, d, known, 0, ways[way].merged ? 0 : NET_BUFFERS_MAX))
		return false;
	if ((d->features & ways[way].with) != ways[way].with) {
		info(d->name, "echo", "way=%s: not offered", ways[way].name);
		return true;
	}
	if (ways[way].merged && !net_post(&e.net, merged_room(&e.net), NET_BUFFERS_MAX))
		return false;
	echo_limit(&e);
	if (!echo_run(&e))
		return false;
	if (ways[way].merged && e.net.merged == 0 && e.longest + e.net.header > e.net.room) {
		d->why = "no frame came in several buffers";
		return false;
	}
	info(d->name, "echo", "way=%s pairs=%u frames=%u from=%u to=%u inflight=%u merged=%u header=%u buffers=%u ticks=%lu", ways[way].name,
	     e.net.pairs, e.net.received, e.shortest, e.longest, e.most, e.net.merged, e.net.header, e.net.buffers, ticks - since);
	return true;
}

static void test_echo(void)
{
	uint32_t frames = (uint32_t)option_number("frames", FRAMES), done = 0;
	struct device *d;

	for (unsigned i = 0; (d = device_of_type(TYPE_NET, i)); i++) {
		bool ok = true;

		for (unsigned w = 0; w < sizeof(ways) / sizeof(*ways) && ok; w++) {
			/* The other ways differ in buffers and rings, not in sizes. */
			ok = echo_way(d, w, w && frames > FRAMES ? FRAMES : frames);
			if (!ok)
				fail(d->name, "echo", "%s: %s", ways[w].name, d->why);
		}
		if (ok)
			pass(d->name, "echo", "frames=%u", frames);
		done++;
	}
	if (!done)
		fail(NULL, "echo", "no network device");
}

/* Whether all that was sent is taken back, and the last frame came. */
static bool last_came(void *arg)
{
	struct echo *e = arg;

	if (!net_reap(&e->net)) {
		e->broken = true;
		return true;
	}
	return e->net.completed == e->net.sent && e->came[0] == e->sent[0];
}

static bool all_completed(void *arg)
{
	struct echo *e = arg;

	if (!net_reap(&e->net)) {
		e->broken = true;
		return true;
	}
	return e->net.completed == e->net.sent;
}

/* Adds the next frame. */
static bool add_one(struct echo *e)
{
	uint8_t *room = net_room(&e->net, 0);
	uint32_t len = length_of(e, e->sent[0]);

	if (!room) {
		e->net.device->why = "no transmit buffer is free";
		return false;
	}
	build(&e->net, room, e->base + e->sent[0], len, false);
	return net_send(&e->net, 0, len, e->sent[0]++);
}

/* Sends n frames at once, and waits until ready. */
static bool send_some(struct echo *e, unsigned n, bool (*ready)(void *arg))
{
	struct device *d = e->net.device;

	while (n--)
		if (!add_one(e))
			return false;
	device_kick(d, virtio_net_tx(0));
	if (!wait_for(ready, e)) {
		info(d->name, "net", "sent=%u came=%u completed=%u of %u lost=%u", e->sent[0], e->came[0], e->net.completed, e->net.sent,
		     e->lost);
		d->why = ready == all_completed ? "a frame was not taken in time: sending waits for the driver's receive buffers"
						: "a frame did not come back in time";
		return false;
	}
	return !e->broken;
}

/* Whether the last frame came, or a second has passed. */
static uint64_t second_since;
static bool came_or_second(void *arg) { return last_came(arg) || ticks - second_since > TICKS_PER_SECOND; }

/* Sends frames until one comes back: earlier ones may be lost. */
static bool send_until_one_came(struct echo *e)
{
	for (unsigned i = 0; i < AFTERWARDS; i++) {
		second_since = ticks;
		if (!send_some(e, 1, came_or_second))
			return false;
		if (e->came[0] == e->sent[0])
			return true;
	}
	e->net.device->why = "no frame comes back any more";
	return false;
}

/* The driver gives no receive buffers, then some: what was sent meanwhile may be lost, but sending goes on, and so does receiving. */
static bool starve(struct echo *e, struct device *d, uint64_t features)
{
	echo_init_after(e, STARVED + 2 * AFTERWARDS);
	e->lossy = true;
	if (!net_start(&e->net, d, features, 0, 0))
		return false;
	e->longest = net_frame_max(&e->net) < 300 ? net_frame_max(&e->net) : 300;
	for (unsigned i = 0; i < STARVED; i += BURST)
		if (!send_some(e, BURST, all_completed))
			return false;
	if (e->net.received != 0) {
		d->why = "frames came into no buffer";
		return false;
	}
	if (!net_post(&e->net, 0, NET_BUFFERS_MAX))
		return false;
	/* What the back-end has kept comes first. */
	if (!send_until_one_came(e))
		return false;
	if (!send_some(e, AFTERWARDS, last_came))
		return false;
	info(d->name, "starve", "sent=%u came=%u lost=%u", e->net.sent, e->net.received, e->lost);
	return true;
}

/* Buffers that are too short for some of the frames. Without merging these are dropped, and the others come. */
static bool tiny(struct echo *e, struct device *d, uint64_t features)
{
	enum { ROOM = 96, COUNT = 40 };
	bool merging;

	echo_init_after(e, COUNT);
	e->lossy = e->alternate = true;
	e->shortest = 60;
	if (!net_start(&e->net, d, features, ROOM, NET_BUFFERS_MAX))
		return false;
	merging = (d->features & VIRTIO_NET_F_MRG_RXBUF) != 0;
	e->longest = 900;
	for (unsigned i = 0; i < COUNT; i++)
		if (!send_some(e, 1, !merging && i % 2 ? all_completed : last_came))
			return false;
	if (merging ? e->net.received != COUNT || e->net.merged != COUNT / 2 : e->net.received != COUNT / 2 || e->lost != COUNT / 2 - 1) {
		info(d->name, "starve", "sent=%u came=%u merged=%u lost=%u", e->net.sent, e->net.received, e->net.merged, e->lost);
		d->why = merging ? "not each long frame came, in several buffers" : "a frame came into a buffer that is too short, or one that fits was lost";
		return false;
	}
	return true;
}

static void test_starve(void)
{
	static struct echo e;
	struct device *d;

	for (unsigned i = 0; (d = device_of_type(TYPE_NET, i)); i++) {
		uint64_t known = device_known(d->type) & ~VIRTIO_NET_F_MQ;

		if (!starve(&e, d, known & ~VIRTIO_NET_F_MRG_RXBUF) || !starve(&e, d, known))
			fail(d->name, "starve", "no buffers: %s", d->why);
		else if (!tiny(&e, d, known & ~VIRTIO_NET_F_MRG_RXBUF) || !tiny(&e, d, known))
			fail(d->name, "starve", "tiny buffers: %s", d->why);
		else
			pass(d->name, "starve", "lost=%u", e.lost);
	}
}

static bool two_ticks(void *arg) { return ticks - *(uint64_t *)arg >= 3; }

/* A reset with frames under way in both directions: afterwards the device touches no buffer, and starts anew. */
static bool reset_midway(struct echo *e, struct device *d, uint64_t features, unsigned round)
{
	enum { CANARY = 0x5a };
	uint64_t since;

	echo_init(e, RESET_BURST);
	if (!net_start(&e->net, d, features, 0, NET_BUFFERS_MAX))
		return false;
	e->longest = 500;
	if (!fill(e, 0))
		return false;
	/* Sometimes before anything, sometimes between frames. */
	for (unsigned i = 0; i < round % 5 * 4; i++)
		if (!net_reap(&e->net))
			return false;
	if (!device_reset(d))
		return false;
	for (unsigned i = 0; i < e->net.buffers; i++)
		memset(net_buffer(&e->net, 0, i), CANARY, 64);
	since = ticks;
	wait_for(two_ticks, &since);
	for (unsigned i = 0; i < e->net.buffers; i++)
		for (unsigned k = 0; k < 64; k++)
			if (net_buffer(&e->net, 0, i)[k] != CANARY) {
				d->why = "the device wrote into a receive buffer after its reset";
				return false;
			}
	echo_init_after(e, 10);
	if (!net_start(&e->net, d, features, 0, NET_BUFFERS_MAX))
		return false;
	e->longest = 200;
	return echo_run(e);
}

static void test_netreset(void)
{
	static struct echo e;
	uint64_t rounds = option_number("reinit", 3);
	struct device *d;

	for (unsigned i = 0; (d = device_of_type(TYPE_NET, i)); i++) {
		bool ok = true;

		for (unsigned k = 0; k < rounds && ok; k++)
			ok = reset_midway(&e, d, device_known(d->type) & ~(k % 2 ? VIRTIO_NET_F_MRG_RXBUF : 0), k);
		if (ok)
			pass(d->name, "reset", "rounds=%lu", rounds);
		else
			fail(d->name, "reset", "%s", d->why);
	}
}

/* Waits until somebody changes the link, twice: by virtio-mmio an interrupt must tell, on the lguest bus nothing can. */
struct link {
	struct device *device;
	uint64_t before, now;
	uint32_t interrupts;
};

static bool link_changed(void *arg)
{
	struct link *l = arg;

	if (!device_config(l->device, VIRTIO_NET_CONFIG_STATUS, 2, &l->now))
		return true;
	if (((l->now ^ l->before) & VIRTIO_NET_S_LINK_UP) == 0)
		return false;
	return l->device->bus == BUS_LGUEST || l->device->config_interrupts != l->interrupts;
}

static void test_link(void)
{
	static struct echo e;
	struct device *d = device_of_type(TYPE_NET, 0);
	struct link l = {.device = d};

	echo_init_after(&e, 10);
	if (!d || !net_start(&e.net, d, device_known(d->type) & ~VIRTIO_NET_F_MQ, 0, NET_BUFFERS_MAX) || !(d->features & VIRTIO_NET_F_STATUS) ||
	    !device_config(d, VIRTIO_NET_CONFIG_STATUS, 2, &l.before)) {
		fail(NULL, "link", "no network device with a status: %s", d ? d->why : "");
		return;
	}
	for (unsigned i = 0; i < 2; i++) {
		l.interrupts = d->config_interrupts;
		info(d->name, "link", "waits: up=%lu", l.before & VIRTIO_NET_S_LINK_UP);
		if (!wait_for(link_changed, &l)) {
			fail(d->name, "link", "up=%lu: %s", l.now & VIRTIO_NET_S_LINK_UP,
			     (l.now ^ l.before) & VIRTIO_NET_S_LINK_UP ? "it has changed without an interrupt" : "no change in time");
			return;
		}
		info(d->name, "link", "changed: up=%lu interrupts=%u", l.now & VIRTIO_NET_S_LINK_UP, d->config_interrupts - l.interrupts);
		l.before = l.now;
	}
	/* Up again, frames go. */
	e.longest = 200;
	if ((l.now & VIRTIO_NET_S_LINK_UP) && !echo_run(&e))
		fail(d->name, "link", "after it was up again: %s", d->why);
	else
		pass(d->name, "link", "up=%lu config_interrupts=%u", l.now & VIRTIO_NET_S_LINK_UP, d->config_interrupts);
}

/* An address of the driver's own choice, and none but frames to it. */
static bool choose_address(struct net *n)
{
	static const uint8_t chosen[MAC_BYTES] = {0x52, 0x54, 0, 1, 2, 3};
	const uint64_t need = VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_CTRL_RX | VIRTIO_NET_F_CTRL_MAC_ADDR;
	uint8_t off = 0;

	if ((n->device->features & need) != need) {
		n->device->why = "it has no control of the receive mode and the address";
		return false;
	}
	if (net_control(n, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &off, 1) != VIRTIO_NET_OK ||
	    net_control(n, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, chosen, MAC_BYTES) != VIRTIO_NET_OK) {
		n->device->why = "it refuses a good command";
		return false;
	}
	memcpy(n->mac, chosen, MAC_BYTES);
	return true;
}

static void test_netfilter(void)
{
	static struct echo e;
	struct device *d;

	for (unsigned i = 0; (d = device_of_type(TYPE_NET, i)); i++) {
		echo_init(&e, 64);
		e.noise = true;
		if (!net_start(&e.net, d, device_known(d->type) & ~VIRTIO_NET_F_MQ, 0, NET_BUFFERS_MAX) || !choose_address(&e.net)) {
			fail(d->name, "filter", "%s", d->why);
			continue;
		}
		echo_limit(&e);
		if (echo_run(&e))
			pass(d->name, "filter", "frames=%u sent=%u", e.net.received, e.net.sent);
		else
			fail(d->name, "filter", "%s", d->why);
	}
}

/* Frames back and forth until somebody takes the link down. Some may be lost, when the device's program dies; nothing else may go wrong. */
struct survive {
	struct echo echo;
	uint32_t total, before; /* came in all, and when last looked at */
	uint64_t progress, said;
};

static bool link_is_down(struct device *d)
{
	uint64_t status;

	return device_config(d, VIRTIO_NET_CONFIG_STATUS, 2, &status) && !(status & VIRTIO_NET_S_LINK_UP);
}

static bool survived(void *arg)
{
	struct survive *s = arg;
	struct echo *e = &s->echo;

	(void)all_came(e);
	if (e->broken)
		return true;
	if (e->net.received != s->before) {
		s->before = e->net.received;
		s->progress = ticks;
	} else if (e->net.completed == e->net.sent && ticks - s->progress > TICKS_PER_SECOND) { /* what is still out is lost */
		e->lost += e->sent[0] - e->came[0];
		e->came[0] = e->sent[0];
		s->progress = ticks;
	}
	if (ticks - s->said >= TICKS_PER_SECOND / 4) {
		s->said = ticks;
		info(e->net.device->name, "survive", "came=%u sent=%u lost=%u", e->net.received, e->net.sent, e->lost);
		return link_is_down(e->net.device);
	}
	return false;
}

static void test_survive(void)
{
	static struct survive s;
	struct device *d = device_of_type(TYPE_NET, 0);
	struct echo *e = &s.echo;

	s = (struct survive){.progress = ticks, .said = ticks};
	echo_init(e, UINT32_MAX);
	e->lossy = e->noise = e->late_ones = true;
	e->in_flight = 8;
	e->shortest = e->longest = 200;
	if (!d || !net_start(&e->net, d, device_known(d->type) & ~VIRTIO_NET_F_MQ, 0, NET_BUFFERS_MAX) || !choose_address(&e->net)) {
		fail(NULL, "survive", "%s", d ? d->why : "no network device");
		return;
	}
	while (!wait_for(survived, &s)) /* as long as it takes */
		;
	if (e->broken)
		fail(d->name, "survive", "came=%u sent=%u lost=%u: %s", e->net.received, e->net.sent, e->lost, d->why);
	else
		pass(d->name, "survive", "came=%u sent=%u lost=%u late=%u", e->net.received, e->net.sent, e->lost, e->late);
}

const struct test net_tests[] = {
	{"netconfig", test_netconfig, true},
	{"echo", test_echo, false},
	{"starve", test_starve, false},
	{"netreset", test_netreset, false},
	{"netfilter", test_netfilter, false},
	{"link", test_link, false},
	{"survive", test_survive, false},
	{NULL, NULL, false},
};
