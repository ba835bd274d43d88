/* SPDX-License-Identifier: 0BSD */
/*
 * virtq.h: split virtqueues, the driver's side (VIRTIO 1.2, 2.7). One header, no library, no global state.
 *
 *	static struct virtq q;
 *	static struct virtq_slot slots[64];
 *	virtq_init(&q, 64, desc, avail, used, slots, event_idx_was_negotiated);
 *
 *	struct virtq_buf b[] = {{header_phys, 16}, {data_phys, 512}, {status_phys, 1}};
 *	virtq_add(&q, b, 1, 2, request);          // one buffer the device reads, two that it writes
 *	if (virtq_publish(&q))
 *		notify_the_device();
 *	...
 *	while ((r = virtq_get(&q, &token, &len)) == 1)
 *		done(token, len);
 *	if (r < 0)
 *		reset_the_device();               // it broke the rules: VIRTQ_BROKEN stays until virtq_init
 *
 * Addresses: the ring's areas are given as pointers, buffers as the device's (guest-physical) addresses, so that no
 * translation is needed here. Memory is the caller's; nothing is allocated.
 *
 * The device is not trusted: everything that it can write (used ring, avail_event) is read once and checked, and nothing that
 * it could overwrite (descriptor table, available ring) is ever read back.
 *
 * Not safe for concurrent use: one lock or one owner for each queue. Little-endian CPUs only. C11 or C++11 with GNU extensions;
 * tested with gcc.
 */
#ifndef VIRTQ_H
#define VIRTQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtq.h: little-endian only"
#endif

/* Results besides 0 and 1. */
enum virtq_error {
	VIRTQ_INVALID = -1, /* the caller's mistake: size, alignment, no buffers */
	VIRTQ_FULL = -2,    /* not enough free descriptors: take some back by virtq_get first */
	VIRTQ_BROKEN = -3,  /* the device broke the rules: reset it, then virtq_init */
};

enum {
	VIRTQ_SIZE_MAX = 32768,      /* entries, 2.7 */
	VIRTQ_DESC_F_NEXT = 1,       /* 2.7.5 */
	VIRTQ_DESC_F_WRITE = 2,      /* the device writes, it does not read */
	VIRTQ_DESC_F_INDIRECT = 4,   /* 2.7.5.3 */
	VIRTQ_AVAIL_F_NO_INTERRUPT = 1, /* 2.7.6 */
	VIRTQ_USED_F_NO_NOTIFY = 1,  /* 2.7.8 */
};

/* Feature bits of the ring (6). */
#define VIRTQ_F_INDIRECT_DESC (1ull << 28)
#define VIRTQ_F_EVENT_IDX (1ull << 29)

