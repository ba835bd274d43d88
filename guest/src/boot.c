/* SPDX-License-Identifier: 0BSD */
/* What the loader told: memory, command line, ACPI. Everything is copied: low memory is ours afterwards. */
#include "guest.h"

enum { E820_RAM = 1, E820_BYTES = 20, CMDLINE_MAX = 2048 };

struct boot boot;
static char words[CMDLINE_MAX + 2]; /* the command line's words, each ended by 0, the last by two */

static uint32_t get32(uint64_t at)
{
	uint32_t v;

	memcpy(&v, (const void *)at, 4);
	return v;
}

static uint64_t get64(uint64_t at)
{
	uint64_t v;

	memcpy(&v, (const void *)at, 8);
	return v;
}

static void ram(uint64_t start, uint64_t size)
{
	if (boot.ranges == RAM_RANGES || size == 0)
		return;
	boot.ram[boot.ranges].start = start;
	boot.ram[boot.ranges++].size = size;
	if (start + size > boot.top)
		boot.top = start + size;
}

static void command_line(uint64_t at)
{
	const char *s = (const char *)at;
	size_t n = 0;

	if (!at)
		return;
	for (; *s && n < CMDLINE_MAX; s++) {
		if (*s > ' ')
			words[n++] = *s;
		else if (n && words[n - 1])
			words[n++] = 0;
	}
}

/* Linux's boot protocol: offsets of struct boot_params ("zero page"). */
static void from_boot_params(uint64_t p)
{
	unsigned n = *(uint8_t *)(p + 0x1e8);

	for (unsigned i = 0; i < n; i++) {
		uint64_t e = p + 0x2d0 + i * E820_BYTES;

		if (get32(e + 16) == E820_RAM)
			ram(get64(e), get64(e + 8));
	}
	command_line(get32(p + 0x228) | (uint64_t)get32(p + 0xc8) << 32);
	boot.rsdp = get64(p + 0x70);
}

/* Xen's struct hvm_start_info, version 1. */
static void from_start_info(uint64_t p)
{
	uint64_t map = get64(p + 40);
	uint32_t n = get32(p + 48);

	boot.pvh = true;
	if (get32(p + 4) >= 1)
		for (uint32_t i = 0; i < n; i++)
			if (get32(map + 24 * i + 16) == E820_RAM)
				ram(get64(map + 24 * i), get64(map + 24 * i + 8));
	command_line(get64(p + 24));
	boot.rsdp = get64(p + 32);
}

void boot_read(uint64_t boot_params, uint64_t start_info)
{
	if (start_info)
		from_start_info(start_info);
	else if (boot_params)
		from_boot_params(boot_params);
}

/* The value of word if it is name or name=value, else NULL. */
static const char *value(const char *word, const char *name)
{
	while (*name && *name == *word)
		name++, word++;
	if (*name)
		return NULL;
	return *word == '=' ? word + 1 : *word == 0 ? word : NULL;
}

const char *option(const char *name, unsigned n)
{
	for (const char *w = words; *w; w += strlen(w) + 1) {
		const char *v = value(w, name);

		if (v && n-- == 0)
			return v;
	}
	return NULL;
}

uint64_t option_number(const char *name, uint64_t otherwise)
{
	const char *s = option(name, 0), *end;
	uint64_t v;

	if (!s)
		return otherwise;
	if (parse_number(s, &end, &v) && *end == 0)
		return v;
	fail(NULL, "option", "%s=%s: not a number", name, s);
	return otherwise;
}

void options_unknown(void)
{
	static const char *const known[] = {"test", "skip", "end", "load", "depth", "reinit", "area", "offset", "seed", "timeout", "qsize",
					    "irq", "cpus", "lguest", "virtio_mmio", "virtio_mmio.device", "reboots", "features", "frames", "inflight", "name", "tcp",
					    /* the launcher's, for Linux */
					    "panic", "console", "reboot", "earlyprintk", "root", "ro", "rw", "quiet"};

	for (const char *w = words; *w; w += strlen(w) + 1) {
		bool found = false;

		for (unsigned i = 0; i < sizeof(known) / sizeof(*known); i++)
			found |= value(w, known[i]) != NULL;
		if (!found)
			info(NULL, "option", "%s: unknown, ignored", w);
	}
}
