/* SPDX-License-Identifier: 0BSD */
/* The ways in which a run can end. */
#include "guest.h"

enum {
	SLEEP_CONTROL = 0x600, /* of virtplug's KVM machine; ACPI's word counts where there is one */
	SLP_EN_S5 = 5 << 2 | 1 << 5,
	RESET_PORT = 0xcf9,
	RESET_VALUE = 6,
	KEYBOARD = 0x64,
	KEYBOARD_RESET = 0xfe,
	PVPANIC = 0x505,
	PVPANIC_PANICKED = 1,
	MMIO_HOLE = 0xcf000000, /* no memory and no device there */
};

static void write_register(struct acpi_register r, uint16_t port, uint8_t v)
{
	if (r.at && r.space == 0 && map(r.at, 1))
		*(volatile uint8_t *)r.at = v;
	else
		outb(r.at && r.space == 1 ? (uint16_t)r.at : port, v);
}

static void reboot(void)
{
	write_register(acpi.reset, RESET_PORT, acpi.reset.at ? acpi.reset_value : RESET_VALUE);
	outb(RESET_PORT, RESET_VALUE);
	outb(KEYBOARD, KEYBOARD_RESET);
}

/* Without gates the first exception has no handler, nor has that one. */
static void triple_fault(void)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) none = {0, 0};

	/* A page fault: KVMs that emulate know no int3. No page tables reach beyond 512 GiB. */
	__asm__ volatile("lidt %0; movb $0, (%1)" : : "m"(none), "r"(1ull << 40) : "memory");
}

/* An instruction that KVM cannot emulate, on an address where it has to: ends in an internal error of KVM. */
static void bad_instruction(void)
{
	uint64_t a = 0, c = 0, d = 0, b = 0;

	__asm__ volatile("lock cmpxchg16b (%4)" : "+a"(a), "+d"(d), "+b"(b), "+c"(c) : "r"((uint64_t)MMIO_HOLE) : "memory");
}

void end(const char *how)
{
	static const char panic_text[] = "Kernel panic - not syncing: asked for on the command line\n";

	__asm__ volatile("cli" ::: "memory");
	if (same(how, "reboot"))
		reboot();
	else if (same(how, "keyboard"))
		outb(KEYBOARD, KEYBOARD_RESET);
	else if (same(how, "panic"))
		outb(PVPANIC, PVPANIC_PANICKED);
	else if (same(how, "panictext")) {
		serial_write(panic_text, sizeof(panic_text) - 1);
		reboot();
	} else if (same(how, "triplefault"))
		triple_fault();
	else if (same(how, "badinsn"))
		bad_instruction();
	else if (same(how, "hang"))
		for (;;)
			;
	else if (!same(how, "halt"))
		write_register(acpi.sleep_control, SLEEP_CONTROL, SLP_EN_S5);
	for (;;)
		__asm__ volatile("hlt");
}
