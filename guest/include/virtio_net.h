/* SPDX-License-Identifier: 0BSD */
/*
 * virtio_net.h: network devices, the driver's side (VIRTIO 1.2, 5.1). One header, no library, no global state. Rings come from
 * virtq.h, the way to the device from virtio_mmio.h or lguest_bus.h; this one has what is on the rings.
 *
 *	features = offered & (VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS | VIRTIO_NET_F_MRG_RXBUF | ...);
 *	... start the queues 0 (receive) and 1 (transmit) ...
 *	h = virtio_net_hdr_bytes(features);                   // 10 or 12: a packet begins with so many bytes of header
 *
 *	struct virtio_net_hdr hdr;                            // all zero: nothing to offload
 *	virtio_net_hdr_clear(&hdr);
 *	struct virtq_buf b[2] = {{hdr_phys, h}, {frame_phys, frame_bytes}};
 *	virtq_add(&tx, b, 2, 0, token);
 *
 *	struct virtq_buf room = {buffer_phys, buffer_bytes};  // with MRG_RXBUF of any size, else for the longest packet
 *	virtq_add(&rx, &room, 0, 1, buffer);
 *	...
 *	virtq_get(&rx, &token, &len);
 *	n = virtio_net_received(buffer, len, features, &hdr); // how many buffers the packet is in; 0: the device breaks the rules
 *	first part of the frame: buffer + h, len - h bytes; the others: whole buffers, without headers
 *
 * Frames are Ethernet's, without the checksum at the end. The device is not trusted: what comes from it is copied once and checked.
 * What a packet's header promises of the frame (checksums, segments) is for the caller to check against the frame's length:
 * virtio_net_hdr_ok. Little-endian CPUs only, as virtq.h; a legacy device's fields are then in the same order as a modern one's.
 */
#ifndef VIRTIO_NET_H
#define VIRTIO_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Feature bits, 5.1.3. "Guest" is the driver, "host" the device. */
#define VIRTIO_NET_F_CSUM (1ull << 0)                /* the driver may leave checksums to the device */
#define VIRTIO_NET_F_GUEST_CSUM (1ull << 1)          /* and the device to the driver */
#define VIRTIO_NET_F_CTRL_GUEST_OFFLOADS (1ull << 2) /* what the device may leave to the driver can change */
#define VIRTIO_NET_F_MTU (1ull << 3)                 /* config space: mtu */
#define VIRTIO_NET_F_MAC (1ull << 5)                 /* config space: mac */
#define VIRTIO_NET_F_GUEST_TSO4 (1ull << 7)          /* the device may pass on segments that belong together as one */
#define VIRTIO_NET_F_GUEST_TSO6 (1ull << 8)
#define VIRTIO_NET_F_GUEST_ECN (1ull << 9)
#define VIRTIO_NET_F_GUEST_UFO (1ull << 10)
#define VIRTIO_NET_F_HOST_TSO4 (1ull << 11)          /* the driver may leave segmentation to the device */
#define VIRTIO_NET_F_HOST_TSO6 (1ull << 12)
#define VIRTIO_NET_F_HOST_ECN (1ull << 13)
#define VIRTIO_NET_F_HOST_UFO (1ull << 14)
#define VIRTIO_NET_F_MRG_RXBUF (1ull << 15)          /* a received packet may span buffers */
#define VIRTIO_NET_F_STATUS (1ull << 16)             /* config space: status */
#define VIRTIO_NET_F_CTRL_VQ (1ull << 17)            /* there is a control queue */
#define VIRTIO_NET_F_CTRL_RX (1ull << 18)
#define VIRTIO_NET_F_CTRL_VLAN (1ull << 19)
#define VIRTIO_NET_F_CTRL_RX_EXTRA (1ull << 20)
#define VIRTIO_NET_F_GUEST_ANNOUNCE (1ull << 21)
#define VIRTIO_NET_F_MQ (1ull << 22)                 /* config space: max_virtqueue_pairs */
#define VIRTIO_NET_F_CTRL_MAC_ADDR (1ull << 23)
#define VIRTIO_NET_F_ANY_LAYOUT (1ull << 27)         /* legacy devices: the header needs no descriptor of its own (6.3) */
#define VIRTIO_NET_F_VERSION_1 (1ull << 32)

