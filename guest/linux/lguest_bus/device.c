// SPDX-License-Identifier: GPL-2.0
/*
 * One record of the device page as a legacy device of the kernel's virtio core: feature bits 0..31, native byte order, rings that the
 * host has allocated. Rings must lie inside the bus's memory.
 */
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/log2.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "lguest_bus.h"

struct lguest_vq {
	void *ring; /* mapped */
	u32 pfn;
	unsigned int irq;
	bool irq_taken;
	u16 port;
};

static u8 *vq_config(struct lguest_device *ld, unsigned int index)
{
	return ld->record + RECORD_HEADER + RECORD_VQ * index;
}

static u8 *host_features(struct lguest_device *ld)
{
	return vq_config(ld, ld->num_vq);
}

static u8 *config_space(struct lguest_device *ld)
{
	return host_features(ld) + 2 * ld->feature_len;
}

/* Tells the host to look at a device's record; it has, when this returns. */
static void notify_host(struct lguest_device *ld)
{
	u64 addr = ld->bus->phys + ld->offset;

	mb(); /* what was written into the record is there before the host looks */
	preempt_disable(); /* HIGH counts for the same CPU's next NOTIFY */
	if (addr >> 32)
		outl(upper_32_bits(addr), ld->bus->port + PORT_HIGH);
	outl(lower_32_bits(addr), ld->bus->port + PORT_NOTIFY);
	preempt_enable();
}

static u64 lg_get_features(struct virtio_device *vdev)
{
	struct lguest_device *ld = to_lguest(vdev);
	u8 *p = host_features(ld);
	unsigned int i;
	u32 features = 0;

	for (i = 0; i < ld->feature_len && i < sizeof(features); i++)
		features |= (u32)READ_ONCE(p[i]) << (8 * i);
	return features;
}

/* Drivers ask for fields that feature bits promise. A host that promised and gives no room makes them zero. */
static void lg_get(struct virtio_device *vdev, unsigned int offset, void *buf, unsigned int len)
{
	struct lguest_device *ld = to_lguest(vdev);

	if (offset > ld->config_len || len > ld->config_len - offset) {
		dev_warn_ratelimited(&vdev->dev, "config space has %u bytes, not %u at %u: zeroes\n", ld->config_len, len, offset);
		memset(buf, 0, len);
		return;
	}
	memcpy(buf, config_space(ld) + offset, len);
}

static void lg_set(struct virtio_device *vdev, unsigned int offset, const void *buf, unsigned int len)
{
	struct lguest_device *ld = to_lguest(vdev);

	if (offset > ld->config_len || len > ld->config_len - offset) {
		dev_warn_ratelimited(&vdev->dev, "config space has %u bytes, not %u at %u: not written\n", ld->config_len, len, offset);
		return;
	}
	memcpy(config_space(ld) + offset, buf, len);
}

static u8 lg_get_status(struct virtio_device *vdev)
{
	return READ_ONCE(to_lguest(vdev)->record[RECORD_STATUS]);
}

static void lg_set_status(struct virtio_device *vdev, u8 status)
{
	struct lguest_device *ld = to_lguest(vdev);
	u8 old = READ_ONCE(ld->record[RECORD_STATUS]);

	/* What the driver has set up is there before the status that says so. */
	smp_store_release(&ld->record[RECORD_STATUS], status);
	/* The host hears only of a failure; of a reset by lg_reset, of a start by lg_finalize_features. */
	if (status & ~old & VIRTIO_CONFIG_S_FAILED)
		notify_host(ld);
}

/* After this no interrupt handler runs that began before it. */
static void lg_synchronize_cbs(struct virtio_device *vdev)
{
	struct virtqueue *vq;

	list_for_each_entry(vq, &vdev->vqs, list) {
		struct lguest_vq *lv = vq->priv;

		synchronize_irq(lv->irq);
	}
}

static void lg_reset(struct virtio_device *vdev)
{
	struct lguest_device *ld = to_lguest(vdev);

	WRITE_ONCE(ld->configured, false);
	WRITE_ONCE(ld->record[RECORD_STATUS], 0);
	notify_host(ld);
	/* Drivers rely on it that no callback is under way after a reset. */
	lg_synchronize_cbs(vdev);
}

