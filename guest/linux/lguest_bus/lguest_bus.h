/* SPDX-License-Identifier: GPL-2.0 */
/* What bus.c (finding the bus and its records) and device.c (one record as a virtio device) share. */
#ifndef LGUEST_BUS_H
#define LGUEST_BUS_H

#include <linux/list.h>
#include <linux/platform_device.h>
#include <linux/virtio.h>
#include <linux/workqueue.h>

#define LGUEST_PAGE_SIZE 4096
#define LGUEST_PAGE_SHIFT 12
#define LGUEST_VRING_ALIGN 4096
#define LGUEST_RING_PAGES 256 /* at most so many above the device page */
#define LGUEST_IRQS 31        /* numbered from 1 */

/* A record: five bytes, then num_vq queues, two bitmaps of feature_len bytes, config_len bytes. Packed, never aligned. */
#define RECORD_TYPE 0
#define RECORD_NUM_VQ 1
#define RECORD_FEATURE_LEN 2
#define RECORD_CONFIG_LEN 3
#define RECORD_STATUS 4
#define RECORD_HEADER 5
#define RECORD_VQ 8

/* Ports, from the base. */
#define PORT_DOORBELL 0
#define PORT_NOTIFY 4
#define PORT_HIGH 8
#define PORTS 12
#define DEFAULT_PORT 0x1f10

struct lguest_bus {
	struct platform_device *pdev;
	u8 *mem; /* the device page, mapped */
	phys_addr_t phys;
	phys_addr_t end; /* rings lie below this */
	u16 port;
	struct list_head devices;
	struct delayed_work poll;
};

struct lguest_device {
	struct virtio_device vdev;
	struct lguest_bus *bus;
	struct list_head list;
	u8 *record;
	unsigned int offset; /* of record in the page */
	/* Copies: the page's own may change. */
	u8 num_vq, feature_len, config_len;
	bool configured; /* features are final; guarded by the virtio core's order of calls */
	u8 seen[256];    /* the config space when last polled */
};

#define to_lguest(v) container_of(v, struct lguest_device, vdev)

/* Registers the device of one record, whose lengths are checked, and puts it on the bus's list. */
int lguest_add_device(struct lguest_bus *bus, unsigned int offset, u8 type, u8 num_vq, u8 feature_len, u8 config_len);
void lguest_remove_device(struct lguest_device *ld);
/* Tells the driver if the config space changed since the last call. */
void lguest_poll_config(struct lguest_device *ld);

#endif
