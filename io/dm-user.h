/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Exports as block devices, by the device mapper's target dm-user. See dm-user.c. */
#ifndef IO_DM_USER_H
#define IO_DM_USER_H

#include <sys/types.h>

#include "io/arena.h"
#include "io/device-mapper.h"
#include "io/loop.h"
#include "io/request.h"
#include "io/transport.h"

/* A device's UUID holds this name and an export's. */
#define DM_USER_NAME_LENGTH_MAX 48u

/*
 * Makes a device for each export, and serves it:
 *	/dev/mapper/NAME          the origin
 *	/dev/mapper/NAME-EXPORT   every other; read-only where the export is
 * Those of exports that come later appear shortly after: dm_user_is_settled() tells when. A device of an export that
 * goes is removed; who has it open gets errors, and it is removed when he closes it. What a killed server of the same
 * name left is removed first. Needs root. Blocks, for some seconds at the worst.
 *
 * `name` has at most DM_USER_NAME_LENGTH_MAX characters out of A-Za-z0-9._-, and is not "control". Errors:
 *	-ENOENT the kernel has no device mapper, -EPROTONOSUPPORT another one, -ENODEV it has no target dm-user,
 *	-EACCES or -EPERM not root, -ENOMEM;
 * and for the device that is named in `failed` (empty otherwise):
 *	-EBUSY a device of that name is there, -EALREADY another server serves it, -EINVAL the export's size is not a
 *	multiple of 512, -ETIMEDOUT /dev/dm-user/NAME did not appear, and what the kernel said.
 *
 * Data buffers come from `arena`, which must be larger than REQUEST_DATA_BYTES_MAX. The loop, the table and the arena
 * must outlive the transport. While it serves, nothing on the loop's thread may wait for I/O on the devices.
 */
__attribute__((warn_unused_result)) int dm_user_start(struct loop *loop, struct export_table *exports,
						      struct arena *arena, const char *name,
						      char failed[static DEVICE_MAPPER_NAME_BYTES],
						      struct transport **transport);

/* The device's name, below /dev/mapper, that serves the export; NULL: none does. Valid until the next turn. */
const char *dm_user_device(const struct transport *transport, const struct export *export);

/* The name of a device that somebody has open (a mount does), or NULL: what is not written back yet would be lost. */
const char *dm_user_open_device(const struct transport *transport);

/* Whether it is the number of a device of ours: what lies on it can't be waited for. 0 is none. */
bool dm_user_owns(const struct transport *transport, dev_t device);

/* No device is being made. */
bool dm_user_is_settled(const struct transport *transport);

#endif
