/* SPDX-License-Identifier: 0BSD */
/* Tests of the machine itself: memory, timer, further CPUs. */
#include "guest.h"
#include "layout.h"

/* The ends of each range of RAM hold what is written there. The loader may have put something there: it is put back. */
static void test_memory(void)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < boot.ranges; i++) {
		/* Address 0 is C's NULL. */
		uint64_t ends[2] = {boot.ram[i].start ? boot.ram[i].start : 8, boot.ram[i].start + boot.ram[i].size - 8};

		total += boot.ram[i].size;
		info(NULL, "memory", "start=0x%lx end=0x%lx", boot.ram[i].start, boot.ram[i].start + boot.ram[i].size);
		for (unsigned k = 0; k < 2; k++) {
			volatile uint64_t *p = map(ends[k], 8);
			uint64_t old, seen;

			if (!p) {
				fail(NULL, "memory", "cannot map 0x%lx", ends[k]);
				return;
			}
			old = *p;
			*p = ~old;
			seen = *p;
			*p = old;
			if (seen != ~old) {
				fail(NULL, "memory", "0x%lx does not hold what is written there", ends[k]);
				return;
			}
		}
	}
	if (total)
		pass(NULL, "memory", "bytes=%lu ranges=%u top=0x%lx", total, boot.ranges, boot.top);
	else
		fail(NULL, "memory", "the loader told of no RAM");
}

static bool ticked(void *arg) { return ticks > *(uint64_t *)arg + 1; }

static void test_timer(void)
{
	uint64_t since = ticks, before = halts;

	/* Only a timer ends this sleep; where there is none, the launcher's time limit does. */
	wait_for(ticked, &since);
	pass(NULL, "timer", "by=%s halts=%lu", use_pic ? "pit" : "lapic", halts - before);
}

/* Further CPUs: INIT and SIPI, as Intel's and AMD's manuals have it. */
enum {
	LAPIC_ICR_LOW = 0x300,
	LAPIC_ICR_HIGH = 0x310,
	ICR_INIT = 0x4500,
	ICR_STARTUP = 0x4600,
	ROUNDS = 200, /* arbitrary: enough for lost updates to show */
};
extern char ap_code[], ap_code_end[], ap_cr3[], ap_stack[];
void ap_main(void);
static volatile uint32_t ap_started, ap_finished, ap_counter;

static void count_up(void)
{
	for (unsigned i = 0; i < ROUNDS; i++)
		__atomic_fetch_add(&ap_counter, 1, __ATOMIC_SEQ_CST);
}

void ap_main(void)
{
	__atomic_fetch_add(&ap_started, 1, __ATOMIC_SEQ_CST);
	count_up();
	__atomic_fetch_add(&ap_finished, 1, __ATOMIC_SEQ_CST);
}

static void send(uint8_t id, uint32_t command)
{
	lapic_write(LAPIC_ICR_HIGH, (uint32_t)id << 24);
	lapic_write(LAPIC_ICR_LOW, command);
}

static bool reached(void *arg) { return ap_finished == *(uint32_t *)arg; }

static bool start_cpu(uint8_t id, uint32_t n)
{
	uint8_t *copy = (uint8_t *)AP_START;
	uint64_t since, cr3, stack = phys(alloc(STACK_BYTES, 16));

	if (!stack)
		return false;
	stack += STACK_BYTES;
	__asm__ volatile("movq %%cr3, %0" : "=r"(cr3));
	memcpy(copy, ap_code, (size_t)(ap_code_end - ap_code));
	memcpy(copy + (ap_cr3 - ap_code), &cr3, 8);
	memcpy(copy + (ap_stack - ap_code), &stack, 8);
	send(id, ICR_INIT);
	since = ticks;
	wait_for(ticked, &since); /* at least 10 ms */
	send(id, ICR_STARTUP | AP_START >> 12);
	return wait_for(reached, &n);
}

static void test_smp(void)
{
	unsigned started = 0;
	uint64_t cpus = option_number("cpus", acpi.cpus ? acpi.cpus : 1);
	uint8_t self = (uint8_t)(lapic_read(0x20) >> 24);

	if (cpus > CPUS_MAX)
		cpus = CPUS_MAX;
	for (unsigned i = 0; i < cpus; i++) {
		uint8_t id = i < acpi.cpus ? acpi.apic_id[i] : (uint8_t)i;

		if (id == self)
			continue;
		if (!start_cpu(id, ++started)) {
			fail(NULL, "smp", "cpu with APIC id %u: started=%u finished=%u", (unsigned)id, ap_started, ap_finished);
			return;
		}
	}
	if (ap_counter != started * ROUNDS)
		fail(NULL, "smp", "%u CPUs counted to %u", started, ap_counter);
	else
		pass(NULL, "smp", "cpus=%u counted=%u", started + 1, ap_counter);
}

const struct test machine_tests[] = {
	{"memory", test_memory, true},
	{"timer", test_timer, true},
	{"smp", test_smp, true},
	{NULL, NULL, false},
};
