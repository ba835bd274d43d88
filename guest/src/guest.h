/* SPDX-License-Identifier: 0BSD */
/* What the parts of the program offer each other. */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../include/lguest_bus.h"
#include "../include/virtio_mmio.h"
#include "../include/virtio_net.h"
#include "../include/virtq.h"

/* Instructions. */
static inline void outb(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline uint8_t inb(uint16_t port)
{
	uint8_t v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}
static inline uint32_t read32(uint64_t at)
{
	uint32_t v;

	__asm__ volatile("movl %1, %0" : "=r"(v) : "m"(*(volatile uint32_t *)at) : "memory");
	return v;
}
static inline void write32(uint64_t at, uint32_t v)
{
	__asm__ volatile("movl %1, %0" : "=m"(*(volatile uint32_t *)at) : "r"(v) : "memory");
}

/* text.c */
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
bool same(const char *a, const char *b);
/* Like printf with %s %c %u %x %lu %lx %%, into to (of size bytes, always terminated). Returns the length of what fits. */
size_t format(char *to, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* A number, decimal or 0x…, optionally with K, M or G; *end is where it stops. False if there is none. */
bool parse_number(const char *s, const char **end, uint64_t *value);

/* text.c too: lines on the serial port. */
void serial_init(void);
void serial_write(const char *s, size_t n);
/* One line each: PASS name detail, FAIL name why, INFO name facts. device may be NULL; else the name is "device.name". */
void pass(const char *device, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void fail(const char *device, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void info(const char *device, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
unsigned passes(void);
unsigned failures(void);

/* boot.c: what the loader told. */
enum { RAM_RANGES = 32 };
struct boot {
	struct {
		uint64_t start, size;
	} ram[RAM_RANGES];
	unsigned ranges;
	uint64_t top;  /* the end of the highest RAM */
	uint64_t rsdp; /* 0: none */
	bool pvh;
};
extern struct boot boot;
void boot_read(uint64_t boot_params, uint64_t start_info);
/* The value of the n-th "name=value" of the command line, "" for a bare name; NULL: there are no more. */
const char *option(const char *name, unsigned n);
uint64_t option_number(const char *name, uint64_t otherwise);
/* Says which words of the command line this program does not know. */
void options_unknown(void);

/* cpu.c */
enum {
	VECTOR_PIC = 0x20,  /* 16 of them */
	VECTOR_GSI = 0x30,  /* 24 of them */
	VECTOR_TIMER = 0xf0,
	VECTOR_SPURIOUS = 0xff,
	GSIS = 24,
};
void cpu_init(void);
/* Maps memory one to one and returns phys as a pointer; NULL if there are no page tables left or it is beyond 512 GiB. */
void *map(uint64_t phys, uint64_t size);
/* Zeroed memory of the program's own, never given back; NULL: none left. align is a power of two. */
void *alloc(size_t size, size_t align);
static inline uint64_t phys(const volatile void *p) { return (uint64_t)p; }

/* interrupts.c */
enum { TICKS_PER_SECOND = 20 };
extern volatile uint64_t ticks;
extern volatile uint32_t gsi_count[GSIS];
extern uint64_t halts;
extern bool use_pic;
void interrupts_init(void);
/* Opens a line. False: it does not exist, or not on the PICs if those are used. */
bool gsi_enable(unsigned gsi);
/* Sleeps until ready(arg), at most `timeout` seconds of the command line. False: time is up. */
bool wait_for(bool (*ready)(void *arg), void *arg);
uint32_t lapic_read(uint32_t reg);
void lapic_write(uint32_t reg, uint32_t v);
void interrupt_vector(unsigned vector);

/* acpi.c: what the tables tell. */
enum { CPUS_MAX = 32 };
struct acpi {
	bool found;
	unsigned cpus;
	uint8_t apic_id[CPUS_MAX];
	uint64_t ioapic;
	struct acpi_register {
		uint8_t space; /* 0 memory, 1 port */
		uint64_t at;   /* 0: none */
	} sleep_control, reset;
	uint8_t reset_value;
};
extern struct acpi acpi;
void acpi_read(void);

/* devices.c: both buses under one interface. */
enum { DEVICES_MAX = 64, QUEUES_MAX = 8, BLOCK_QUEUES_MAX = 4 };
enum { TYPE_NET = 1, TYPE_BLOCK = 2, TYPE_CONSOLE = 3, TYPE_ENTROPY = 4 };
enum bus { BUS_LGUEST, BUS_MMIO };
struct queue {
	struct virtq vq;
	struct virtq_slot *slots;
	uint8_t *memory; /* virtio-mmio: the ring's */
	uint16_t room;   /* entries that slots and memory have room for */
	uint16_t num;
	uint32_t pfn;    /* lguest */
	unsigned gsi;
	uint64_t kicks;
};
struct device {
	char name[12]; /* disk0, console1, … */
	enum bus bus;
	uint32_t type;
	struct lguest_device lguest;
	struct virtio_mmio mmio;
	unsigned gsi; /* virtio-mmio */
	uint64_t offered, features;
	unsigned queues;
	struct queue q[QUEUES_MAX];
	volatile uint32_t config_interrupts;
	bool live;
	const char *why; /* why device_start or a request failed */
};
extern struct device devices[DEVICES_MAX];
extern unsigned device_count;
void devices_scan(void);
/* Resets and starts a device with those of the features in want that it offers. False: d->why tells. */
bool device_start(struct device *d, uint64_t want);
bool device_reset(struct device *d);
/* Publishes what was added to a queue, and kicks if the device wants it. */
void device_kick(struct device *d, unsigned queue);
bool device_config(struct device *d, uint32_t offset, uint32_t size, uint64_t *value);
/* The n-th device of a type; NULL: there are no more. */
struct device *device_of_type(uint32_t type, unsigned n);
const char *type_name(uint32_t type);
/* Called for each interrupt. */
void devices_interrupt(unsigned gsi);
/* All features that this program can drive for a type. */
uint64_t device_known(uint32_t type);

/* block.c: requests. */
enum { SECTOR = 512, SEGMENTS_MAX = 8 };
enum { BLOCK_IN = 0, BLOCK_OUT = 1, BLOCK_FLUSH = 4, BLOCK_GET_ID = 8, BLOCK_DISCARD = 11, BLOCK_WRITE_ZEROES = 13 };
enum { BLOCK_OK = 0, BLOCK_IOERR = 1, BLOCK_UNSUPP = 2 };
#define BLOCK_F_RO (1ull << 5)
#define BLOCK_F_FLUSH (1ull << 9)
#define BLOCK_F_MQ (1ull << 12)
#define BLOCK_F_DISCARD (1ull << 13)
#define BLOCK_F_WRITE_ZEROES (1ull << 14)
struct request {
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} header;
	struct virtq_desc table[SEGMENTS_MAX + 2]; /* for an indirect chain; 16-byte aligned */
	struct device *device;
	unsigned queue;
	uint32_t used_len;
	volatile bool done;
	volatile uint8_t status;
} __attribute__((aligned(16)));
/* Adds a request without publishing it. segments: over how many descriptors the data is spread. 0 or a virtq_error. */
int block_add(struct device *d, unsigned queue, struct request *r, uint32_t type, uint64_t sector, void *data, uint32_t len,
	      unsigned segments, bool indirect);
/* Takes back what the device has used on any queue. False: the device broke a queue. */
bool block_reap(struct device *d);
/* One whole request. Returns its status; -1: it never ended, d->why tells. */
int block_do(struct device *d, uint32_t type, uint64_t sector, void *data, uint32_t len, unsigned segments, bool indirect);
bool block_wait(struct device *d, struct request *r);

/* net.c: network devices, one at a time. */
enum { NET_PAIRS_MAX = 2, NET_BUFFERS_MAX = 256, NET_POOL = 1 << 20, NET_PIECES_MAX = 4, MAC_BYTES = 6 };
/* What the program knows of a driver's features, without those by which the device may leave work to the driver. */
#define NET_KNOWN                                                                                                                  \
	(VIRTIO_NET_F_MAC | VIRTIO_NET_F_MTU | VIRTIO_NET_F_STATUS | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_CTRL_RX | \
	 VIRTIO_NET_F_CTRL_VLAN | VIRTIO_NET_F_CTRL_RX_EXTRA | VIRTIO_NET_F_CTRL_MAC_ADDR | VIRTIO_NET_F_MQ | VIRTIO_NET_F_CSUM | \
	 VIRTIO_NET_F_ANY_LAYOUT)
struct net {
	struct device *device;
	unsigned pairs_max, pairs; /* queue pairs that the device has, and that are used */
	unsigned control;          /* index of the control queue; 0: none */
	uint32_t mtu, header;      /* bytes of the packet's header */
	uint8_t mac[MAC_BYTES];
	uint32_t room;    /* bytes of a receive buffer */
	unsigned buffers; /* receive buffers of a pair */
	unsigned slots;   /* transmit buffers of a pair */
	unsigned next[NET_PAIRS_MAX], busy[NET_PAIRS_MAX]; /* of these: where to look for a free one, how many are under way */
	uint32_t sent, completed, received;
	uint32_t merged; /* frames that were in more than one buffer */
	/* Called for each frame that came, which is the callee's until it returns. False: it is wrong, device->why tells. */
	bool (*frame)(struct net *n, unsigned pair, const uint8_t *frame, uint32_t len);
	void *arg;
};
/*
 * Resets and starts a device with those of features that it offers, and posts receive buffers: of room bytes each (0: of a whole
 * packet), at most `buffers` for each pair. False: device->why tells.
 */
bool net_start(struct net *n, struct device *d, uint64_t features, uint32_t room, unsigned buffers);
/* Posts receive buffers again, of another size or number, when the device has none left. */
bool net_post(struct net *n, uint32_t room, unsigned buffers);
/* Whether another frame can be sent, in any shape. */
bool net_can_send(struct net *n, unsigned pair);
/* Where the next frame of a pair is to be written, of at most net_frame_max bytes; NULL: all are under way. */
uint8_t *net_room(struct net *n, unsigned pair);
uint32_t net_frame_max(const struct net *n);
/* Adds the frame that is in net_room, without publishing it (device_kick); shape: 0.. chooses how it lies in descriptors. */
bool net_send(struct net *n, unsigned pair, uint32_t len, unsigned shape);
/* Takes back what the device has used on all queues; frames go to n->frame. False: something is wrong, device->why tells. */
bool net_reap(struct net *n);
/* A command of the control queue. Returns the device's answer; -1: none, device->why tells. */
int net_control(struct net *n, uint8_t class, uint8_t command, const void *data, uint32_t len);
/* The device's receive buffer i of pair; for tests that watch over it. */
uint8_t *net_buffer(struct net *n, unsigned pair, unsigned i);

/* block.c too: content that the host can make again. */
/* Word w of the disk is x ^ x>>27 of x = (y ^ y>>30) * 0xbf58476d1ce4e5b9 of y = seed + w * 0x9e3779b97f4a7c15 (as in splitmix64). */
void pattern_fill(void *to, uint64_t first_word, uint32_t words, uint64_t seed);
uint32_t crc32c(uint32_t crc, const void *p, size_t n); /* start and end with the plain value, as Go's crc32.Update */

/* test_abuse.c: chains that break the rules. */
const char *abuse_name(unsigned i); /* NULL: there are no more */
/* Puts abuse i on a queue of a device that has just been started. False: virtio-mmio does not ask for a reset, d->why tells. */
bool abuse_queue(struct device *d, unsigned queue, unsigned i);
bool asks_for_reset(void *device);

/* test_net.c: sends a few frames to a device that gives them back. False: d->why tells. */
bool net_echo(struct net *n, uint32_t frames);

/* test_*.c */
struct test {
	const char *name;
	void (*run)(void);
	bool by_default;
};
extern const struct test machine_tests[], device_tests[], block_tests[], net_tests[], network_tests[], net_abuse_tests[], load_tests[],
	abuse_tests[];

/* end.c */
void end(const char *how) __attribute__((noreturn));

#endif
