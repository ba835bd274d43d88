/* SPDX-License-Identifier: 0BSD */
/*
 * A network behind the device: an address by DHCP, the gateway by ARP, a name by DNS, an echo by ICMP, and one TCP connection, all
 * with checksums. It is no network stack: one question at a time, asked again until it is answered.
 */
#include "guest.h"

enum {
	ETH = VIRTIO_NET_ETH_HEADER, IP = ETH + 20, ARP_BYTES = 28, UDP_BYTES = 8, TCP_BYTES = 20,
	TYPE_IP = 0x0800, TYPE_ARP = 0x0806,
	ICMP = 1, TCP = 6, UDP = 17,
	DHCP_SERVER = 67, DHCP_CLIENT = 68, DNS = 53, OWN_PORT = 40000,
	DHCP_FIXED = 240, /* bytes before the options, with the magic number */
	DHCP_DISCOVER = 1, DHCP_OFFER = 2, DHCP_REQUEST = 3, DHCP_ACK = 5,
	FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16,
	WINDOW = 32768,
	PING_BYTES = 1000,
};

struct network {
	struct net net;
	uint32_t address, mask, gateway, dns, server, offered, mtu;
	uint8_t gateway_mac[MAC_BYTES];
	bool have_gateway, have_offer, have_lease, have_echo, have_name;
	uint32_t name; /* what the DNS query gave */
	uint16_t id;
	struct {
		uint32_t peer, mine, next, crc, bytes;
		uint16_t port, own;
		bool open, closed, refused;
	} tcp;
	/* The question under way. */
	void (*ask)(struct network *w);
	bool *answered;
	uint64_t asked;
	bool broken;
	bool owes; /* a frame was lost here: what we have received is to be acknowledged again */
};

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static void put16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8), p[1] = (uint8_t)v; }
static void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16), put16(p + 2, v); }

/* The sum of RFC 1071, not folded. */
static uint32_t sum(const uint8_t *p, uint32_t n, uint32_t s)
{
	for (; n >= 2; n -= 2, p += 2)
		s += get16(p);
	return n ? s + (uint32_t)(*p << 8) : s;
}

static uint16_t folded(uint32_t s)
{
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return (uint16_t)~s;
}

/* Of a TCP segment or UDP datagram of n bytes after the IP header of frame. */
static uint16_t transport_sum(const uint8_t *frame, uint32_t n)
{
	return folded(sum(frame + IP, n, sum(frame + ETH + 12, 8, frame[ETH + 9] + n)));
}

/* Where the next frame is to be written. If none can be sent now it is lost, as networks have it. */
static uint8_t *frame_room(struct network *w)
{
	static uint8_t nowhere[2048];
	uint8_t *room = net_can_send(&w->net, 0) ? net_room(&w->net, 0) : NULL;

	return room ? room : nowhere;
}

static void send_frame(struct network *w, const uint8_t *to, uint16_t type, uint32_t len)
{
	static const uint8_t everybody[MAC_BYTES] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	uint8_t *f = frame_room(w);

	memcpy(f, to ? to : everybody, MAC_BYTES);
	memcpy(f + MAC_BYTES, w->net.mac, MAC_BYTES);
	put16(f + 12, type);
	if (!net_can_send(&w->net, 0)) {
		w->owes = true;
		return;
	}
	if (!net_send(&w->net, 0, len, w->id))
		w->broken = true;
	device_kick(w->net.device, virtio_net_tx(0));
}

/* Sends what is after the IP header in net_room. */
static void send_ip(struct network *w, const uint8_t *mac, uint8_t protocol, uint32_t from, uint32_t to, uint32_t payload)
{
	uint8_t *f = frame_room(w), *ip = f + ETH;

	memset(ip, 0, 20);
	ip[0] = 0x45;
	put16(ip + 2, 20 + payload);
	put16(ip + 4, ++w->id);
	ip[8] = 64;
	ip[9] = protocol;
	put32(ip + 12, from);
	put32(ip + 16, to);
	put16(ip + 10, folded(sum(ip, 20, 0)));
	if (protocol == UDP) {
		uint16_t s;

		put16(f + IP + 6, 0);
		s = transport_sum(f, payload);
		put16(f + IP + 6, s ? s : 0xffff);
	}
	if (protocol == TCP) {
		put16(f + IP + 16, 0);
		put16(f + IP + 16, transport_sum(f, payload));
	}
	send_frame(w, mac, TYPE_IP, ETH + 20 + payload);
}

