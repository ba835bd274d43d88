/* SPDX-License-Identifier: 0BSD */
/* The ACPI tables, as far as a program without an AML interpreter can use and check them. */
#include "guest.h"

enum {
	HEADER = 36,
	TABLE_MAX = 1 << 20, /* arbitrary; a longer one is taken for damage */
	FADT_RESET = 116,
	FADT_RESET_VALUE = 128,
	FADT_DSDT = 40,
	FADT_X_DSDT = 140,
	FADT_SLEEP_CONTROL = 244,
	MADT_ENTRIES = 44,
};

struct acpi acpi;

static uint32_t get32(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }
static uint64_t get64(const uint8_t *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }

static uint8_t sum(const uint8_t *p, uint32_t n)
{
	uint8_t s = 0;

	while (n--)
		s = (uint8_t)(s + *p++);
	return s;
}

/* The table at a guest-physical address if it is whole, and its length. */
static const uint8_t *table(uint64_t at, uint32_t *len)
{
	const uint8_t *p = map(at, HEADER);
	char name[5] = "";

	if (!p) {
		fail(NULL, "acpi", "a table at 0x%lx", at);
		return NULL;
	}
	memcpy(name, p, 4);
	*len = get32(p + 4);
	if (*len < HEADER || *len > TABLE_MAX || !map(at, *len)) {
		fail(NULL, "acpi", "table %s at 0x%lx: length %u", name, at, *len);
		return NULL;
	}
	if (sum(p, *len) != 0) {
		fail(NULL, "acpi", "table %s at 0x%lx: checksum", name, at);
		return NULL;
	}
	info(NULL, "acpi", "table=%s at=0x%lx bytes=%u", name, at, *len);
	return p;
}

static struct acpi_register gas(const uint8_t *p)
{
	struct acpi_register r = {p[0], get64(p + 4)};

	return r;
}

static void fadt(const uint8_t *p, uint32_t len)
{
	uint64_t dsdt = get32(p + FADT_DSDT);
	uint32_t n;

	if (len >= FADT_X_DSDT + 8 && get64(p + FADT_X_DSDT))
		dsdt = get64(p + FADT_X_DSDT);
	if (dsdt)
		table(dsdt, &n);
	if (len < FADT_SLEEP_CONTROL + 12)
		return;
	acpi.reset = gas(p + FADT_RESET);
	acpi.reset_value = p[FADT_RESET_VALUE];
	acpi.sleep_control = gas(p + FADT_SLEEP_CONTROL);
}

static void madt(const uint8_t *p, uint32_t len)
{
	for (uint32_t at = MADT_ENTRIES; at + 2 <= len; at += p[at + 1]) {
		const uint8_t *e = p + at;

		if (e[1] < 2 || e[1] > len - at)
			return;
		if (e[0] == 0 && e[1] >= 8 && (get32(e + 4) & 1) && acpi.cpus < CPUS_MAX)
			acpi.apic_id[acpi.cpus++] = e[3];
		if (e[0] == 1 && e[1] >= 12 && !acpi.ioapic)
			acpi.ioapic = get32(e + 4);
	}
}

void acpi_read(void)
{
	const uint8_t *rsdp = boot.rsdp ? map(boot.rsdp, HEADER) : NULL, *xsdt;
	uint32_t len;

	if (!rsdp)
		return;
	if (memcmp(rsdp, "RSD PTR ", 8) != 0 || sum(rsdp, 20) != 0 || rsdp[15] < 2 || sum(rsdp, HEADER) != 0) {
		fail(NULL, "acpi", "RSDP at 0x%lx: signature, revision or checksum", boot.rsdp);
		return;
	}
	xsdt = table(get64(rsdp + 24), &len);
	if (!xsdt || memcmp(xsdt, "XSDT", 4) != 0)
		return;
	acpi.found = true;
	for (uint32_t at = HEADER; at + 8 <= len; at += 8) {
		uint32_t n;
		const uint8_t *t = table(get64(xsdt + at), &n);

		if (t && memcmp(t, "FACP", 4) == 0)
			fadt(t, n);
		if (t && memcmp(t, "APIC", 4) == 0)
			madt(t, n);
	}
}
