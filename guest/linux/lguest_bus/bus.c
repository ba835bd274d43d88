// SPDX-License-Identifier: GPL-2.0
/*
 * The lguest bus on KVM: virtio devices described by a page just above the guest's memory (README.md).
 *
 * The page, its ports and its interrupts come from an ACPI device (VPLG0001), or from module parameters. Nothing in the page is trusted:
 * lengths are copied once and checked.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/acpi.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/version.h>

#include "lguest_bus.h"

static unsigned long long page;
module_param(page, ullong, 0444);
MODULE_PARM_DESC(page, "Guest-physical address of the device page, where ACPI tells of none");

static unsigned int port = DEFAULT_PORT;
module_param(port, uint, 0444);
MODULE_PARM_DESC(port, "First of the bus's I/O ports (with page=)");

static unsigned int gsi[LGUEST_IRQS];
static unsigned int gsis;
module_param_array(gsi, uint, &gsis, 0444);
MODULE_PARM_DESC(gsi, "Global system interrupts of lguest interrupts 1, 2, ... (with page=)");

static unsigned int poll_ms;
module_param(poll_ms, uint, 0444);
MODULE_PARM_DESC(poll_ms, "Look for changes of config spaces this often; 0: never. The bus has no interrupt for them");

/* A device that fails does not take the others with it; a record that does not fit ends the list. */
static void scan(struct lguest_bus *bus)
{
	struct device *dev = &bus->pdev->dev;
	unsigned int at = 0, found = 0;

	while (at < LGUEST_PAGE_SIZE) {
		unsigned int size;
		u8 h[RECORD_STATUS];
		int err;

		if (READ_ONCE(bus->mem[at]) == 0)
			break;
		if (LGUEST_PAGE_SIZE - at < RECORD_HEADER) {
			dev_err(dev, "record at offset %u: cut off by the page's end\n", at);
			break;
		}
		memcpy(h, bus->mem + at, sizeof(h));
		barrier(); /* read once: the host may change it meanwhile */
		size = RECORD_HEADER + RECORD_VQ * h[RECORD_NUM_VQ] + 2 * h[RECORD_FEATURE_LEN] + h[RECORD_CONFIG_LEN];
		if (size > LGUEST_PAGE_SIZE - at) {
			dev_err(dev, "record at offset %u: %u bytes do not fit into the page\n", at, size);
			break;
		}
		if (h[RECORD_TYPE]) {
			err = lguest_add_device(bus, at, h[RECORD_TYPE], h[RECORD_NUM_VQ], h[RECORD_FEATURE_LEN], h[RECORD_CONFIG_LEN]);
			if (err)
				dev_err(dev, "record at offset %u, virtio type %u: %d\n", at, h[RECORD_TYPE], err);
			else
				found++;
		}
		at += size;
	}
	dev_info(dev, "lguest bus at %pa: %u devices\n", &bus->phys, found);
}

static void poll_configs(struct work_struct *work)
{
	struct lguest_bus *bus = container_of(to_delayed_work(work), struct lguest_bus, poll);
	struct lguest_device *ld;

	/* The list changes only before this work is first queued and after it is cancelled. */
	list_for_each_entry(ld, &bus->devices, list)
		lguest_poll_config(ld);
	schedule_delayed_work(&bus->poll, msecs_to_jiffies(poll_ms));
}

