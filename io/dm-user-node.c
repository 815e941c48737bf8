/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Making and removing dm-user's devices.
 *
 *	create ──> load the table ──> open the channels ──> resume ──> limits ──> /dev/mapper/NAME
 *	           /dev/dm-user/NAME appears                └─ requests may come
 *
 * Ours are known by their UUID, "ROWSNAP-NAME:EXPORT" (no name has a colon in it): only such a device is ever touched.
 * A server has its device's first channel locked (flock), so a device without a locked channel was left by a killed one.
 *
 * A device that is open can't be removed. Then its table is replaced by one that fails every request, and the kernel is
 * told to remove it at the last close: so no request waits for a server that is not there any more, whatever the
 * version of the kernel. Replacing waits until the requests under way have been answered.
 *
 * Limits. The target sets none. Requests are asked to be small, as far as the kernel heeds that, and discards not to
 * come: some versions of the target mishandle them.
 *
 * /dev/mapper/NAME is made by udev. Where there is none we make it.
 */
#include "io/dm-user-node.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "io/cleanup.h"
#include "io/log.h"

#define UUID_PREFIX "ROWSNAP-"
#define TARGET "user"
#define PATH_BYTES (DEVICE_MAPPER_NAME_BYTES + 32)
#define TRY_AGAIN_NS 10000000
#define APPEAR_TRIES 300 /* udev may be busy */
#define REMOVE_TRIES 30  /* udev looks at new devices, and has them open meanwhile */

static void pause_shortly(void)
{
	const struct timespec pause = { .tv_nsec = TRY_AGAIN_NS };

	(void)nanosleep(&pause, NULL);
}

void dm_user_node_init(struct dm_user_node *node, int control, const char *name, const char *export_name)
{
	bool is_origin = strcmp(export_name, "origin") == 0;
	int name_bytes, uuid_bytes;

	*node = (struct dm_user_node){ .control = control };
	name_bytes = snprintf(node->name, sizeof(node->name), "%s%s%s", name, is_origin ? "" : "-",
			      is_origin ? "" : export_name);
	uuid_bytes = snprintf(node->uuid, sizeof(node->uuid), UUID_PREFIX "%s:%s", name, export_name);
	assert(name_bytes > 0 && (size_t)name_bytes < sizeof(node->name));
	assert(uuid_bytes > 0 && (size_t)uuid_bytes < sizeof(node->uuid));
	for (unsigned i = 0; i < DM_USER_CHANNELS_MAX; i++)
		node->channels[i] = -1;
}

/* ---- /dev/mapper/NAME, and what lies in /sys ---- */

static bool has_udev(void)
{
	return access("/run/udev/control", F_OK) == 0;
}

/* Whether /dev/mapper/NAME leads to the device. */
static bool link_is_right(const char *path, dev_t device)
{
	char target[PATH_BYTES], wanted[PATH_BYTES];
	ssize_t bytes = readlink(path, target, sizeof(target) - 1);

	if (bytes <= 0)
		return false;
	target[bytes] = '\0';
	(void)snprintf(wanted, sizeof(wanted), "../dm-%u", minor(device));
	return strcmp(target, wanted) == 0;
}

static void link_create(struct dm_user_node *node)
{
	char path[PATH_BYTES], target[PATH_BYTES];
	int tries = has_udev() ? APPEAR_TRIES : 0;

	(void)snprintf(path, sizeof(path), "/dev/mapper/%s", node->name);
	(void)snprintf(target, sizeof(target), "../dm-%u", minor(node->device));
	for (; tries > 0; tries--) {
		if (link_is_right(path, node->device))
			return;
		pause_shortly();
	}
	(void)unlink(path); /* of a device that is gone: the name is ours now */
	node->linked = symlink(target, path) == 0;
	if (!node->linked)
		log_warning("dm-user: '%s' cannot be made: %s", path, strerror(errno));
}

static void link_remove(const char *name, dev_t device)
{
	char path[PATH_BYTES];

	(void)snprintf(path, sizeof(path), "/dev/mapper/%s", name);
	if (link_is_right(path, device))
		(void)unlink(path);
}

/* Fails where the kernel has no such limit, or another idea of it: then it stays as it is. */
static void limit_set(const struct dm_user_node *node, const char *limit, const char *value)
{
	char path[PATH_BYTES];
	auto_close int fd = -1;
	ssize_t written;

	(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/queue/%s", major(node->device), minor(node->device),
		       limit);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	written = write(fd, value, strlen(value));
	(void)written;
}

/* ---- making ---- */

/* /dev/dm-user/NAME comes with the table, made by the kernel or by udev. */
static int channel_open(const char *name)
{
	char path[PATH_BYTES];

	(void)snprintf(path, sizeof(path), "/dev/dm-user/%s", name);
	for (int i = 0; i < APPEAR_TRIES; i++) {
		int fd = open(path, O_RDWR | O_CLOEXEC);

		if (fd >= 0)
			return fd;
		if (errno != ENOENT && errno != EINTR)
			return -errno;
		pause_shortly();
	}
	return -ETIMEDOUT;
}

