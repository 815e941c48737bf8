/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Giving the newest snapshot's store more room, while requests are served.
 *
 *   a size      the limit of the store, or of the part joined last, is raised in its superblock. A device is measured first:
 *               it may have grown.
 *   a store     an empty one is joined to it, as a part that stands by (parts.c):
 *                 join     its superblock says whose part it is, durable; its path is in the record
 *                 name     the main superblock names it, durable                               <== commit point
 *
 * A crash before the commit point leaves an empty store that says it is a part, and no store names: the next start makes it
 * empty again. A failure of unknown outcome is resolved by writing the old state once more; where that fails too, the next
 * start decides. In any case the log turns to the part only once it is named, durably (log.c).
 * A commit that waits for room goes on at once.
 */
#include <assert.h>
#include <errno.h>

#include "core/engine.h"
#include "io/log.h"

/* Ends the operation: why is `text`, and the detail's message unless that is 0. The new part, if any, is closed. */
static void extend_fail(struct volume *volume, int error, const char *text, int detail)
{
	struct operation *operation = volume->operation;
	const char *what = operation->store_path != NULL ? operation->store_path : operation->name;

	if (operation->complaint.why[0] == '\0' && detail != 0)
		complaint_set(&operation->complaint, what, "%s: %s", text, strerror(-detail));
	else if (operation->complaint.why[0] == '\0')
		complaint_set(&operation->complaint, what, "%s", text);
	store_close(operation->store);
	operation->store = NULL;
	operation_end(volume, error);
}

static void extended(struct volume *volume)
{
	warn_look_again(volume);
	operation_end(volume, 0);
	broken_retry(volume);
}

/* ---- a size ---- */

/* The store itself, or the part that was joined last. */
static struct store *part_to_grow(const struct volume *volume)
{
	const struct store *store = volume->operation->snapshot->store;

	return store_part(store, store_part_count(store) - 1);
}

static void grown(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error != 0)
		extend_fail(volume, error, "its store's superblock cannot be written", error);
	else
		extended(volume);
}

static void apply_limit(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	superblock->limit_bytes = volume->operation->size_bytes;
}

/* A device that has no limit of its own, and is to be used whole, needs none. */
static void measured(struct disk_io *io, int error)
{
	struct volume *volume = io->context;
	struct operation *operation = volume->operation;
	struct store *part = part_to_grow(volume);
	struct disk_info info;

	store_unpin(operation->snapshot->store);
	disk_get_info(part->disk, &info);
	if (error != 0) {
		extend_fail(volume, error, "its store's size cannot be found out", error);
	} else if (info.is_device && operation->size_bytes > info.size_bytes) {
		complaint_set(&operation->complaint, part->path, "the device has %llu bytes, less than --size",
			      (unsigned long long)info.size_bytes);
		extend_fail(volume, -EINVAL, "", 0);
	} else if (info.is_device && operation->size_bytes == info.size_bytes && part->superblock.limit_bytes == 0) {
		extended(volume);
	} else {
		operation_update_store(volume, part, apply_limit, grown);
	}
}

static void grow(struct volume *volume)
{
	struct operation *operation = volume->operation;
	struct store *store = operation->snapshot->store, *part = part_to_grow(volume);
	uint32_t index = store_part_count(store) - 1;
	uint64_t limit = store_part_limit_bytes(store, index);

	if (limit == 0)
		complaint_set(&operation->complaint, part->path, "has no limit: it grows as long as its file system has room");
	else if (operation->size_bytes < limit)
		complaint_set(&operation->complaint, part->path, "has %llu bytes already: a store cannot be made smaller",
			      (unsigned long long)limit);
	if (operation->complaint.why[0] != '\0') {
		extend_fail(volume, -EINVAL, "", 0);
		return;
	}
	store_pin(store);
	volume->operation_io = (struct disk_io){
		.disk = part->disk, .op = DISK_MEASURE, .done = measured, .context = volume
	};
	disk_submit(&volume->operation_io);
}