enum {
	/* Config space, 5.1.4: offsets in bytes. A field is there if its feature bit is offered. */
	VIRTIO_NET_CONFIG_MAC = 0,    /* 6 bytes */
	VIRTIO_NET_CONFIG_STATUS = 6, /* u16 */
	VIRTIO_NET_CONFIG_PAIRS = 8,  /* u16, max_virtqueue_pairs */
	VIRTIO_NET_CONFIG_MTU = 10,   /* u16 */

	VIRTIO_NET_S_LINK_UP = 1,
	VIRTIO_NET_S_ANNOUNCE = 2,

	/* The packet's header, 5.1.6. */
	VIRTIO_NET_HDR_F_NEEDS_CSUM = 1,
	VIRTIO_NET_HDR_F_DATA_VALID = 2,
	VIRTIO_NET_HDR_GSO_NONE = 0,
	VIRTIO_NET_HDR_GSO_TCPV4 = 1,
	VIRTIO_NET_HDR_GSO_UDP = 3,
	VIRTIO_NET_HDR_GSO_TCPV6 = 4,
	VIRTIO_NET_HDR_GSO_ECN = 0x80, /* added to one of TCP's */

	/* Control queue, 5.1.6.5: classes and their commands. */
	VIRTIO_NET_CTRL_RX = 0,
	VIRTIO_NET_CTRL_RX_PROMISC = 0, /* each of this class: one byte, on or off */
	VIRTIO_NET_CTRL_RX_ALLMULTI = 1,
	VIRTIO_NET_CTRL_RX_ALLUNI = 2,
	VIRTIO_NET_CTRL_RX_NOMULTI = 3,
	VIRTIO_NET_CTRL_RX_NOUNI = 4,
	VIRTIO_NET_CTRL_RX_NOBCAST = 5,
	VIRTIO_NET_CTRL_MAC = 1,
	VIRTIO_NET_CTRL_MAC_TABLE_SET = 0, /* twice: u32 entries, 6 bytes each; unicast, then multicast */
	VIRTIO_NET_CTRL_MAC_ADDR_SET = 1,  /* 6 bytes */
	VIRTIO_NET_CTRL_VLAN = 2,
	VIRTIO_NET_CTRL_VLAN_ADD = 0, /* u16 */
	VIRTIO_NET_CTRL_VLAN_DEL = 1,
	VIRTIO_NET_CTRL_ANNOUNCE = 3,
	VIRTIO_NET_CTRL_ANNOUNCE_ACK = 0, /* nothing */
	VIRTIO_NET_CTRL_MQ = 4,
	VIRTIO_NET_CTRL_MQ_PAIRS_SET = 0, /* u16 */
	VIRTIO_NET_CTRL_GUEST_OFFLOADS = 5,
	VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET = 0, /* u64, feature bits */
	VIRTIO_NET_OK = 0,
	VIRTIO_NET_ERR = 1,

	VIRTIO_NET_ETH_HEADER = 14, /* of a frame: destination, source, type */
	VIRTIO_NET_VLAN_TAG = 4,
	VIRTIO_NET_MTU_DEFAULT = 1500, /* without VIRTIO_NET_F_MTU, 5.1.4.2 */
	/* The longest packet's header and frame if the device may pass on segments as one (5.1.6.3.1), without a VLAN's tag. */
	VIRTIO_NET_PACKET_MAX = 65562,
};

struct virtio_net_hdr { /* 5.1.6 */
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset;
	uint16_t num_buffers; /* not there in a header of 10 bytes */
};