static int lguest_bus_probe(struct platform_device *pdev)
{
	struct resource *mem = platform_get_resource(pdev, IORESOURCE_MEM, 0);
	struct resource *io = platform_get_resource(pdev, IORESOURCE_IO, 0);
	struct device *dev = &pdev->dev;
	struct lguest_bus *bus;

	if (!mem || !io)
		return dev_err_probe(dev, -ENODEV, "want one memory and one port resource\n");
	if (!IS_ALIGNED(mem->start, LGUEST_PAGE_SIZE) || resource_size(mem) < LGUEST_PAGE_SIZE || resource_size(io) < PORTS)
		return dev_err_probe(dev, -EINVAL, "want a page and %u ports, not %pR and %pR\n", PORTS, mem, io);
	bus = devm_kzalloc(dev, sizeof(*bus), GFP_KERNEL);
	if (!bus)
		return -ENOMEM;
	bus->phys = mem->start;
	/* A resource of just the page says nothing of the rings. */
	bus->end = resource_size(mem) > LGUEST_PAGE_SIZE ? mem->end + 1 : bus->phys + (1 + LGUEST_RING_PAGES) * LGUEST_PAGE_SIZE;
	/* A wrong page= would have us write into the kernel's own memory. */
	if (region_intersects(bus->phys, bus->end - bus->phys, IORESOURCE_SYSTEM_RAM, IORES_DESC_NONE) != REGION_DISJOINT)
		return dev_err_probe(dev, -EINVAL, "%pa and what follows is RAM that belongs to Linux\n", &bus->phys);
	if (!devm_request_region(dev, io->start, resource_size(io), dev_name(dev)))
		return dev_err_probe(dev, -EBUSY, "%pR is in use\n", io);
	bus->pdev = pdev;
	bus->port = io->start;
	INIT_LIST_HEAD(&bus->devices);
	INIT_DELAYED_WORK(&bus->poll, poll_configs);
	/* Guest memory, though the kernel's memory map does not have it: cached. */
	bus->mem = devm_memremap(dev, bus->phys, LGUEST_PAGE_SIZE, MEMREMAP_WB);
	if (IS_ERR(bus->mem))
		return dev_err_probe(dev, PTR_ERR(bus->mem), "cannot map the page at %pa\n", &bus->phys);
	/* Loads from where nothing is give all ones, which would be a record. */
	if (!memchr_inv(bus->mem, 0xff, RECORD_HEADER))
		return dev_err_probe(dev, -ENODEV, "there is no memory at %pa\n", &bus->phys);
	platform_set_drvdata(pdev, bus);
	scan(bus);
	if (poll_ms)
		schedule_delayed_work(&bus->poll, msecs_to_jiffies(poll_ms));
	return 0;
}

