/* SPDX-License-Identifier: 0BSD */
/* Tests of disks: content with checksums, and what a device must refuse. */
#include "guest.h"

enum {
	CHUNK = 4096,
	AREA = 32 << 10, /* default; small, for hosts that emulate every instruction (about one a microsecond) */
	ID_BYTES = 20,
	UNKNOWN_TYPE = 99,
	ZEROES_SECTORS = 8,
};
static uint8_t chunk[CHUNK] __attribute__((aligned(512))), expected[CHUNK] __attribute__((aligned(512)));

/* The part of a disk that is used, in bytes: option area, but not more than there is. False: none. */
static bool area(struct device *d, uint64_t *offset, uint64_t *bytes)
{
	uint64_t sectors;

	*offset = option_number("offset", 0) & ~(uint64_t)(SECTOR - 1);
	*bytes = option_number("area", AREA) & ~(uint64_t)(CHUNK - 1);
	if (!device_config(d, 0, 8, &sectors) || sectors > UINT64_MAX / SECTOR || sectors * SECTOR < *offset + CHUNK)
		return false;
	if (*bytes > sectors * SECTOR - *offset)
		*bytes = (sectors * SECTOR - *offset) & ~(uint64_t)(CHUNK - 1);
	return *bytes != 0;
}

/* Why a request went wrong, in words. */
static const char *outcome(struct device *d, int status)
{
	switch (status) {
	case BLOCK_OK:
		return "status OK";
	case BLOCK_IOERR:
		return "status IOERR";
	case BLOCK_UNSUPP:
		return "status UNSUPP";
	}
	return status < 0 ? d->why : "a status that there is not";
}

static bool has(struct device *d, uint64_t feature) { return (d->features & feature) != 0; }

static bool read_crc(struct device *d, uint64_t offset, uint64_t bytes, const char *name, bool compare, uint64_t seed)
{
	uint32_t crc = 0;

	for (uint64_t at = 0; at < bytes; at += CHUNK) {
		unsigned turn = (unsigned)(at / CHUNK);
		int status;

		memset(chunk, 0xa5, CHUNK);
		status = block_do(d, BLOCK_IN, (offset + at) / SECTOR, chunk, CHUNK, 1 + (turn + 1) % 4, has(d, VIRTQ_F_INDIRECT_DESC) && turn % 2);
		if (status) {
			fail(d->name, name, "at %lu: %s", offset + at, outcome(d, status));
			return false;
		}
		crc = crc32c(crc, chunk, CHUNK);
		if (!compare)
			continue;
		pattern_fill(expected, (offset + at) / 8, CHUNK / 8, seed);
		if (memcmp(chunk, expected, CHUNK) != 0) {
			fail(d->name, name, "at %lu: not what was written", offset + at);
			return false;
		}
	}
	pass(d->name, name, "offset=%lu bytes=%lu crc32c=0x%x", offset, bytes, crc);
	return true;
}

static bool write_pattern(struct device *d, uint64_t offset, uint64_t bytes, uint64_t seed)
{
	uint32_t crc = 0;

	for (uint64_t at = 0; at < bytes; at += CHUNK) {
		unsigned turn = (unsigned)(at / CHUNK);
		int status;

		pattern_fill(chunk, (offset + at) / 8, CHUNK / 8, seed);
		crc = crc32c(crc, chunk, CHUNK);
		status = block_do(d, BLOCK_OUT, (offset + at) / SECTOR, chunk, CHUNK, 1 + turn % 4, has(d, VIRTQ_F_INDIRECT_DESC) && turn % 2);
		if (status) {
			fail(d->name, "write", "at %lu: %s", offset + at, outcome(d, status));
			return false;
		}
	}
	pass(d->name, "write", "offset=%lu bytes=%lu crc32c=0x%x seed=%lu", offset, bytes, crc, seed);
	return true;
}

/* A request that must end with a certain status. */
static bool expect(struct device *d, const char *name, int want, uint32_t type, uint64_t sector, uint32_t len)
{
	int status = block_do(d, type, sector, chunk, len, 1, false);

	if (status == want)
		return true;
	fail(d->name, name, "type %u at sector %lu: %s, want %s", type, sector, outcome(d, status), outcome(d, want));
	return false;
}