/* ---- a store ---- */

static void part_emptied(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	(void)error; /* a start with its chain makes it empty, and `format --force` can have it */
	extend_fail(volume, -EIO, "", 0);
}

static void apply_nothing(struct superblock *superblock, void *context)
{
	(void)superblock;
	(void)context;
}

/* What the main superblock says on disk is known again: that there is no such part. Or it is not. */
static void unnamed(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct operation *operation = volume->operation;

	complaint_set(&operation->complaint, operation->snapshot->store->path,
		      error == 0 ? "its superblock cannot be written" :
				   "its superblock cannot be written: whether the part was joined is unknown, the next start finds out");
	if (error != 0) {
		extend_fail(volume, -EIO, "", 0);
		return;
	}
	record_remove_part(volume->record, &operation->store->superblock.store_uuid);
	record_save_or_warn(volume);
	operation_update_store(volume, operation->store, superblock_make_empty, part_emptied);
}

static void named(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct operation *operation = volume->operation;
	struct store *store = operation->snapshot->store;

	if (error != 0) {
		store->parts[store->superblock.part_count] = NULL;
		operation_update_store(volume, store, apply_nothing, unnamed);
		return;
	}
	operation->store = NULL; /* the main's own now */
	log_notice("store %s: %s is joined to it", store->path, operation->store_path);
	extended(volume);
}

static void apply_named(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	superblock->parts[superblock->part_count++] = (struct part){
		.uuid = volume->operation->store->superblock.store_uuid,
		.first_area = PART_AREA_NONE,
	};
}

static void joined(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct operation *operation = volume->operation;
	struct store *store = operation->snapshot->store;

	if (error != 0) {
		complaint_set(&operation->complaint, operation->store_path, "cannot be written: %s", strerror(-error));
		operation_update_store(volume, operation->store, superblock_make_empty, part_emptied);
		return;
	}
	/* Before the commit point: from there on a start needs its path. */
	error = record_add_part(volume->record, &store->superblock.store_uuid,
				&operation->store->superblock.store_uuid, operation->store_path);
	if (error != 0) {
		complaint_set(&operation->complaint, operation->store_path, "cannot be remembered: %s", strerror(-error));
		operation_update_store(volume, operation->store, superblock_make_empty, part_emptied);
		return;
	}
	record_save_or_warn(volume);
	store->parts[store->superblock.part_count] = operation->store;
	operation_update_store(volume, store, apply_named, named);
}

static void apply_joined(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;
	const struct superblock *main = &volume->operation->snapshot->store->superblock;

	superblock->role = ROLE_PART;
	superblock->state = STATE_JOINED;
	superblock->volume_uuid = main->volume_uuid;
	superblock->main_uuid = main->store_uuid;
	superblock->part_index = main->part_count + 1;
	superblock->sequence = main->sequence;
	memcpy(superblock->name, main->name, sizeof(superblock->name));
	superblock->origin_bytes = main->origin_bytes;
	superblock->created_ns = disk_host_wall_ns(volume->host);
	superblock->geometry = main->geometry;
}

static bool is_unsuitable(struct volume *volume, const struct store *part)
{
	struct complaint *complaint = &volume->operation->complaint;
	const struct superblock *superblock = &part->superblock;
	/* It gets the areas of the store it is joined to, which may be larger. */
	const struct geometry *geometry = &volume->operation->snapshot->store->superblock.geometry;
	uint64_t limit = store_limit_bytes(part);

	if (superblock->state != STATE_EMPTY)
		complaint_set(complaint, part->path, "is not empty: it holds %s %s (drop that first, or format the store anew with --force)",
			      superblock->role == ROLE_PART ? "a part of snapshot" : "snapshot", superblock->name);
	else if ((superblock->ro_compat & ~FEATURES_RO_COMPAT) != 0)
		complaint_set(complaint, part->path, "was made by a newer rowsnap and can be read, but not written");
	else if (superblock->geometry.block_bytes != volume->block_bytes)
		complaint_set(complaint, part->path,
			      "has blocks of %u bytes, the volume has %u: format it with --block-size=%u",
			      superblock->geometry.block_bytes, volume->block_bytes, volume->block_bytes);
	else if (geometry_slots(geometry, limit == 0 ? UINT64_MAX : limit) < geometry->slots_per_area)
		complaint_set(complaint, part->path, "is too small: it has no room for a single area");
	return complaint->why[0] != '\0';
}