static void send_udp(struct network *w, const uint8_t *mac, uint16_t from, uint32_t to, uint16_t port, uint32_t payload)
{
	uint8_t *u = frame_room(w) + IP;

	put16(u, from);
	put16(u + 2, port);
	put16(u + 4, UDP_BYTES + payload);
	send_ip(w, mac, UDP, from == DHCP_CLIENT ? 0 : w->address, to, UDP_BYTES + payload);
}

static void send_arp(struct network *w, const uint8_t *mac, uint16_t operation, uint32_t target)
{
	uint8_t *a = frame_room(w) + ETH;

	memset(a, 0, ARP_BYTES);
	put16(a, 1);
	put16(a + 2, TYPE_IP);
	a[4] = MAC_BYTES;
	a[5] = 4;
	put16(a + 6, operation);
	memcpy(a + 8, w->net.mac, MAC_BYTES);
	put32(a + 14, w->address);
	if (mac)
		memcpy(a + 18, mac, MAC_BYTES);
	put32(a + 24, target);
	send_frame(w, mac, TYPE_ARP, ETH + ARP_BYTES);
}

static void ask_gateway(struct network *w) { send_arp(w, NULL, 1, w->gateway); }

static void took_arp(struct network *w, const uint8_t *f, uint32_t len)
{
	const uint8_t *a = f + ETH;

	if (len < ETH + ARP_BYTES || get32(a + 24) != w->address || !w->address)
		return;
	if (get16(a + 6) == 1) {
		send_arp(w, a + 8, 2, get32(a + 14));
	} else if (get16(a + 6) == 2 && get32(a + 14) == w->gateway) {
		memcpy(w->gateway_mac, a + 8, MAC_BYTES);
		w->have_gateway = true;
	}
}

static void ask_dhcp(struct network *w)
{
	static const uint8_t magic[] = {99, 130, 83, 99};
	uint8_t *d = frame_room(w) + IP + UDP_BYTES, *o = d + DHCP_FIXED;

	memset(d, 0, 300);
	d[0] = d[1] = 1;
	d[2] = MAC_BYTES;
	put32(d + 4, 0x76706c67);
	memcpy(d + 28, w->net.mac, MAC_BYTES);
	memcpy(d + 236, magic, 4);
	*o++ = 53, *o++ = 1, *o++ = w->have_offer ? DHCP_REQUEST : DHCP_DISCOVER;
	if (w->have_offer) {
		*o++ = 50, *o++ = 4, put32(o, w->offered), o += 4;
		*o++ = 54, *o++ = 4, put32(o, w->server), o += 4;
	}
	*o++ = 55, *o++ = 4, *o++ = 1, *o++ = 3, *o++ = 6, *o++ = 26; /* mask, router, name server, MTU */
	*o++ = 255;
	send_udp(w, NULL, DHCP_CLIENT, 0xffffffff, DHCP_SERVER, 300);
}

static void took_dhcp(struct network *w, const uint8_t *d, uint32_t len)
{
	uint8_t kind = 0;

	if (len < DHCP_FIXED || d[0] != 2 || get32(d + 4) != 0x76706c67 || memcmp(d + 28, w->net.mac, MAC_BYTES) != 0)
		return;
	for (uint32_t at = DHCP_FIXED; at + 2 <= len && d[at] != 255; at += d[at] ? 2u + d[at + 1] : 1u) {
		const uint8_t *o = d + at + 2;

		if (d[at] == 0 || at + 2 + d[at + 1] > len)
			continue;
		if (d[at] == 53)
			kind = o[0];
		else if (d[at] == 26 && d[at + 1] == 2)
			w->mtu = get16(o);
		else if (d[at + 1] < 4)
			continue;
		else if (d[at] == 1)
			w->mask = get32(o);
		else if (d[at] == 3)
			w->gateway = get32(o);
		else if (d[at] == 6)
			w->dns = get32(o);
		else if (d[at] == 54)
			w->server = get32(o);
	}
	if (kind == DHCP_OFFER && !w->have_offer) {
		w->offered = get32(d + 16);
		w->have_offer = true;
	} else if (kind == DHCP_ACK) {
		w->address = get32(d + 16);
		w->have_lease = true;
	}
}

