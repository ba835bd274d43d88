/* SPDX-License-Identifier: 0BSD */
/*
 * The smallest kernel that says something by a virtio device: it finds the lguest bus at the end of RAM, writes a line to the first
 * console, and switches the machine off. Everything a driver has to do is here, in order; no interrupts, no allocation.
 *
 *	make -C guest examples
 *	virtplug run --machine kvm --bus lguest --kernel bin/guest/hello.elf --memory 32M --console stdio
 *
 * What goes wrong is said on the serial port (--kernel-output -).
 */
#include "../../include/lguest_bus.h"
#include "../../include/virtq.h"

enum { CONSOLE = 3, TRANSMIT = 1, ENTRIES_MAX = 1024, SERIAL = 0x3f8, SLEEP_CONTROL = 0x600, POWER_OFF = 5 << 2 | 1 << 5 };

/* Entered in 64-bit mode with interrupts off, the low 4 GiB mapped one to one, and rsi = boot_params, as from Linux's boot protocol. */
__asm__(".globl start64\n"
	".section .text.start, \"ax\"\n"
	"start64: leaq stack+16384(%rip), %rsp\n"
	"	movq %rsi, %rdi\n"
	"	call hello\n"
	"1:	hlt\n"
	"	jmp 1b\n"
	".text\n");
__attribute__((used, aligned(16))) uint8_t stack[16384];

static void outb(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }

static void say(const char *s)
{
	while (*s)
		outb(SERIAL, (uint8_t)*s++);
}

static uint64_t load(const volatile uint8_t *p, int bytes)
{
	uint64_t v = 0;

	while (bytes--)
		v = v << 8 | p[bytes];
	return v;
}

/* The end of the highest RAM, from the e820 map in boot_params: there is the device page. */
static uint64_t end_of_ram(const volatile uint8_t *boot_params)
{
	uint64_t top = 0;

	for (int i = 0; i < boot_params[0x1e8] && i < 128; i++) {
		const volatile uint8_t *e = boot_params + 0x2d0 + 20 * i;
		uint64_t end = load(e, 8) + load(e + 8, 8);

		if (load(e + 16, 4) == 1 && end > top)
			top = end;
	}
	return top;
}

/* Brings the console up and sends text. Returns NULL, or what is wrong. */
static const char *print(const struct lguest_bus *bus, const struct lguest_device *d, const char *text, uint32_t len)
{
	static struct virtq_slot slots[ENTRIES_MAX];
	struct virtq_buf buf = {(uintptr_t)text, len}; /* one to one: the device's address is ours */
	struct lguest_vq v = lguest_vq(d, TRANSMIT);
	struct virtq q;
	void *token;
	int r;

	lguest_reset(bus, d);
	lguest_set_status(d, LGUEST_S_ACKNOWLEDGE);
	lguest_set_status(d, LGUEST_S_ACKNOWLEDGE | LGUEST_S_DRIVER);
	if (!lguest_vq_ok(bus, v) || v.num > ENTRIES_MAX) {
		lguest_fail(bus, d);
		return "the console has no transmit queue that this program can use\n";
	}
	lguest_accept(bus, d, 0); /* no features: one port, no indirect descriptors */
	virtq_init_legacy(&q, v.num, (void *)((uintptr_t)v.pfn * LGUEST_PAGE), LGUEST_VRING_ALIGN, slots, false);
	virtq_disable_calls(&q); /* we look for ourselves */
	lguest_set_status(d, LGUEST_S_ACKNOWLEDGE | LGUEST_S_DRIVER | LGUEST_S_DRIVER_OK);

	virtq_add(&q, &buf, 1, 0, NULL);
	if (virtq_publish(&q))
		lguest_kick(bus, v.pfn);
	while ((r = virtq_get(&q, &token, &len)) == 0)
		__asm__ volatile("pause");
	lguest_reset(bus, d); /* it must not touch our memory when this has returned */
	return r == 1 ? NULL : "the console broke its queue\n";
}

void hello(const volatile uint8_t *boot_params);
void hello(const volatile uint8_t *boot_params)
{
	static const char text[] = "Hello from the lguest bus.\n";
	uint64_t page = end_of_ram(boot_params);
	struct lguest_bus bus = {(volatile uint8_t *)(uintptr_t)page, page, LGUEST_PORT};
	struct lguest_device d;
	const char *wrong = "no console on the lguest bus: run with --bus lguest --console stdio --memory 32M\n";

	for (uint32_t at = 0; page < 1ull << 32 && lguest_next(&bus, &at, &d) == 1;)
		if (d.type == CONSOLE) {
			wrong = print(&bus, &d, text, sizeof(text) - 1);
			break;
		}
	if (wrong)
		say(wrong);
	outb(SLEEP_CONTROL, POWER_OFF);
}
