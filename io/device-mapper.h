/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Device-mapper devices, by the kernel's ioctl interface. See device-mapper.c.
 *
 * A device has a name and, set once at its creation, a UUID: a text that no other device has. It is found again by the
 * UUID, so a device that somebody else has made under the same name is never mistaken for ours. All return 0 or a
 * negative errno; -ENXIO: there is no such device.
 */
#ifndef IO_DEVICE_MAPPER_H
#define IO_DEVICE_MAPPER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* With the NUL. */
#define DEVICE_MAPPER_NAME_BYTES 128u
#define DEVICE_MAPPER_UUID_BYTES 129u
#define DEVICE_MAPPER_TARGET_BYTES 16u

#define DEVICE_MAPPER_SECTOR_BYTES 512u

struct device_mapper_status {
	dev_t device;
	unsigned open_count; /* mounts, openers and devices above it */
	char uuid[DEVICE_MAPPER_UUID_BYTES];
	char target[DEVICE_MAPPER_TARGET_BYTES]; /* of the table in use, its first; empty: there is no table */
};

/*
 * The descriptor that all others take; the caller's. It may be used from several threads. -ENOENT: this kernel has no
 * device mapper; -EACCES, -EPERM: needs root; -EPROTONOSUPPORT: of another major version.
 */
__attribute__((warn_unused_result)) int device_mapper_open(void);

/* Whether the kernel has this kind of target; its module is loaded. 1, 0 or a negative errno. */
__attribute__((warn_unused_result)) int device_mapper_has_target(int control, const char *target);

/* A device without a table. -EBUSY: its name, or its UUID, is taken. */
__attribute__((warn_unused_result)) int device_mapper_create(int control, const char *name, const char *uuid,
							     dev_t *device);

/* Loads a table of one target. It takes the place of the one in use with the next resume. */
__attribute__((warn_unused_result)) int device_mapper_load(int control, const char *uuid, uint64_t sectors,
							   const char *target, const char *arguments, bool read_only);

__attribute__((warn_unused_result)) int device_mapper_resume(int control, const char *uuid);

/* Waits until no request is with the target; those that come are held until the device is resumed. Blocks. */
__attribute__((warn_unused_result)) int device_mapper_suspend(int control, const char *uuid);

/*
 * Removes the device. -EBUSY: somebody has it open; with `deferred` it is removed when the last one closes it, and that
 * counts as done. Blocks while the kernel ends what is under way.
 */
__attribute__((warn_unused_result)) int device_mapper_remove(int control, const char *uuid, bool deferred);

/* By name, or by UUID where `name` is NULL. Never waits for I/O. */
__attribute__((warn_unused_result)) int device_mapper_status(int control, const char *name, const char *uuid,
							     struct device_mapper_status *status);

/* Calls found() for each device there is. It may remove devices. */
__attribute__((warn_unused_result)) int device_mapper_list(int control,
							   void (*found)(const char *name, void *context),
							   void *context);

#endif