/* False: the device does not answer. */
static bool check_id(struct device *d)
{
	static char id[ID_BYTES + 1];
	int status;

	memset(id, 0, sizeof(id));
	status = block_do(d, BLOCK_GET_ID, 0, id, ID_BYTES, 1, false);
	if (status) {
		fail(d->name, "id", "%s", outcome(d, status));
		return status > 0;
	}
	for (unsigned i = 0; i < ID_BYTES && id[i]; i++)
		if (id[i] < ' ' || id[i] > '~')
			id[i] = '?';
	pass(d->name, "id", "\"%s\"", id);
	return true;
}

static void check_bounds(struct device *d, uint64_t sectors)
{
	bool ok = expect(d, "bounds", BLOCK_OK, BLOCK_IN, sectors - 1, SECTOR) &&
		  expect(d, "bounds", BLOCK_IOERR, BLOCK_IN, sectors, SECTOR) &&
		  expect(d, "bounds", BLOCK_IOERR, BLOCK_IN, sectors - 1, 2 * SECTOR) &&
		  expect(d, "bounds", BLOCK_IOERR, BLOCK_IN, UINT64_MAX, SECTOR) &&
		  expect(d, "bounds", BLOCK_IOERR, BLOCK_OUT, sectors, SECTOR) &&
		  expect(d, "bounds", BLOCK_IOERR, BLOCK_OUT, UINT64_MAX / SECTOR, SECTOR);

	if (ok)
		pass(d->name, "bounds", "sectors=%lu", sectors);
	if (expect(d, "unsupported", BLOCK_UNSUPP, UNKNOWN_TYPE, 0, 0))
		pass(d->name, "unsupported", "type=%u", UNKNOWN_TYPE);
}

/* The sectors behind the area: written, then made zero by a request of its own. */
static void check_zeroes(struct device *d, uint64_t sector, uint64_t sectors)
{
	struct {
		uint64_t sector;
		uint32_t count, flags;
	} *range = (void *)expected;
	bool zero = true;

	if (!has(d, BLOCK_F_WRITE_ZEROES) || sector + ZEROES_SECTORS > sectors)
		return;
	memset(chunk, 0x5a, CHUNK);
	if (!expect(d, "zeroes", BLOCK_OK, BLOCK_OUT, sector, ZEROES_SECTORS * SECTOR))
		return;
	range->sector = sector;
	range->count = ZEROES_SECTORS;
	range->flags = 0;
	memcpy(chunk, range, sizeof(*range));
	if (!expect(d, "zeroes", BLOCK_OK, BLOCK_WRITE_ZEROES, 0, sizeof(*range)) ||
	    !expect(d, "zeroes", BLOCK_OK, BLOCK_IN, sector, ZEROES_SECTORS * SECTOR))
		return;
	for (unsigned i = 0; i < ZEROES_SECTORS * SECTOR / 8; i++)
		zero &= ((uint64_t *)chunk)[i] == 0;
	if (zero)
		pass(d->name, "zeroes", "sector=%lu sectors=%u", sector, ZEROES_SECTORS);
	else
		fail(d->name, "zeroes", "sector %lu: not zero", sector);
}

static void check_read_only(struct device *d)
{
	if (expect(d, "readonly", BLOCK_IOERR, BLOCK_OUT, 0, SECTOR))
		pass(d->name, "readonly", "a write is refused");
}

static void check_disk(struct device *d, unsigned index)
{
	uint64_t offset, bytes, sectors, seed = option_number("seed", 1) + index;

	if (!area(d, &offset, &bytes)) {
		fail(d->name, "config", "no capacity, or less than offset and 4096 bytes");
		return;
	}
	device_config(d, 0, 8, &sectors);
	pass(d->name, "config", "sectors=%lu", sectors);
	if (!check_id(d) || !read_crc(d, offset, bytes, "before", false, 0))
		return;
	check_bounds(d, sectors);
	if (d->features & BLOCK_F_RO) {
		check_read_only(d);
		return;
	}
	if (!write_pattern(d, offset, bytes, seed))
		return;
	if (has(d, BLOCK_F_FLUSH) && expect(d, "flush", BLOCK_OK, BLOCK_FLUSH, 0, 0))
		pass(d->name, "flush", "");
	if (read_crc(d, offset, bytes, "read", true, seed))
		check_zeroes(d, (offset + bytes) / SECTOR, sectors);
}