static int lg_finalize_features(struct virtio_device *vdev)
{
	struct lguest_device *ld = to_lguest(vdev);
	u8 *acked = host_features(ld) + ld->feature_len;
	u8 status = READ_ONCE(ld->record[RECORD_STATUS]);
	unsigned int i;

	vring_transport_features(vdev);
	if (upper_32_bits(vdev->features)) {
		dev_err(&vdev->dev, "feature bits above 31 (%#llx) cannot be accepted on the lguest bus\n", vdev->features);
		return -EINVAL;
	}
	/*
	 * The host starts a device only after a reset, and once. But the core comes again if a driver's validate() changed the
	 * features, and does not reset a device whose last driver failed.
	 */
	if (ld->configured || status & VIRTIO_CONFIG_S_FAILED) {
		lg_reset(vdev);
		status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
		lg_set_status(vdev, status);
	}
	if (status == 0) {
		/* The host would take the notification for a reset. */
		dev_err(&vdev->dev, "status became 0 before the features were final\n");
		return -EIO;
	}
	for (i = 0; i < ld->feature_len; i++)
		WRITE_ONCE(acked[i], i < sizeof(u32) ? (u8)(vdev->features >> (8 * i)) : 0);
	notify_host(ld);
	WRITE_ONCE(ld->configured, true);
	return 0;
}

static bool lg_notify(struct virtqueue *vq)
{
	struct lguest_vq *lv = vq->priv;

	outl(lv->pfn, lv->port + PORT_DOORBELL);
	return true;
}

/* The Linux interrupt of lguest interrupt irq, or an error. */
static int linux_irq(struct lguest_bus *bus, u16 irq)
{
	if (irq < 1 || irq > LGUEST_IRQS)
		return -EINVAL;
	return platform_get_irq_optional(bus->pdev, irq - 1);
}

static void del_vq(struct virtqueue *vq)
{
	struct lguest_vq *lv = vq->priv;

	if (lv->irq_taken)
		free_irq(lv->irq, vq);
	vring_del_virtqueue(vq);
	memunmap(lv->ring);
	kfree(lv);
}

static void lg_del_vqs(struct virtio_device *vdev)
{
	struct virtqueue *vq, *next;

	list_for_each_entry_safe(vq, next, &vdev->vqs, list)
		del_vq(vq);
}

/* Where queue index's ring is, checked. */
static int read_vq(struct lguest_device *ld, unsigned int index, struct lguest_vq *lv, u16 *num, size_t *size)
{
	struct lguest_bus *bus = ld->bus;
	struct {
		__le16 num, irq;
		__le32 pfn;
	} c;
	phys_addr_t at;
	int irq;

	memcpy(&c, vq_config(ld, index), sizeof(c));
	barrier(); /* read once: the host may change it meanwhile */
	*num = le16_to_cpu(c.num);
	lv->pfn = le32_to_cpu(c.pfn);
	lv->port = bus->port;
	at = (phys_addr_t)lv->pfn << LGUEST_PAGE_SHIFT;
	if (!is_power_of_2(*num) || *num > 32768)
		return dev_err_probe(&ld->vdev.dev, -EINVAL, "queue %u: %u entries\n", index, *num);
	*size = PAGE_ALIGN(vring_size(*num, LGUEST_VRING_ALIGN));
	if (at <= bus->phys || at >= bus->end || *size > bus->end - at)
		return dev_err_probe(&ld->vdev.dev, -EINVAL, "queue %u: ring at %pa, %zu bytes, is outside the bus's memory\n", index, &at,
				     *size);
	irq = linux_irq(bus, le16_to_cpu(c.irq));
	if (irq < 0)
		return dev_err_probe(&ld->vdev.dev, irq, "queue %u: lguest interrupt %u\n", index, le16_to_cpu(c.irq));
	lv->irq = irq;
	return 0;
}

static struct virtqueue *setup_vq(struct lguest_device *ld, unsigned int index, vq_callback_t *callback, const char *name, bool ctx)
{
	struct lguest_vq *lv;
	struct virtqueue *vq;
	size_t size;
	u16 num;
	int err;