struct virtq_desc { /* 2.7.5 */
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct virtq_used_elem { /* 2.7.8 */
	uint32_t id;
	uint32_t len;
};

/* A buffer as the device sees it. */
struct virtq_buf {
	uint64_t addr;
	uint32_t len;
};

/* What the driver remembers of a descriptor, out of the device's reach. One for each entry of the ring. */
struct virtq_slot {
	void *token;       /* the caller's, for a chain's head */
	uint32_t writable; /* device-writable bytes of the chain */
	uint16_t next;     /* in the free list, or in the chain */
	uint16_t count;    /* descriptors of the chain; 0: this is not the head of a chain that the device has */
};

struct virtq {
	volatile struct virtq_desc *desc;
	volatile uint16_t *avail; /* flags, idx, ring[num], used_event */
	volatile uint8_t *used;   /* flags u16, idx u16, ring[num] of 8 bytes, avail_event u16 */
	struct virtq_slot *slots;
	uint16_t num;
	uint16_t free_head, free_count;
	uint16_t avail_idx;     /* of the next chain */
	uint16_t published_idx; /* that the device was told */
	uint16_t used_idx;      /* of the next chain to take back */
	bool event_idx, broken;
};

/* Bytes of the three areas (2.7), with room for used_event and avail_event. */
static inline size_t virtq_desc_bytes(uint16_t num) { return 16 * (size_t)num; }
static inline size_t virtq_avail_bytes(uint16_t num) { return 6 + 2 * (size_t)num; }
static inline size_t virtq_used_bytes(uint16_t num) { return 6 + 8 * (size_t)num; }

/* Where the used ring begins in a legacy ring, which is one piece (2.7.2), and how long the whole is. align is a power of two. */
static inline size_t virtq_legacy_used(uint16_t num, size_t align)
{
	return (virtq_desc_bytes(num) + virtq_avail_bytes(num) + align - 1) & ~(align - 1);
}
static inline size_t virtq_legacy_bytes(uint16_t num, size_t align)
{
	return virtq_legacy_used(num, align) + virtq_used_bytes(num);
}

/* A full barrier: stores before it are seen before loads after it happen. x86 needs an instruction for just this case. */
static inline void virtq_mb(void)
{
#if defined(__x86_64__)
	/* Quicker than mfence, and known to every emulator. */
	__asm__ volatile("lock; addl $0, (%%rsp)" ::: "memory", "cc");
#elif defined(__i386__)
	__asm__ volatile("lock; addl $0, (%%esp)" ::: "memory", "cc");
#else
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

static inline uint16_t virtq_load16(const volatile void *p)
{
	return __atomic_load_n((const volatile uint16_t *)p, __ATOMIC_ACQUIRE);
}

static inline void virtq_store16(volatile void *p, uint16_t v)
{
	__atomic_store_n((volatile uint16_t *)p, v, __ATOMIC_RELEASE);
}

/*
 * Sets q up over three areas, which the driver has zeroed before it told them to the device (virtq_clear).
 * num is a power of two; desc is aligned to 16 bytes, avail to 2, used to 4. slots has num entries. event_idx: the feature
 * VIRTQ_F_EVENT_IDX is negotiated. Returns 0 or VIRTQ_INVALID.
 */
static inline int virtq_init(struct virtq *q, uint16_t num, void *desc, void *avail, void *used, struct virtq_slot *slots,
			     bool event_idx)
{
	if (num == 0 || num > VIRTQ_SIZE_MAX || (num & (num - 1)) != 0 || !desc || !avail || !used || !slots ||
	    ((uintptr_t)desc & 15) != 0 || ((uintptr_t)avail & 1) != 0 || ((uintptr_t)used & 3) != 0)
		return VIRTQ_INVALID;
	q->desc = (volatile struct virtq_desc *)desc;
	q->avail = (volatile uint16_t *)avail;
	q->used = (volatile uint8_t *)used;
	q->slots = slots;
	q->num = num;
	q->free_head = 0;
	q->free_count = num;
	q->avail_idx = q->published_idx = q->used_idx = 0;
	q->event_idx = event_idx;
	q->broken = false;
	for (uint32_t i = 0; i < num; i++) {
		slots[i].token = NULL;
		slots[i].count = 0;
		slots[i].next = (uint16_t)(i + 1);
	}
	return 0;
}

/* The same over a legacy ring in one piece at ring, as the lguest bus and virtio-mmio version 1 have it. */
static inline int virtq_init_legacy(struct virtq *q, uint16_t num, void *ring, size_t align, struct virtq_slot *slots,
				    bool event_idx)
{
	uint8_t *p = (uint8_t *)ring;

	if (align < 4 || (align & (align - 1)) != 0)
		return VIRTQ_INVALID;
	return virtq_init(q, num, p, p + virtq_desc_bytes(num), p + virtq_legacy_used(num, align), slots, event_idx);
}

/* Zeroes bytes at area by whole words; for areas that no device uses at the time. area and bytes are multiples of 2. */
static inline void virtq_clear(void *area, size_t bytes)
{
	volatile uint16_t *p = (volatile uint16_t *)area;

	for (size_t i = 0; i < bytes / 2; i++)
		p[i] = 0;
}

static inline void virtq_put_desc(volatile struct virtq_desc *d, const struct virtq_buf *b, uint16_t flags, uint16_t next)
{
	d->addr = b->addr;
	d->len = b->len;
	d->flags = flags;
	d->next = next;
}

/* Puts head into the available ring; the device sees it after virtq_publish. */
static inline void virtq_offer(struct virtq *q, uint16_t head, uint16_t count, uint32_t writable, void *token)
{
	struct virtq_slot *s = &q->slots[head];

	s->token = token;
	s->writable = writable;
	s->count = count;
	q->free_count = (uint16_t)(q->free_count - count);
	q->avail[2 + (q->avail_idx & (q->num - 1))] = head;
	q->avail_idx++;
}

/* The device-writable bytes of a chain, or -1: it is longer than a chain may be (2.7.5: 2^32 bytes; one less fits into used.len). */
static inline int64_t virtq_writable(const struct virtq_buf *bufs, uint32_t out, uint32_t n)
{
	uint64_t all = 0, writable = 0;

	for (uint32_t i = 0; i < n; i++) {
		all += bufs[i].len;
		writable += i < out ? 0 : bufs[i].len;
	}
	return all > UINT32_MAX ? -1 : (int64_t)writable;
}

/*
 * Adds a chain of out buffers that the device reads, followed by in that it writes (2.7.4.2). token comes back from
 * virtq_get. Returns 0, VIRTQ_INVALID (no buffers, more than the queue's size, or more than 2^32 - 1 bytes), VIRTQ_FULL or
 * VIRTQ_BROKEN. The buffers belong to the device until virtq_get gives the token back, or the device is reset.
 */
static inline int virtq_add(struct virtq *q, const struct virtq_buf *bufs, uint16_t out, uint16_t in, void *token)
{
	uint32_t n = (uint32_t)out + in;
	uint16_t at = q->free_head, head = at;
	int64_t writable;

	if (q->broken)
		return VIRTQ_BROKEN;
	if (n == 0 || n > q->num)
		return VIRTQ_INVALID;
	writable = virtq_writable(bufs, out, n);
	if (writable < 0)
		return VIRTQ_INVALID;
	if (n > q->free_count)
		return VIRTQ_FULL;
	for (uint32_t i = 0; i < n; i++) {
		uint16_t flags = i < out ? 0 : VIRTQ_DESC_F_WRITE, next = q->slots[at].next;

		if (i + 1 < n)
			virtq_put_desc(&q->desc[at], &bufs[i], flags | VIRTQ_DESC_F_NEXT, next);
		else
			virtq_put_desc(&q->desc[at], &bufs[i], flags, 0);
		at = next;
	}
	q->free_head = at;
	virtq_offer(q, head, (uint16_t)n, (uint32_t)writable, token);
	return 0;
}

/*
 * The same by an indirect table (2.7.5.3): takes one descriptor of the ring, however many buffers. Only if
 * VIRTQ_F_INDIRECT_DESC is negotiated. table has room for out + in entries, is aligned to 16 bytes, is at table_addr for
 * the device, and belongs to the device as the buffers do.
 */
static inline int virtq_add_indirect(struct virtq *q, struct virtq_desc *table, uint64_t table_addr, const struct virtq_buf *bufs,
				     uint16_t out, uint16_t in, void *token)
{
	uint32_t n = (uint32_t)out + in;
	uint16_t head = q->free_head;
	int64_t writable;
	struct virtq_buf whole = {table_addr, n * (uint32_t)sizeof(*table)};

	if (q->broken)
		return VIRTQ_BROKEN;
	if (n == 0 || n > q->num)
		return VIRTQ_INVALID; /* 2.7.5.3.1: no chain is longer than the queue size */
	writable = virtq_writable(bufs, out, n);
	if (writable < 0)
		return VIRTQ_INVALID;
	if (q->free_count == 0)
		return VIRTQ_FULL;
	for (uint32_t i = 0; i < n; i++) {
		uint16_t flags = i < out ? 0 : VIRTQ_DESC_F_WRITE;

		if (i + 1 < n)
			flags |= VIRTQ_DESC_F_NEXT;
		virtq_put_desc(&table[i], &bufs[i], flags, i + 1 < n ? (uint16_t)(i + 1) : 0);
	}
	virtq_put_desc(&q->desc[head], &whole, VIRTQ_DESC_F_INDIRECT, 0);
	q->free_head = q->slots[head].next;
	virtq_offer(q, head, 1, (uint32_t)writable, token);
	return 0;
}

/* Shows the device all chains added so far. True: it wants an available buffer notification (2.7.13). */
static inline bool virtq_publish(struct virtq *q)
{
	uint16_t old = q->published_idx, now = q->avail_idx;

	if (old == now)
		return false;
	virtq_store16(&q->avail[1], now);
	q->published_idx = now;
	virtq_mb(); /* the index is out before we look whether the device sleeps (2.7.13.4.1) */
	if (q->event_idx) {
		uint16_t event = virtq_load16(q->used + 4 + 8 * (size_t)q->num);

		return (uint16_t)(now - event - 1) < (uint16_t)(now - old); /* 2.7.10 */
	}
	return (virtq_load16(q->used) & VIRTQ_USED_F_NO_NOTIFY) == 0;
}

/* True if the device has used a chain that virtq_get has not taken yet, or broke the queue. */
static inline bool virtq_pending(const struct virtq *q)
{
	return q->broken || virtq_load16(q->used + 2) != q->used_idx;
}

/*
 * Takes a used chain back. Returns 1 with its token and how many bytes the device says it wrote, at most the chain's
 * device-writable bytes; 0: none; VIRTQ_BROKEN: the device used what it was not given, or says that it wrote more than there was
 * room for. What it says is a claim: of a buffer that it may have left untouched.
 */
static inline int virtq_get(struct virtq *q, void **token, uint32_t *len)
{
	uint16_t idx = virtq_load16(q->used + 2), at = q->used_idx;
	const volatile struct virtq_used_elem *e;
	struct virtq_slot *s;
	uint32_t id, written;
	uint16_t tail;

	if (q->broken)
		return VIRTQ_BROKEN;
	if (idx == at)
		return 0;
	e = (const volatile struct virtq_used_elem *)(q->used + 4) + (at & (q->num - 1));
	id = e->id;
	written = e->len;
	if ((uint16_t)(idx - at) > (uint16_t)(q->published_idx - at) || id >= q->num || q->slots[id].count == 0 ||
	    written > q->slots[id].writable) {
		q->broken = true;
		return VIRTQ_BROKEN;
	}
	s = &q->slots[id];
	tail = (uint16_t)id;
	for (uint16_t i = 1; i < s->count; i++)
		tail = q->slots[tail].next;
	q->slots[tail].next = q->free_head;
	q->free_head = (uint16_t)id;
	q->free_count = (uint16_t)(q->free_count + s->count);
	*token = s->token;
	*len = written;
	s->token = NULL;
	s->count = 0;
	q->used_idx = (uint16_t)(at + 1);
	return 1;
}

/* Asks for no used buffer notifications. A hint: some may come all the same (2.7.7). */
static inline void virtq_disable_calls(struct virtq *q)
{
	if (!q->event_idx)
		virtq_store16(&q->avail[0], VIRTQ_AVAIL_F_NO_INTERRUPT);
	else /* an index that the device passes only after a whole round */
		virtq_store16(&q->avail[2 + q->num], (uint16_t)(q->used_idx - 1));
}

/*
 * Asks for a notification when `after` more chains are used; 1 is the next one (without VIRTQ_F_EVENT_IDX it is always the
 * next one). True: something is there to take already, and a notification for it may not come.
 */
static inline bool virtq_enable_calls(struct virtq *q, uint16_t after)
{
	uint16_t have;

	if (!q->event_idx)
		virtq_store16(&q->avail[0], 0);
	else
		virtq_store16(&q->avail[2 + q->num], (uint16_t)(q->used_idx + after - 1));
	virtq_mb(); /* the device sees the wish before we look for what it did meanwhile (2.7.7.1) */
	have = (uint16_t)(virtq_load16(q->used + 2) - q->used_idx);
	return q->broken || have >= (q->event_idx ? after : 1);
}

/* Chains that the device has: added and not taken back. */
static inline uint16_t virtq_outstanding(const struct virtq *q) { return (uint16_t)(q->avail_idx - q->used_idx); }

#endif
