/* SPDX-License-Identifier: 0BSD */
/* Page tables, interrupt gates, exceptions, and the program's own memory. */
#include "guest.h"
#include "layout.h"

enum { TABLES = 24, HEAP = 6 << 20 };
#define PAGE_2M (2ull << 20)

static uint64_t tables[TABLES][512] __attribute__((aligned(4096)));
static unsigned tables_used = 2; /* 0 is the root, 1 the low 512 GiB */
static uint8_t heap[HEAP] __attribute__((aligned(4096)));
static size_t heap_used;

struct gate {
	uint16_t low, selector;
	uint8_t ist, type;
	uint16_t middle;
	uint32_t high, zero;
};
static struct gate gates[256] __attribute__((aligned(16)));
extern char interrupt_entries[];

/* What interrupt_common pushes. */
struct frame {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	uint64_t vector, error, rip, cs, rflags, rsp, ss;
};
void interrupt(struct frame *f);

void *map(uint64_t at, uint64_t size)
{
	uint64_t flags = 0x83; /* present, writable, 2 MiB page */

	if (size == 0 || at + size < at || at + size > 1ull << 39)
		return NULL;
	for (uint64_t p = at & ~(PAGE_2M - 1); p < at + size; p += PAGE_2M) {
		uint64_t *slot = &tables[1][p >> 30], *directory;

		if (!*slot) {
			if (tables_used == TABLES)
				return NULL;
			*slot = phys(tables[tables_used++]) | 3;
		}
		directory = (uint64_t *)(*slot & ~4095ull);
		directory[p >> 21 & 511] = p | flags;
	}
	return (void *)at;
}

void *alloc(size_t size, size_t align)
{
	size_t at = (heap_used + align - 1) & ~(align - 1);

	if (size > HEAP || at > HEAP - size)
		return NULL;
	heap_used = at + size;
	return heap + at;
}

void cpu_init(void)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) idtr = {sizeof(gates) - 1, phys(gates)};

	for (unsigned i = 0; i < 256; i++) {
		uint64_t at = (uint64_t)interrupt_entries + 16 * i;

		gates[i] = (struct gate){(uint16_t)at, CODE_SELECTOR, 0, 0x8e, (uint16_t)(at >> 16), (uint32_t)(at >> 32), 0};
	}
	__asm__ volatile("lidt %0" : : "m"(idtr));
	tables[0][0] = phys(tables[1]) | 3;
	map(0, 4ull << 30);
	__asm__ volatile("movq %0, %%cr3" : : "r"(phys(tables[0])) : "memory");
}

void interrupt(struct frame *f)
{
	static bool again;
	uint64_t cr2;

	if (f->vector >= 32) {
		interrupt_vector((unsigned)f->vector);
		return;
	}
	__asm__ volatile("movq %%cr2, %0" : "=r"(cr2));
	if (!again) {
		again = true;
		fail(NULL, "exception", "vector=%lu error=0x%lx rip=0x%lx rsp=0x%lx cr2=0x%lx", f->vector, f->error, f->rip, f->rsp, cr2);
	}
	end("poweroff");
}