static int channels_open(struct dm_user_node *node)
{
	for (unsigned i = 0; i < node->channel_count; i++) {
		int fd = channel_open(node->name);

		if (fd < 0)
			return fd;
		node->channels[i] = fd;
		if (i == 0 && flock(fd, LOCK_EX | LOCK_NB) != 0)
			return -errno;
	}
	return 0;
}

static void channels_close(struct dm_user_node *node)
{
	for (unsigned i = 0; i < node->channel_count; i++) {
		if (node->channels[i] >= 0)
			(void)close(node->channels[i]);
		node->channels[i] = -1;
	}
}

int dm_user_node_create(struct dm_user_node *node)
{
	char arguments[PATH_BYTES];
	int error;

	assert(node->channel_count > 0 && node->channel_count <= DM_USER_CHANNELS_MAX);
	error = device_mapper_create(node->control, node->name, node->uuid, &node->device);
	if (error != 0)
		return error;
	(void)snprintf(arguments, sizeof(arguments), "0 %llu %s", (unsigned long long)node->sectors, node->name);
	error = device_mapper_load(node->control, node->uuid, node->sectors, TARGET, arguments, node->read_only);
	if (error == 0)
		error = channels_open(node);
	if (error == 0)
		error = device_mapper_resume(node->control, node->uuid);
	if (error != 0) {
		channels_close(node);
		if (device_mapper_remove(node->control, node->uuid, true) != 0)
			log_warning("dm-user: the device '%s' is left, not usable: remove it", node->name);
		return error;
	}
	limit_set(node, "max_sectors_kb", "1024");
	limit_set(node, "discard_max_bytes", "0");
	link_create(node);
	return 0;
}

/* ---- removing ---- */

/* Returns -EBUSY when that went well. */
static int fail_from_now_on(const struct dm_user_node *node)
{
	int error = device_mapper_load(node->control, node->uuid, node->sectors, "error", "", node->read_only);

	if (error == 0)
		error = device_mapper_suspend(node->control, node->uuid);
	if (error == 0)
		error = device_mapper_resume(node->control, node->uuid);
	if (error == 0)
		error = device_mapper_remove(node->control, node->uuid, true);
	return error == 0 ? -EBUSY : error;
}

int dm_user_node_remove(struct dm_user_node *node)
{
	int error = -EBUSY;

	for (int i = 0; i < REMOVE_TRIES && error == -EBUSY; i++) {
		if (i > 0)
			pause_shortly();
		error = device_mapper_remove(node->control, node->uuid, false);
	}
	if (error == -EBUSY)
		error = fail_from_now_on(node);
	if (error == -ENXIO)
		error = 0; /* somebody else has removed it, or it was closed meanwhile */
	if ((error == 0 || error == -EBUSY) && node->linked)
		link_remove(node->name, node->device);
	return error;
}

bool dm_user_node_is_open(const struct dm_user_node *node)
{
	struct device_mapper_status status;

	return device_mapper_status(node->control, NULL, node->uuid, &status) == 0 && status.open_count > 0;
}

/* ---- what a killed server left ---- */

struct clearing {
	int control;
	const char *name; /* of the server's devices */
	char *failed;
	int error;
};

static bool is_ours(const struct device_mapper_status *status, const char *name)
{
	size_t prefix = strlen(UUID_PREFIX), length = strlen(name);

	return strncmp(status->uuid, UUID_PREFIX, prefix) == 0 &&
	       strncmp(status->uuid + prefix, name, length) == 0 && status->uuid[prefix + length] == ':';
}

/* Whether a process serves it. A channel more, closed at once, does no harm. */
static bool is_served(const char *name)
{
	char path[PATH_BYTES];
	auto_close int fd = -1;

	(void)snprintf(path, sizeof(path), "/dev/dm-user/%s", name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

static void found(const char *name, void *context)
{
	struct clearing *clearing = context;
	struct device_mapper_status status;
	int error;

	if (clearing->error != 0)
		return;
	error = device_mapper_status(clearing->control, name, NULL, &status);
	if (error == -ENXIO || (error == 0 && !is_ours(&status, clearing->name)))
		return;
	if (error == 0 && is_served(name))
		error = -EALREADY;
	if (error == 0)
		error = device_mapper_remove(clearing->control, status.uuid, false);
	if (error == 0)
		link_remove(name, status.device);
	else if (error != -ENXIO) {
		clearing->error = error;
		(void)snprintf(clearing->failed, DEVICE_MAPPER_NAME_BYTES, "%s", name);
	}
}

int dm_user_nodes_clear(int control, const char *name, char failed[static DEVICE_MAPPER_NAME_BYTES])
{
	struct clearing clearing = { .control = control, .name = name, .failed = failed };
	int error = device_mapper_list(control, found, &clearing);

	return error != 0 ? error : clearing.error;
}
