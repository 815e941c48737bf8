/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The device mapper's ioctls, as far as we need them. libdevmapper would do this, but Debian has no static archive of
 * it, and ours is one static program; the interface is small and has been stable for twenty years.
 *
 * A call is one piece of memory, struct dm_ioctl first, what it says about itself (sizes, offsets) filled in, then its
 * data; the kernel answers in the same memory:
 *
 *	dm_ioctl │ data: a table (dm_target_spec, then its arguments), or the answer's list
 *	^ 0      ^ data_start                                       data_size ^
 *
 * What the kernel answers is read within the memory's bounds only. Where the answer did not fit it is asked for again
 * with more memory, up to ANSWER_BYTES_MAX.
 */
#include "io/device-mapper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define ANSWER_BYTES ((size_t)16 << 10)
#define ANSWER_BYTES_MAX ((size_t)4 << 20)
#define TABLE_BYTES 1024u

_Static_assert(DEVICE_MAPPER_NAME_BYTES == DM_NAME_LEN && DEVICE_MAPPER_UUID_BYTES == DM_UUID_LEN &&
		       DEVICE_MAPPER_TARGET_BYTES == DM_MAX_TYPE_NAME,
	       "as the kernel has them");

/* Fits the alignment of all that may lie in it. */
static struct dm_ioctl *call_init(void *memory, size_t bytes, const char *name, const char *uuid)
{
	struct dm_ioctl *call = memory;

	memset(memory, 0, bytes);
	call->version[0] = DM_VERSION_MAJOR; /* and minor 0: the oldest that has what we use, which the kernel can do */
	call->data_size = (uint32_t)bytes;
	call->data_start = sizeof(*call);
	if (name)
		memcpy(call->name, name, strnlen(name, sizeof(call->name) - 1));
	if (uuid)
		memcpy(call->uuid, uuid, strnlen(uuid, sizeof(call->uuid) - 1));
	return call;
}

static int call_kernel(int control, unsigned long command, struct dm_ioctl *call)
{
	int result;

	do
		result = ioctl(control, command, call);
	while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : 0;
}

/* A call without data, for the device of that UUID. */
static int call_simple(int control, unsigned long command, const char *uuid, uint32_t flags)
{
	struct dm_ioctl memory;
	struct dm_ioctl *call = call_init(&memory, sizeof(memory), NULL, uuid);

	call->flags = flags;
	return call_kernel(control, command, call);
}

int device_mapper_open(void)
{
	struct dm_ioctl memory;
	int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	int error;

	if (control < 0)
		return errno == ENXIO || errno == ENODEV ? -ENOENT : -errno;
	error = call_kernel(control, DM_VERSION, call_init(&memory, sizeof(memory), NULL, NULL));
	if (error == 0)
		return control;
	(void)close(control);
	return error == -EINVAL ? -EPROTONOSUPPORT : error;
}

/*
 * Asks for a list; *answer is the caller's to free. The answer's data lie in [*data, *end).
 */
static int call_for_list(int control, unsigned long command, struct dm_ioctl **answer, const char **data,
			 const char **end)
{
	for (size_t bytes = ANSWER_BYTES; bytes <= ANSWER_BYTES_MAX; bytes *= 4) {
		struct dm_ioctl *call = malloc(bytes);
		int error;

		if (!call)
			return -ENOMEM;
		error = call_kernel(control, command, call_init(call, bytes, NULL, NULL));
		if (error == 0 && !(call->flags & DM_BUFFER_FULL_FLAG)) {
			size_t start = call->data_start < bytes ? call->data_start : bytes;
			size_t size = call->data_size < bytes ? call->data_size : bytes;

			*answer = call;
			*data = (const char *)call + start;
			*end = (const char *)call + (size > start ? size : start);
			return 0;
		}
		free(call);
		if (error != 0)
			return error;
	}
	return -E2BIG;
}

/*
 * A list's record is at `record`, its name `name_offset` after it, and `next` (0: it is the last) leads to the one
 * after it. Returns the name; NULL when it does not end before `end`.
 */
static const char *record_name(const char *record, const char *end, size_t name_offset)
{
	const char *name;

	if ((size_t)(end - record) <= name_offset)
		return NULL;
	name = record + name_offset;
	return memchr(name, '\0', (size_t)(end - name)) ? name : NULL;
}

/* The record after this one, NULL when there is none. Each lies after the one before it, so this ends. */
static const char *record_next(const char *record, const char *end, uint32_t next)
{
	return next == 0 || next >= (size_t)(end - record) ? NULL : record + next;
}