static void test_disk(void)
{
	struct device *d;

	for (unsigned i = 0; (d = device_of_type(TYPE_BLOCK, i)); i++)
		if (d->live)
			check_disk(d, i);
}

/* The ring's options one by one: each needs a new start, and a write and read that go through. */
static void test_features(void)
{
	static const struct {
		const char *name;
		uint64_t ring;
	} sets[] = {{"none", 0}, {"indirect", VIRTQ_F_INDIRECT_DESC}, {"event_idx", VIRTQ_F_EVENT_IDX},
		    {"both", VIRTQ_F_INDIRECT_DESC | VIRTQ_F_EVENT_IDX}};
	struct device *d = device_of_type(TYPE_BLOCK, 0);
	uint64_t ring = VIRTQ_F_INDIRECT_DESC | VIRTQ_F_EVENT_IDX, offset, bytes;

	if (!d || !area(d, &offset, &bytes))
		return;
	for (unsigned i = 0; i < sizeof(sets) / sizeof(*sets); i++) {
		bool indirect = (sets[i].ring & VIRTQ_F_INDIRECT_DESC) != 0;
		int status = 0;

		if (!device_start(d, (device_known(d->type) & ~ring) | sets[i].ring)) {
			fail(d->name, "features", "%s: %s", sets[i].name, d->why);
			return;
		}
		if ((d->features & ring) != sets[i].ring) {
			info(d->name, "features", "%s: not offered", sets[i].name);
			continue;
		}
		for (unsigned k = 0; k < 4 && status == 0; k++) {
			uint64_t sector = offset / SECTOR + k;

			pattern_fill(expected, k * 64, SECTOR / 8, i);
			memcpy(chunk, expected, SECTOR);
			if (!(d->features & BLOCK_F_RO))
				status = block_do(d, BLOCK_OUT, sector, chunk, SECTOR, 3, indirect);
			memset(chunk, 0, SECTOR);
			if (status == 0)
				status = block_do(d, BLOCK_IN, sector, chunk, SECTOR, 1 + k, indirect);
			if (status == 0 && !(d->features & BLOCK_F_RO) && memcmp(chunk, expected, SECTOR) != 0)
				status = -1, d->why = "not what was written";
		}
		if (status)
			fail(d->name, "features", "%s: %s", sets[i].name, outcome(d, status));
		else
			pass(d->name, "features", "%s=0x%lx", sets[i].name, d->features);
	}
}

/* Waits until the first disk has another capacity: somebody has to resize it meanwhile. */
struct capacity {
	struct device *device;
	uint64_t before, now;
};

static bool resized(void *arg)
{
	struct capacity *c = arg;

	return !device_config(c->device, 0, 8, &c->now) || c->now != c->before;
}

static void test_resize(void)
{
	struct device *d = device_of_type(TYPE_BLOCK, 0);
	struct capacity c = {.device = d};
	uint32_t interrupts;

	if (!d || !d->live || !device_config(d, 0, 8, &c.before)) {
		fail(NULL, "resize", "no disk");
		return;
	}
	interrupts = d->config_interrupts;
	info(d->name, "resize", "waits: sectors=%lu", c.before);
	if (!wait_for(resized, &c))
		fail(d->name, "resize", "no change in time");
	else if (d->bus == BUS_MMIO && d->config_interrupts == interrupts)
		fail(d->name, "resize", "sectors=%lu without an interrupt", c.now);
	else if (expect(d, "resize", BLOCK_OK, BLOCK_IN, c.now - 1, SECTOR))
		pass(d->name, "resize", "sectors=%lu interrupts=%u", c.now, d->config_interrupts - interrupts);
}

const struct test block_tests[] = {
	{"features", test_features, true},
	{"disk", test_disk, true},
	{"resize", test_resize, false},
	{NULL, NULL, false},
};
