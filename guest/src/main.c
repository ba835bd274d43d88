/* SPDX-License-Identifier: 0BSD */
/*
 * A guest without an operating system: finds the devices of virtplug's machine, tests them, reports on the serial port.
 * README.md tells the command line and the report.
 */
#include "guest.h"

void guest_main(uint64_t boot_params, uint64_t start_info);

/* Whether a comma-separated list has name. */
static bool listed(const char *list, const char *name)
{
	for (; list && *list; list++) {
		size_t n = 0;

		while (name[n] && list[n] == name[n])
			n++;
		if (!name[n] && (list[n] == ',' || list[n] == 0))
			return true;
		while (*list && *list != ',')
			list++;
		if (!*list)
			return false;
	}
	return false;
}

static bool wanted(const struct test *t)
{
	const char *only = option("test", 0);

	if (listed(option("skip", 0), t->name))
		return false;
	if (only && !same(only, "all"))
		return listed(only, t->name);
	return t->by_default;
}

static const struct test *const groups[] = {machine_tests,   device_tests, block_tests, net_tests, network_tests,
					    net_abuse_tests, load_tests,   abuse_tests};
enum { GROUPS = sizeof(groups) / sizeof(*groups) };

/* A name of which no test is: a run that tests nothing must not look like a good one. */
static void check_names(const char *list)
{
	for (const char *at = list; at && *at;) {
		char name[32];
		size_t n = 0;
		bool known;

		for (; *at && *at != ','; at++)
			if (n + 1 < sizeof(name))
				name[n++] = *at;
		name[n] = 0;
		known = same(name, "all") || same(name, "none");
		for (unsigned g = 0; g < GROUPS; g++)
			for (const struct test *t = groups[g]; t->name; t++)
				known |= same(name, t->name);
		if (!known)
			fail(NULL, "option", "test %s: unknown", name);
		if (*at)
			at++;
	}
}

static void totals(void)
{
	uint64_t kicks = 0;
	uint32_t interrupts = 0;

	for (unsigned i = 0; i < device_count; i++)
		for (unsigned k = 0; k < QUEUES_MAX; k++)
			kicks += devices[i].q[k].kicks;
	for (unsigned i = 0; i < GSIS; i++)
		interrupts += gsi_count[i];
	info(NULL, "totals", "interrupts=%u kicks=%lu halts=%lu ticks=%lu", interrupts, kicks, halts, ticks);
}

void guest_main(uint64_t boot_params, uint64_t start_info)
{
	const char *how;
	char done[64];

	serial_init();
	boot_read(boot_params, start_info);
	cpu_init();
	how = option("end", 0);
	info(NULL, "start", "virtplug guest entry=%s", boot.pvh ? "pvh" : "64-bit");
	options_unknown();
	check_names(option("test", 0));
	check_names(option("skip", 0));
	acpi_read();
	interrupts_init();
	devices_scan();
	for (unsigned g = 0; g < GROUPS; g++)
		for (const struct test *t = groups[g]; t->name; t++)
			if (wanted(t))
				t->run();
	totals();
	serial_write(done, format(done, sizeof(done), "DONE passed=%u failed=%u\n", passes(), failures()));
	end(how ? how : "poweroff");
}