	if (index >= ld->num_vq)
		return ERR_PTR(-ENOENT);
	lv = kzalloc(sizeof(*lv), GFP_KERNEL);
	if (!lv)
		return ERR_PTR(-ENOMEM);
	err = read_vq(ld, index, lv, &num, &size);
	if (err)
		goto free;
	lv->ring = memremap((phys_addr_t)lv->pfn << LGUEST_PAGE_SHIFT, size, MEMREMAP_WB);
	if (!lv->ring) {
		err = -ENOMEM;
		goto free;
	}
	vq = vring_new_virtqueue(index, num, LGUEST_VRING_ALIGN, &ld->vdev, true, ctx, lv->ring, lg_notify, callback, name);
	if (!vq) {
		err = -ENOMEM;
		goto unmap;
	}
	vq->priv = lv;
	vq->num_max = num;
	err = request_irq(lv->irq, vring_interrupt, IRQF_SHARED, dev_name(&ld->vdev.dev), vq);
	if (err) {
		dev_err(&ld->vdev.dev, "queue %u: interrupt %u: %d\n", index, lv->irq, err);
		del_vq(vq);
		return ERR_PTR(err);
	}
	lv->irq_taken = true;
	return vq;
unmap:
	memunmap(lv->ring);
free:
	kfree(lv);
	return ERR_PTR(err);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
static int lg_find_vqs(struct virtio_device *vdev, unsigned int nvqs, struct virtqueue *vqs[], struct virtqueue_info info[],
		       struct irq_affinity *desc)
{
#define VQ_NAME(i) (info[i].name)
#define VQ_CALLBACK(i) (info[i].callback)
#define VQ_CTX(i) (info[i].ctx)
#else
static int lg_find_vqs(struct virtio_device *vdev, unsigned int nvqs, struct virtqueue *vqs[], vq_callback_t *callbacks[],
		       const char *const names[], const bool *ctx, struct irq_affinity *desc)
{
#define VQ_NAME(i) (names[i])
#define VQ_CALLBACK(i) (callbacks[i])
#define VQ_CTX(i) (ctx ? ctx[i] : false)
#endif
	unsigned int i, index = 0;

	for (i = 0; i < nvqs; i++) {
		if (!VQ_NAME(i)) {
			vqs[i] = NULL;
			continue;
		}
		vqs[i] = setup_vq(to_lguest(vdev), index++, VQ_CALLBACK(i), VQ_NAME(i), VQ_CTX(i));
		if (IS_ERR(vqs[i])) {
			int err = PTR_ERR(vqs[i]);

			lg_del_vqs(vdev);
			return err;
		}
	}
	return 0;
}

static const char *lg_bus_name(struct virtio_device *vdev)
{
	return "lguest";
}

static const struct virtio_config_ops lguest_config_ops = {
	.get = lg_get,
	.set = lg_set,
	.get_status = lg_get_status,
	.set_status = lg_set_status,
	.reset = lg_reset,
	.find_vqs = lg_find_vqs,
	.del_vqs = lg_del_vqs,
	.synchronize_cbs = lg_synchronize_cbs,
	.get_features = lg_get_features,
	.finalize_features = lg_finalize_features,
	.bus_name = lg_bus_name,
};

static void release_device(struct device *dev)
{
	kfree(to_lguest(dev_to_virtio(dev)));
}

int lguest_add_device(struct lguest_bus *bus, unsigned int offset, u8 type, u8 num_vq, u8 feature_len, u8 config_len)
{
	struct lguest_device *ld = kzalloc(sizeof(*ld), GFP_KERNEL);
	int err;

	if (!ld)
		return -ENOMEM;
	ld->bus = bus;
	ld->record = bus->mem + offset;
	ld->offset = offset;
	ld->num_vq = num_vq;
	ld->feature_len = feature_len;
	ld->config_len = config_len;
	ld->vdev.dev.parent = &bus->pdev->dev;
	ld->vdev.dev.release = release_device;
	ld->vdev.config = &lguest_config_ops;
	ld->vdev.id.device = type;
	memcpy(ld->seen, config_space(ld), config_len);
	list_add_tail(&ld->list, &bus->devices);
	err = register_virtio_device(&ld->vdev);
	if (err) {
		list_del(&ld->list);
		put_device(&ld->vdev.dev); /* frees it */
	}
	return err;
}

void lguest_remove_device(struct lguest_device *ld)
{
	list_del(&ld->list);
	unregister_virtio_device(&ld->vdev);
}

void lguest_poll_config(struct lguest_device *ld)
{
	if (!READ_ONCE(ld->configured) || !memcmp(ld->seen, config_space(ld), ld->config_len))
		return;
	memcpy(ld->seen, config_space(ld), ld->config_len);
	virtio_config_changed(&ld->vdev);
}