static int target_is_listed(int control, const char *target)
{
	struct dm_ioctl *answer = NULL;
	const char *record, *end, *name;
	int error = call_for_list(control, DM_LIST_VERSIONS, &answer, &record, &end);
	int found = 0;

	if (error != 0)
		return error;
	while (found == 0 && record && (name = record_name(record, end, offsetof(struct dm_target_versions, name))) != NULL) {
		uint32_t next;

		found = strcmp(name, target) == 0;
		memcpy(&next, record + offsetof(struct dm_target_versions, next), sizeof(next));
		record = record_next(record, end, next);
	}
	free(answer);
	return found;
}

int device_mapper_has_target(int control, const char *target)
{
	uint64_t memory[(sizeof(struct dm_ioctl) + 256) / sizeof(uint64_t)];
	int listed = target_is_listed(control, target);

	if (listed != 0)
		return listed;
	/* Asking for one by name loads its module. Older kernels have no such call (and load it with the table). */
	return call_kernel(control, DM_GET_TARGET_VERSION, call_init(memory, sizeof(memory), target, NULL)) == 0;
}

/* In `dev` the kernel puts the major number at bit 8, the minor number's low 8 bits at 0 and the others at 20. */
static dev_t device_number(const struct dm_ioctl *call)
{
	return makedev((unsigned)(call->dev >> 8) & 0xfff,
		       (unsigned)(call->dev & 0xff) | ((unsigned)(call->dev >> 12) & 0xfff00));
}

int device_mapper_create(int control, const char *name, const char *uuid, dev_t *device)
{
	struct dm_ioctl memory;
	struct dm_ioctl *call = call_init(&memory, sizeof(memory), name, uuid);
	int error = call_kernel(control, DM_DEV_CREATE, call);

	*device = device_number(call);
	return error;
}

int device_mapper_load(int control, const char *uuid, uint64_t sectors, const char *target, const char *arguments,
		       bool read_only)
{
	uint64_t memory[(sizeof(struct dm_ioctl) + TABLE_BYTES) / sizeof(uint64_t)];
	struct dm_ioctl *call = call_init(memory, sizeof(memory), NULL, uuid);
	struct dm_target_spec spec = { .length = sectors, .next = TABLE_BYTES };
	char *at = (char *)memory + call->data_start;
	size_t argument_bytes = strlen(arguments);

	if (strlen(target) >= sizeof(spec.target_type) || argument_bytes >= TABLE_BYTES - sizeof(spec))
		return -EINVAL;
	(void)snprintf(spec.target_type, sizeof(spec.target_type), "%s", target);
	memcpy(at, &spec, sizeof(spec));
	memcpy(at + sizeof(spec), arguments, argument_bytes + 1);
	call->target_count = 1;
	call->flags = read_only ? DM_READONLY_FLAG : 0;
	return call_kernel(control, DM_TABLE_LOAD, call);
}

int device_mapper_resume(int control, const char *uuid)
{
	return call_simple(control, DM_DEV_SUSPEND, uuid, 0);
}

int device_mapper_suspend(int control, const char *uuid)
{
	return call_simple(control, DM_DEV_SUSPEND, uuid, DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG);
}

int device_mapper_remove(int control, const char *uuid, bool deferred)
{
	return call_simple(control, DM_DEV_REMOVE, uuid, deferred ? DM_DEFERRED_REMOVE : 0);
}

int device_mapper_status(int control, const char *name, const char *uuid, struct device_mapper_status *status)
{
	uint64_t memory[(sizeof(struct dm_ioctl) + TABLE_BYTES) / sizeof(uint64_t)];
	struct dm_ioctl *call = call_init(memory, sizeof(memory), name, name ? NULL : uuid);
	struct dm_target_spec spec;
	int error;

	call->flags = DM_STATUS_TABLE_FLAG | DM_NOFLUSH_FLAG;
	error = call_kernel(control, DM_TABLE_STATUS, call);
	if (error != 0)
		return error;
	memset(status, 0, sizeof(*status));
	status->device = device_number(call);
	status->open_count = call->open_count > 0 ? (unsigned)call->open_count : 0;
	memcpy(status->uuid, call->uuid, sizeof(status->uuid) - 1);
	if (call->target_count == 0 || call->data_start > sizeof(memory) - sizeof(spec))
		return 0;
	memcpy(&spec, (const char *)memory + call->data_start, sizeof(spec));
	memcpy(status->target, spec.target_type, sizeof(status->target) - 1);
	return 0;
}

int device_mapper_list(int control, void (*found)(const char *name, void *context), void *context)
{
	struct dm_ioctl *answer = NULL;
	const char *record, *end, *name;
	int error = call_for_list(control, DM_LIST_DEVICES, &answer, &record, &end);

	if (error != 0)
		return error;
	while (record && (name = record_name(record, end, offsetof(struct dm_name_list, name))) != NULL) {
		uint32_t next;

		/* An empty list is one record that names no device. */
		if (name[0] != '\0')
			found(name, context);
		memcpy(&next, record + offsetof(struct dm_name_list, next), sizeof(next));
		record = record_next(record, end, next);
	}
	free(answer);
	return 0;
}