static void bus_gone(struct platform_device *pdev)
{
	struct lguest_bus *bus = platform_get_drvdata(pdev);
	struct lguest_device *ld, *next;

	cancel_delayed_work_sync(&bus->poll);
	list_for_each_entry_safe_reverse(ld, next, &bus->devices, list)
		lguest_remove_device(ld);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
static void lguest_bus_remove(struct platform_device *pdev)
{
	bus_gone(pdev);
}
#else
static int lguest_bus_remove(struct platform_device *pdev)
{
	bus_gone(pdev);
	return 0;
}
#endif

#ifdef CONFIG_PM_SLEEP
/* Hibernation saves the kernel's memory, and not the rings: devices start anew. */
static int lguest_bus_restore(struct device *dev)
{
	struct lguest_bus *bus = dev_get_drvdata(dev);
	struct lguest_device *ld;
	int err, first = 0;

	list_for_each_entry(ld, &bus->devices, list) {
		err = virtio_device_restore(&ld->vdev);
		if (err) {
			dev_err(&ld->vdev.dev, "does not start again: %d\n", err);
			first = first ?: err;
		}
	}
	if (poll_ms)
		schedule_delayed_work(&bus->poll, msecs_to_jiffies(poll_ms));
	return first;
}

static int lguest_bus_freeze(struct device *dev)
{
	struct lguest_bus *bus = dev_get_drvdata(dev);
	struct lguest_device *ld;
	int err;

	cancel_delayed_work_sync(&bus->poll);
	list_for_each_entry(ld, &bus->devices, list) {
		err = virtio_device_freeze(&ld->vdev);
		if (err)
			goto undo;
	}
	return 0;
undo:
	list_for_each_entry_continue_reverse(ld, &bus->devices, list)
		virtio_device_restore(&ld->vdev);
	if (poll_ms)
		schedule_delayed_work(&bus->poll, msecs_to_jiffies(poll_ms));
	return err;
}

static const struct dev_pm_ops lguest_bus_pm = {
	SET_SYSTEM_SLEEP_PM_OPS(lguest_bus_freeze, lguest_bus_restore)
};
#define LGUEST_BUS_PM (&lguest_bus_pm)
#else
#define LGUEST_BUS_PM NULL
#endif

static const struct acpi_device_id lguest_bus_acpi[] = {
	{ "VPLG0001", 0 },
	{ }
};
MODULE_DEVICE_TABLE(acpi, lguest_bus_acpi);

static struct platform_driver lguest_bus_driver = {
	.probe = lguest_bus_probe,
	.remove = lguest_bus_remove,
	.driver = {
		.name = "lguest_bus",
		.acpi_match_table = lguest_bus_acpi,
		.pm = LGUEST_BUS_PM,
	},
};

/* The device that module parameters describe. */
static struct platform_device *by_hand;

/* Without ACPI there are only the PICs, whose lines have the same numbers. */
static int map_gsi(unsigned int g)
{
#ifdef CONFIG_ACPI
	if (!acpi_disabled)
		return acpi_register_gsi(NULL, g, ACPI_EDGE_SENSITIVE, ACPI_ACTIVE_HIGH);
#endif
	return g < 16 ? (int)g : -EINVAL;
}

static void unmap_gsis(unsigned int n)
{
#ifdef CONFIG_ACPI
	while (!acpi_disabled && n--)
		acpi_unregister_gsi(gsi[n]);
#endif
}

static int add_by_hand(void)
{
	struct resource *r;
	unsigned int i;
	int err;

	if (port > 0x10000 - PORTS) {
		pr_err("port=%#x: %u ports from there do not exist\n", port, PORTS);
		return -EINVAL;
	}
	r = kcalloc(2 + LGUEST_IRQS, sizeof(*r), GFP_KERNEL);
	if (!r)
		return -ENOMEM;
	r[0] = (struct resource)DEFINE_RES_MEM(page, LGUEST_PAGE_SIZE);
	r[1] = (struct resource)DEFINE_RES_IO(port, PORTS);
	for (i = 0; i < gsis; i++) {
		int irq = map_gsi(gsi[i]);

		if (irq < 0) {
			pr_err("gsi %u: %d\n", gsi[i], irq);
			err = irq;
			goto out;
		}
		r[2 + i] = (struct resource)DEFINE_RES_IRQ(irq);
	}
	by_hand = platform_device_register_simple("lguest_bus", PLATFORM_DEVID_NONE, r, 2 + gsis);
	err = PTR_ERR_OR_ZERO(by_hand);
	if (!err && !platform_get_drvdata(by_hand)) { /* probe has said why */
		platform_device_unregister(by_hand);
		err = -ENODEV;
	}
out:
	if (err)
		unmap_gsis(i);
	kfree(r);
	return err;
}

static int __init lguest_bus_init(void)
{
	int err;

	/* Asked before there is a driver, or its devices would come and go at once. */
	if (page && acpi_dev_present("VPLG0001", NULL, -1)) {
		pr_err("ACPI tells where the bus is: load without page=\n");
		return -EEXIST;
	}
	err = platform_driver_register(&lguest_bus_driver);
	if (err || !page)
		return err;
	err = add_by_hand();
	if (err)
		platform_driver_unregister(&lguest_bus_driver);
	return err;
}

static void __exit lguest_bus_exit(void)
{
	if (page) {
		platform_device_unregister(by_hand);
		unmap_gsis(gsis);
	}
	platform_driver_unregister(&lguest_bus_driver);
}

module_init(lguest_bus_init);
module_exit(lguest_bus_exit);

MODULE_DESCRIPTION("virtio devices on the lguest bus");
MODULE_AUTHOR("The virtplug authors");
MODULE_LICENSE("GPL");
