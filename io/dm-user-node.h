/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The device-mapper device of an export: how it is made and removed. See dm-user-node.c. All of this blocks, and knows
 * nothing of the loop.
 */
#ifndef IO_DM_USER_NODE_H
#define IO_DM_USER_NODE_H

#include "io/device-mapper.h"

#define DM_USER_CHANNELS_MAX 4u

struct dm_user_node {
	int control; /* device_mapper_open()'s; the owner's */
	char name[DEVICE_MAPPER_NAME_BYTES];
	char uuid[DEVICE_MAPPER_UUID_BYTES];
	uint64_t sectors; /* of 512 bytes */
	bool read_only;
	unsigned channel_count; /* to be opened, 1 to DM_USER_CHANNELS_MAX */

	/* Filled in when it is made. */
	dev_t device;
	int channels[DM_USER_CHANNELS_MAX]; /* of /dev/dm-user/NAME: the caller's from then on */
	bool linked;                        /* /dev/mapper/NAME is ours to remove */
};

/*
 * Names the node: for an export "origin" as `name`, for another as `name`-EXPORT. The names are to fit: `name` has at
 * most DM_USER_NAME_LENGTH_MAX characters, an export's at most 63.
 */
void dm_user_node_init(struct dm_user_node *node, int control, const char *name, const char *export_name);

/*
 * Makes the device, so that it is there to be opened as /dev/mapper/NAME and its channels are open. Takes at most some
 * seconds. Returns 0; -EBUSY: the name is taken; -ETIMEDOUT: /dev/dm-user/NAME did not appear; or what the kernel said.
 * Then nothing is left of it.
 */
__attribute__((warn_unused_result)) int dm_user_node_create(struct dm_user_node *node);

/*
 * Removes the device. It has to be served until this returns. -EBUSY: somebody has it open; his requests fail from now
 * on, no channel needs to stay, and it goes when he closes it. Any other error: it is as it was.
 */
__attribute__((warn_unused_result)) int dm_user_node_remove(struct dm_user_node *node);

/* Whether somebody has it open. Does not wait for I/O. */
bool dm_user_node_is_open(const struct dm_user_node *node);

/*
 * Removes the devices that a killed server of that name left. Returns 0, or for the device that is then named in
 * `failed`: -EBUSY: it is still open; -EALREADY: another server serves it; or what the kernel said.
 */
__attribute__((warn_unused_result)) int dm_user_nodes_clear(int control, const char *name,
							    char failed[static DEVICE_MAPPER_NAME_BYTES]);

#endif