static void ask_name(struct network *w)
{
	const char *name = option("name", 0) ? option("name", 0) : "gateway.virtplug.internal";
	uint8_t *q = frame_room(w) + IP + UDP_BYTES, *at = q + 12;

	memset(q, 0, 12);
	put16(q, 0x1234);
	put16(q + 2, 0x0100); /* recursion desired */
	put16(q + 4, 1);
	while (*name && at < q + 200) {
		uint8_t *length = at++;

		while (*name && *name != '.' && at < q + 200)
			*at++ = (uint8_t)*name++;
		*length = (uint8_t)(at - length - 1);
		name += *name == '.';
	}
	*at++ = 0;
	put16(at, 1), put16(at + 2, 1); /* A, IN */
	send_udp(w, w->gateway_mac, OWN_PORT, w->dns, DNS, (uint32_t)(at + 4 - q));
}

/* Past a name in a DNS message. */
static uint32_t name_end(const uint8_t *q, uint32_t at, uint32_t len)
{
	while (at < len && q[at] && q[at] < 0xc0)
		at += 1u + q[at];
	return at < len && q[at] >= 0xc0 ? at + 2 : at + 1;
}

static void took_dns(struct network *w, const uint8_t *q, uint32_t len)
{
	uint32_t at = 12, answers;

	if (len < 12 || get16(q) != 0x1234 || !(q[2] & 0x80) || (q[3] & 15) != 0)
		return;
	answers = get16(q + 6);
	at = name_end(q, at, len) + 4;
	for (uint32_t i = 0; i < answers; i++) {
		at = name_end(q, at, len);
		if (at + 10 > len || at + 10 + get16(q + at + 8) > len)
			return;
		if (get16(q + at) == 1 && get16(q + at + 8) == 4) {
			w->name = get32(q + at + 10);
			w->have_name = true;
		}
		at += 10u + get16(q + at + 8);
	}
}

static void ask_echo(struct network *w)
{
	uint8_t *i = frame_room(w) + IP;

	memset(i, 0, 8);
	i[0] = 8;
	put16(i + 4, 0x7670);
	put16(i + 6, 1);
	for (unsigned k = 8; k < PING_BYTES; k++)
		i[k] = (uint8_t)(k * 7);
	put16(i + 2, folded(sum(i, PING_BYTES, 0)));
	send_ip(w, w->gateway_mac, ICMP, w->address, w->gateway, PING_BYTES);
}

static void took_icmp(struct network *w, const uint8_t *i, uint32_t len)
{
	bool right = len == PING_BYTES && i[0] == 0 && folded(sum(i, len, 0)) == 0 && get16(i + 4) == 0x7670;

	for (unsigned k = 8; k < PING_BYTES && right; k++)
		right = i[k] == (uint8_t)(k * 7);
	w->have_echo |= right;
}

static void send_tcp(struct network *w, uint8_t flags, const char *data, uint32_t len)
{
	uint8_t *t = frame_room(w) + IP;

	put16(t, w->tcp.own);
	put16(t + 2, w->tcp.port);
	put32(t + 4, w->tcp.mine);
	put32(t + 8, w->tcp.next);
	t[12] = TCP_BYTES / 4 << 4;
	t[13] = flags;
	put16(t + 14, WINDOW);
	put32(t + 16, 0);
	memcpy(t + TCP_BYTES, data, len);
	send_ip(w, w->gateway_mac, TCP, w->address, w->tcp.peer, TCP_BYTES + len);
}

static const char greeting[] = "hello from the freestanding guest\n";