static void loaded(struct store_load *load, int error)
{
	struct volume *volume = load->context;
	struct store *part = volume->operation->store;

	if (error == -ENODATA)
		extend_fail(volume, error, "is not a rowsnap store: make it one with 'rowsnap format'", 0);
	else if (error != 0)
		extend_fail(volume, error, load->why != NULL ? load->why : "its superblock cannot be read",
			    load->why != NULL ? 0 : error);
	else if (is_unsuitable(volume, part))
		extend_fail(volume, -EINVAL, "", 0);
	else
		operation_update_store(volume, part, apply_joined, joined);
}

static void join(struct volume *volume)
{
	struct operation *operation = volume->operation;
	struct disk_info info;
	int error;

	if (store_part_count(operation->snapshot->store) == STORE_PARTS_MAX) {
		complaint_set(&operation->complaint, operation->snapshot->store->path,
			      "lies in %u stores already, which is the most", STORE_PARTS_MAX);
		extend_fail(volume, -EINVAL, "", 0);
		return;
	}
	error = store_open(volume->host, operation->store_path, DISK_OPEN_LOCK, &operation->store);
	if (error != 0) {
		operation_complain_open(volume, error);
		extend_fail(volume, error, "", 0);
		return;
	}
	disk_get_info(operation->store->disk, &info);
	if (disk_is_same(operation->store->disk, volume->origin) || info.read_only) {
		extend_fail(volume, -EINVAL, info.read_only ? "is read-only" : "is the origin itself", 0);
		return;
	}
	volume->operation_load = (struct store_load){ .done = loaded, .context = volume };
	store_load_start(operation->store, &volume->operation_load);
}

/* ---- the start ---- */

static bool is_refused(struct volume *volume, struct operation *operation)
{
	struct complaint *complaint = &operation->complaint;
	const struct snapshot *newest = volume->chain_count == 0 ? NULL : volume->chain[volume->chain_count - 1];
	const char *name = operation->name;

	if (operation->store_path == NULL && operation->size_bytes == 0)
		complaint_set(complaint, name, "out of memory");
	else if (operation->snapshot == NULL && volume_name_is_absent(volume, name))
		complaint_set(complaint, name, "its store is not here, and takes no exceptions");
	else if (operation->snapshot == NULL || newest == NULL)
		complaint_set(complaint, name, "no such snapshot");
	else if (operation->snapshot != newest)
		complaint_set(complaint, name, "is not the newest snapshot, which is %s: only that one's store takes exceptions",
			      newest->store->superblock.name);
	else if (fold_is_newest(volume) || operation->snapshot->dropping)
		complaint_set(complaint, name, "is being dropped");
	else if (volume_is_broken(volume))
		complaint_set(complaint, name,
			      "is broken (%s): no room brings back what was not preserved (take a new snapshot, and drop this one)",
			      broken_reason_text(newest->store->superblock.broken.reason));
	return complaint->why[0] != '\0';
}

void extend_start(struct volume *volume, struct operation *operation)
{
	operation->snapshot = volume_find(volume, operation->name, NULL);
	if (is_refused(volume, operation))
		extend_fail(volume, operation->snapshot == NULL ? -ENOENT : -EINVAL, "", 0);
	else if (operation->store_path != NULL)
		join(volume);
	else
		grow(volume);
}