/* How many bytes of struct virtio_net_hdr a packet begins with (5.1.6.1). */
static inline uint32_t virtio_net_hdr_bytes(uint64_t features)
{
	return features & (VIRTIO_NET_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF) ? 12 : 10;
}

static inline void virtio_net_hdr_clear(struct virtio_net_hdr *h)
{
	h->flags = h->gso_type = 0;
	h->hdr_len = h->gso_size = h->csum_start = h->csum_offset = h->num_buffers = 0;
}

/*
 * Queues of a device with `pairs` queue pairs (max_virtqueue_pairs, or 1 without VIRTIO_NET_F_MQ): receive and transmit
 * queue of pair i from 0, then the control queue (5.1.2).
 */
static inline uint32_t virtio_net_rx(uint32_t pair) { return 2 * pair; }
static inline uint32_t virtio_net_tx(uint32_t pair) { return 2 * pair + 1; }
static inline uint32_t virtio_net_ctrl(uint32_t pairs) { return 2 * pairs; }

/* Room that a receive buffer needs for a whole packet, with a VLAN's tag (5.1.6.3.1). mtu: of the device. */
static inline uint32_t virtio_net_room(uint64_t features, uint32_t mtu)
{
	if (features & (VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6 | VIRTIO_NET_F_GUEST_UFO))
		return VIRTIO_NET_PACKET_MAX + VIRTIO_NET_VLAN_TAG;
	return virtio_net_hdr_bytes(features) + VIRTIO_NET_ETH_HEADER + VIRTIO_NET_VLAN_TAG + mtu;
}

/*
 * Looks at the first buffer of a received packet, of which the device says that it wrote len bytes (at most the buffer's: virtq_get
 * sees to that). Copies the header to h and returns how many buffers the packet is in, this one among them; 0: the device breaks
 * the rules, reset it. The others are the queue's next used chains; a device that has used too few of them breaks the rules too.
 */
static inline uint32_t virtio_net_received(const volatile void *buffer, uint32_t len, uint64_t features, struct virtio_net_hdr *h)
{
	const volatile uint8_t *p = (const volatile uint8_t *)buffer;
	uint32_t n = virtio_net_hdr_bytes(features);

	virtio_net_hdr_clear(h);
	if (len < n)
		return 0;
	for (uint32_t i = 0; i < n; i++)
		((uint8_t *)h)[i] = p[i];
	if (features & VIRTIO_NET_F_MRG_RXBUF)
		return h->num_buffers;
	return 1; /* without MRG_RXBUF num_buffers is 1 (5.1.6.4), or not there */
}

/*
 * Whether a received packet's header is one that the device may send with these features (5.1.6.4), and what it points to lies in the
 * frame of `frame` bytes. What is not, is to be dropped.
 */
static inline bool virtio_net_hdr_ok(const struct virtio_net_hdr *h, uint64_t features, uint32_t frame)
{
	uint64_t need = 0;

	if (h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
		if (!(features & VIRTIO_NET_F_GUEST_CSUM) || (uint32_t)h->csum_start + h->csum_offset + 2 > frame)
			return false;
	}
	switch (h->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_NONE:
		return h->gso_type == VIRTIO_NET_HDR_GSO_NONE;
	case VIRTIO_NET_HDR_GSO_TCPV4:
		need = VIRTIO_NET_F_GUEST_TSO4;
		break;
	case VIRTIO_NET_HDR_GSO_TCPV6:
		need = VIRTIO_NET_F_GUEST_TSO6;
		break;
	case VIRTIO_NET_HDR_GSO_UDP:
		need = VIRTIO_NET_F_GUEST_UFO;
		break;
	default:
		return false;
	}
	if (h->gso_type & VIRTIO_NET_HDR_GSO_ECN)
		need |= VIRTIO_NET_F_GUEST_ECN;
	return (features & need) == need && (h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) && h->gso_size != 0 && h->gso_size <= frame;
}

#endif