/* What is not acknowledged goes again: SYN, or the one line that we have to say. */
static void ask_tcp(struct network *w)
{
	if (!w->tcp.open)
		send_tcp(w, SYN, NULL, 0);
	else
		send_tcp(w, ACK | PSH, greeting, sizeof(greeting) - 1);
}

/* Comes after the line in the order of bytes, whether that has arrived or not. */
static void send_ack(struct network *w, uint8_t flags)
{
	w->tcp.mine += sizeof(greeting) - 1;
	send_tcp(w, ACK | flags, NULL, 0);
	w->tcp.mine -= sizeof(greeting) - 1;
}

static void took_tcp(struct network *w, const uint8_t *t, uint32_t len)
{
	uint32_t offset = len < TCP_BYTES ? UINT32_MAX : (uint32_t)(t[12] >> 4) * 4, seq = get32(t + 4), data;

	if (offset > len || offset < TCP_BYTES || get16(t + 2) != w->tcp.own || get16(t) != w->tcp.port || w->tcp.closed)
		return;
	if (t[13] & RST) {
		w->tcp.refused = w->tcp.closed = true;
		return;
	}
	if (!w->tcp.open) {
		if ((t[13] & (SYN | ACK)) != (SYN | ACK) || get32(t + 8) != w->tcp.mine + 1)
			return;
		w->tcp.mine++;
		w->tcp.next = seq + 1;
		w->tcp.open = true;
		ask_tcp(w);
		return;
	}
	data = len - offset;
	if (seq != w->tcp.next) { /* not the next one: say again which that is */
		if (data)
			send_ack(w, 0);
		return;
	}
	w->tcp.crc = crc32c(w->tcp.crc, t + offset, data);
	w->tcp.bytes += data;
	w->tcp.next += data + ((t[13] & FIN) != 0);
	if (t[13] & FIN) {
		send_ack(w, FIN);
		w->tcp.closed = true;
	} else if (data) {
		w->asked = ticks;
		send_ack(w, 0);
	}
}

static bool wrong(struct network *w, const char *why)
{
	w->net.device->why = why;
	return false;
}

static bool took_ip(struct network *w, const uint8_t *f, uint32_t len)
{
	const uint8_t *ip = f + ETH;
	uint32_t all;

	if (len < IP || ip[0] != 0x45 || (all = get16(ip + 2)) > len - ETH || all < 20 || folded(sum(ip, 20, 0)) != 0)
		return wrong(w, "an IP packet that is cut off, or whose header's checksum is wrong");
	if (get32(ip + 16) != w->address && get32(ip + 16) != 0xffffffff && !(ip[9] == UDP && !w->have_lease))
		return true;
	all -= 20;
	if (ip[9] == TCP && all >= TCP_BYTES) {
		if (transport_sum(f, all) != 0)
			return wrong(w, "a TCP segment with a wrong checksum, which was not negotiated");
		took_tcp(w, f + IP, all);
	} else if (ip[9] == UDP && all >= UDP_BYTES && get16(f + IP + 4) >= UDP_BYTES && get16(f + IP + 4) <= all) {
		all = get16(f + IP + 4);
		if (get16(f + IP + 6) && transport_sum(f, all) != 0)
			return wrong(w, "a UDP datagram with a wrong checksum, which was not negotiated");
		if (get16(f + IP + 2) == DHCP_CLIENT)
			took_dhcp(w, f + IP + UDP_BYTES, all - UDP_BYTES);
		else if (get16(f + IP) == DNS)
			took_dns(w, f + IP + UDP_BYTES, all - UDP_BYTES);
	} else if (ip[9] == ICMP && all >= 8) {
		took_icmp(w, f + IP, all);
	}
	return true;
}

static bool took(struct net *n, unsigned pair, const uint8_t *f, uint32_t len)
{
	struct network *w = n->arg;

	(void)pair;
	if (len < ETH)
		return wrong(w, "a frame without a whole header");
	if (get16(f + 12) == TYPE_ARP)
		took_arp(w, f, len);
	else if (get16(f + 12) == TYPE_IP)
		return took_ip(w, f, len);
	return true;
}

