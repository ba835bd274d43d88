/* SPDX-License-Identifier: 0BSD */
/* Interrupt lines by IOAPIC and local APIC, or (irq=pic) by the two 8259s; a timer; sleeping. */
#include "guest.h"

#define LAPIC 0xfee00000ull

enum {
	LAPIC_ID = 0x20,
	LAPIC_EOI = 0xb0,
	LAPIC_SPURIOUS = 0xf0,
	LAPIC_LVT_TIMER = 0x320,
	LAPIC_LVT_LINT0 = 0x350,
	LINT0_EXTINT = 0x700, /* the PICs' output */
	LAPIC_TIMER_COUNT = 0x380,
	LAPIC_TIMER_DIVIDE = 0x3e0,
	TIMER_PERIODIC = 1 << 17,
	/* The local APIC's timer counts nanoseconds in KVM and QEMU; elsewhere seconds are longer or shorter here. */
	TIMER_COUNT = 1000000000 / 16 / TICKS_PER_SECOND,
	DIVIDE_BY_16 = 3,

	IOAPIC_SELECT = 0x00,
	IOAPIC_WINDOW = 0x10,
	IOAPIC_VERSION = 1,
	IOAPIC_REDIRECT = 0x10,

	PIC1 = 0x20,
	PIC2 = 0xa0,
	PIC_EOI = 0x20,
	PIT_HZ = 1193182,
};

volatile uint64_t ticks;
volatile uint32_t gsi_count[GSIS];
uint64_t halts;
bool use_pic;
static unsigned ioapic_inputs;
static uint64_t ioapic = 0xfec00000;
static uint16_t pic_mask = 0xffff;

uint32_t lapic_read(uint32_t reg) { return read32(LAPIC + reg); }
void lapic_write(uint32_t reg, uint32_t v) { write32(LAPIC + reg, v); }

static uint32_t ioapic_read(uint32_t reg)
{
	write32(ioapic + IOAPIC_SELECT, reg);
	return read32(ioapic + IOAPIC_WINDOW);
}

static void ioapic_write(uint32_t reg, uint32_t v)
{
	write32(ioapic + IOAPIC_SELECT, reg);
	write32(ioapic + IOAPIC_WINDOW, v);
}

static void pic_set_mask(void)
{
	outb(PIC1 + 1, (uint8_t)pic_mask);
	outb(PIC2 + 1, (uint8_t)(pic_mask >> 8));
}

static void pic_init(void)
{
	static const uint8_t first[] = {0x11, VECTOR_PIC, 4, 1}, second[] = {0x11, VECTOR_PIC + 8, 2, 1};

	for (unsigned i = 0; i < 4; i++) {
		outb(PIC1 + (i != 0), first[i]);
		outb(PIC2 + (i != 0), second[i]);
	}
	pic_set_mask();
}

static void pit_init(void)
{
	enum { DIVISOR = PIT_HZ / TICKS_PER_SECOND };

	outb(0x43, 0x34); /* counter 0, both bytes, rate generator */
	outb(0x40, DIVISOR & 255);
	outb(0x40, DIVISOR >> 8);
	pic_mask &= (uint16_t)~1u;
	pic_set_mask();
}

void interrupts_init(void)
{
	const char *how = option("irq", 0);

	pic_init();
	lapic_write(LAPIC_SPURIOUS, 0x100 | VECTOR_SPURIOUS);
	use_pic = how && same(how, "pic");
	if (use_pic) {
		lapic_write(LAPIC_LVT_LINT0, LINT0_EXTINT);
		pic_mask &= (uint16_t)~4u; /* the second PIC's line */
		pit_init();
	} else {
		if (acpi.ioapic)
			ioapic = acpi.ioapic;
		ioapic_inputs = (ioapic_read(IOAPIC_VERSION) >> 16 & 255) + 1;
		lapic_write(LAPIC_TIMER_DIVIDE, DIVIDE_BY_16);
		lapic_write(LAPIC_LVT_TIMER, TIMER_PERIODIC | VECTOR_TIMER);
		lapic_write(LAPIC_TIMER_COUNT, TIMER_COUNT);
	}
	__asm__ volatile("sti" ::: "memory");
}

bool gsi_enable(unsigned gsi)
{
	if (gsi >= (use_pic ? 16 : GSIS))
		return false;
	if (use_pic) {
		pic_mask &= (uint16_t) ~(1u << gsi);
		pic_set_mask();
		return true;
	}
	if (gsi >= ioapic_inputs)
		return false;
	ioapic_write(IOAPIC_REDIRECT + 2 * gsi + 1, lapic_read(LAPIC_ID) & 0xff000000);
	ioapic_write(IOAPIC_REDIRECT + 2 * gsi, VECTOR_GSI + gsi); /* fixed, active high, edge, open */
	return true;
}

static void gsi_raised(unsigned gsi)
{
	gsi_count[gsi]++;
	devices_interrupt(gsi);
}

void interrupt_vector(unsigned v)
{
	if (v == VECTOR_SPURIOUS)
		return;
	if (v >= VECTOR_PIC && v < VECTOR_PIC + 16) {
		unsigned line = v - VECTOR_PIC;

		if (line == 0)
			ticks++;
		else
			gsi_raised(line);
		if (line >= 8)
			outb(PIC2, PIC_EOI);
		outb(PIC1, PIC_EOI);
		return;
	}
	if (v == VECTOR_TIMER)
		ticks++;
	else if (v >= VECTOR_GSI && v < VECTOR_GSI + GSIS)
		gsi_raised(v - VECTOR_GSI);
	lapic_write(LAPIC_EOI, 0);
}

bool wait_for(bool (*ready)(void *arg), void *arg)
{
	static uint64_t seconds;
	uint64_t since = ticks;

	if (!seconds)
		seconds = option_number("timeout", 30);
	for (;;) {
		__asm__ volatile("cli" ::: "memory");
		if (ready(arg))
			break;
		if (ticks - since > seconds * TICKS_PER_SECOND) {
			__asm__ volatile("sti" ::: "memory");
			return false;
		}
		halts++;
		/* Nothing comes between the first two. A KVM that emulates its guests takes one interrupt for each nop. */
		__asm__ volatile("sti; hlt; .rept 8; nop; .endr" ::: "memory");
	}
	__asm__ volatile("sti" ::: "memory");
	return true;
}