static bool asked(void *arg)
{
	struct network *w = arg;

	if (!net_reap(&w->net) || w->broken) {
		w->broken = true;
		return true;
	}
	if (w->owes && w->tcp.open) {
		w->owes = false;
		send_ack(w, 0);
	}
	if (!*w->answered && ticks - w->asked > 2 * TICKS_PER_SECOND) {
		w->asked = ticks;
		w->ask(w);
	}
	return *w->answered;
}

static bool ask(struct network *w, const char *name, void (*how)(struct network *w), bool *answered)
{
	w->ask = how;
	w->answered = answered;
	w->asked = ticks;
	how(w);
	if (wait_for(asked, w) && !w->broken)
		return true;
	fail(w->net.device->name, name, "%s", w->broken ? w->net.device->why : "no answer in time");
	return false;
}

static const char *dotted(char *to, uint32_t a)
{
	format(to, 16, "%u.%u.%u.%u", a >> 24, a >> 16 & 255, a >> 8 & 255, a & 255);
	return to;
}

/* tcp=A.B.C.D:PORT: says a line there, and reads until the peer ends. */
static bool talk(struct network *w)
{
	static uint16_t port = OWN_PORT; /* another one each time: the last one's connection may still be known there */
	const char *s = option("tcp", 0);
	uint64_t v;

	if (!s)
		return true;
	for (unsigned i = 0; i < 4; i++) {
		if (!parse_number(s, &s, &v) || v > 255 || *s++ != (i < 3 ? '.' : ':')) {
			fail(NULL, "option", "tcp: want A.B.C.D:PORT");
			return false;
		}
		w->tcp.peer = w->tcp.peer << 8 | (uint32_t)v;
	}
	parse_number(s, &s, &v);
	w->tcp.port = (uint16_t)v;
	w->tcp.own = port++;
	w->tcp.mine = 1000;
	if (!ask(w, "tcp", ask_tcp, &w->tcp.closed))
		return false;
	if (w->tcp.refused)
		fail(w->net.device->name, "tcp", "the connection was refused or reset");
	else
		pass(w->net.device->name, "tcp", "bytes=%u crc32c=0x%x", w->tcp.bytes, w->tcp.crc);
	return !w->tcp.refused;
}

static void network_of(struct device *d, uint64_t without)
{
	static struct network w;
	char a[16], b[16], c[16];

	w = (struct network){.net = {.frame = took, .arg = &w}};
	if (!net_start(&w.net, d, device_known(d->type) & ~VIRTIO_NET_F_MQ & ~without, 0, NET_BUFFERS_MAX)) {
		fail(d->name, "dhcp", "%s", d->why);
		return;
	}
	if (!ask(&w, "dhcp", ask_dhcp, &w.have_offer) || !ask(&w, "dhcp", ask_dhcp, &w.have_lease))
		return;
	pass(d->name, "dhcp", "address=%s gateway=%s dns=%s mask=0x%x mtu=%u", dotted(a, w.address), dotted(b, w.gateway), dotted(c, w.dns), w.mask,
	     w.mtu);
	if (!ask(&w, "arp", ask_gateway, &w.have_gateway))
		return;
	pass(d->name, "arp", "gateway=%x:%x:%x:%x:%x:%x", w.gateway_mac[0], w.gateway_mac[1], w.gateway_mac[2], w.gateway_mac[3], w.gateway_mac[4],
	     w.gateway_mac[5]);
	if (!ask(&w, "ping", ask_echo, &w.have_echo))
		return;
	pass(d->name, "ping", "bytes=%u", (unsigned)PING_BYTES);
	if (!ask(&w, "dns", ask_name, &w.have_name))
		return;
	pass(d->name, "dns", "address=%s", dotted(a, w.name));
	talk(&w);
}

static void test_network(void)
{
	struct device *d;
	unsigned n = 0;

	for (; (d = device_of_type(TYPE_NET, n)); n++) {
		network_of(d, VIRTIO_NET_F_MRG_RXBUF);
		network_of(d, 0);
	}
	if (!n)
		fail(NULL, "network", "no network device");
}

const struct test network_tests[] = {
	{"network", test_network, false},
	{NULL, NULL, false},
};
