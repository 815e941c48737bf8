/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Taking a snapshot. Atomic, by the order of steps; a crash before the commit point leaves the old chain, one after it the
 * new one:
 *
 *   open, load        the store must be empty and fit the volume
 *   prepare           its superblock names its predecessor (state "prepared"), durable; its path is in the record
 *   flush             most of the origin's dirty data, while writes still go on
 *   --- pause: no origin write is issued; what was issued and the open commit end ---
 *   flush             every write completed by now is in the snapshot, also after a power cut
 *   fingerprint       what the origin holds at this moment
 *   settle, seal      the old newest: its log's end, its successor      <== commit point (with a predecessor)
 *   --- pause ends: requests start again against the new snapshot, whose log may not commit yet ---
 *   activate          the new store is durably "active"                 <== commit point (without one; within the pause)
 *
 * A seal of unknown outcome keeps the pause: until it is known which state the old newest is in, nothing is written.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

static struct store *newest_store(const struct volume *volume)
{
	return volume->chain_count == 0 ? NULL : volume->chain[volume->chain_count - 1]->store;
}

static void create_ended(struct volume *volume)
{
	struct operation *operation = volume->operation;

	if (operation->snapshot != NULL) {
		if (!volume->unusable)
			record_forget(volume, operation->snapshot);
		snapshot_destroy(operation->snapshot);
	} else {
		store_close(operation->store);
	}
	operation->snapshot = NULL;
	operation->store = NULL;
	operation_end(volume, operation->error);
}

static void emptied(struct store_update *update, int error)
{
	(void)error; /* a store that stays prepared is in no chain, and `format --force` can have it */
	create_ended(update->context);
}

/* Ends the operation with `error`: why is `text`, and the detail's message unless that is 0. The store is empty again. */
static void create_fail(struct volume *volume, int error, const char *text, int detail)
{
	struct operation *operation = volume->operation;
	const char *what = operation->store_path != NULL ? operation->store_path : operation->name;

	operation->error = error;
	if (operation->complaint.why[0] == '\0' && detail != 0)
		complaint_set(&operation->complaint, what, "%s: %s", text, strerror(-detail));
	else if (operation->complaint.why[0] == '\0')
		complaint_set(&operation->complaint, what, "%s", text);
	if (operation->store != NULL && operation->store->superblock.state == STATE_PREPARED)
		operation_update_store(volume, operation->store, superblock_make_empty, emptied);
	else
		create_ended(volume);
}

/* ---- after the commit point ---- */

static void apply_active(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	superblock->state = STATE_ACTIVE;
	superblock->created_ns = volume->operation->created_ns;
	superblock->clean = false;
	superblock->log_slots = 0;
	superblock->durable_slots = 0;
	superblock->fingerprint = volume->fingerprint;
}

static void activated(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct operation *operation = volume->operation;
	struct snapshot *snapshot = operation->snapshot;

	volume->active_unready = false;
	if (error != 0) {
		log_warning("store %s: cannot be made active: %s", snapshot->store->path, strerror(-error));
		/* It is in the chain all the same: whatever is written to its superblock from now on must say so. */
		apply_active(&snapshot->store->superblock, volume);
		log_fail(snapshot->store->log, -EIO);
	}
	operation_end(volume, 0);
}

static void enter_chain(struct volume *volume)
{
	struct snapshot *snapshot = volume->operation->snapshot;
	const struct superblock *superblock = &snapshot->store->superblock;

	snapshot->export.created_ns = volume->operation->created_ns;
	volume->chain[volume->chain_count++] = snapshot;
	volume->sequence_last = superblock->sequence;
	volume->block_bytes = superblock->geometry.block_bytes;
	snapshot->export.gone = false;
	export_add(volume->exports, &snapshot->export);
}

static void sealed_known(struct volume *volume)
{
	volume->active_unready = true;
	enter_chain(volume);
	operation_update_store(volume, volume->operation->store, apply_active, activated);
	pause_end(volume);
}

static void first_emptied(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error != 0)
		log_warning("store %s: its state is unknown (%s): do not serve it, format it anew",
			    volume->operation->store->path, strerror(-error));
	pause_end(volume);
	create_ended(volume);
}

static void first_activated(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error != 0) {
		/* It may say "active" on disk: no write may go unprotected before it is known to be empty again. */
		volume->operation->error = error;
		complaint_set(&volume->operation->complaint, volume->operation->store_path, "cannot be made active: %s",
			      strerror(-error));
		operation_update_store(volume, volume->operation->store, superblock_make_empty, first_emptied);
		return;
	}
	enter_chain(volume);
	pause_end(volume);
	operation_end(volume, 0);
}

/* ---- the seal ---- */

static void apply_seal(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;
	slot_t end = store_end(newest_store(volume));

	superblock->state = STATE_SEALED;
	superblock->successor_uuid = volume->operation->store->superblock.store_uuid;
	superblock->sealed_ns = volume->operation->created_ns;
	superblock->clean = true;
	superblock->log_slots = end.index;
	superblock->durable_slots = end.index;
	superblock->fingerprint = volume->fingerprint;
}

static void apply_nothing(struct superblock *superblock, void *context)
{
	(void)superblock;
	(void)context;
}

static void seal_retry(struct volume *volume, struct operation *operation);

static void unsealed(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error != 0) {
		volume->operation->retry_ns = disk_host_monotonic_ns(volume->host);
		seal_retry(volume, volume->operation);
		return;
	}
	pause_end(volume);
	create_fail(volume, -EIO, "the snapshot before it could not be sealed", volume->operation->error);
}

static bool retry_is_due(const struct volume *volume, const struct operation *operation)
{
	return volume->stopping ||
	       disk_host_monotonic_ns(volume->host) - operation->retry_ns >= STUCK_RETRY_NS;
}

/* The old state, with a larger generation: once one copy of it is durable it is known that the seal did not happen. */
static void seal_resolve(struct volume *volume, struct operation *operation)
{
	if (volume->stopping) {
		/* Nothing may be written any more; the next start finds out. */
		complaint_set(&operation->complaint, operation->store_path,
			      "whether the snapshot was taken is unknown (%s): the next start finds out",
			      strerror(-operation->error));
		volume->unusable = true;
		pause_end(volume);
		create_ended(volume);
		return;
	}
	operation_update_store(volume, newest_store(volume), apply_nothing, unsealed);
}

static void seal_retry(struct volume *volume, struct operation *operation)
{
	(void)operation;
	operation_wait(volume, retry_is_due, seal_resolve);
}

static void sealed(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error == 0) {
		sealed_known(volume);
		return;
	}
	log_warning("volume %s: the newest store cannot be sealed (%s): writes stop until its state is known", volume->name,
		    strerror(-error));
	volume->operation->error = error;
	seal_resolve(volume, volume->operation);
}

static void seal(struct volume *volume)
{
	volume->operation->created_ns = disk_host_wall_ns(volume->host);
	if (newest_store(volume) != NULL)
		operation_update_store(volume, newest_store(volume), apply_seal, sealed);
	else
		operation_update_store(volume, volume->operation->store, apply_active, first_activated);
}

static void newest_settled(struct log_settle *settle, int error)
{
	struct volume *volume = settle->context;

	if (error != 0) {
		pause_end(volume);
		if (volume_log(volume) != NULL && error != -ENOSPC)
			log_fail(volume_log(volume), error);
		create_fail(volume, error, "the snapshot before it could not be sealed", error);
		return;
	}
	seal(volume);
}

/* ---- the pause ---- */

static void fingerprint_known(struct volume *volume, int error)
{
	struct store *newest = newest_store(volume);

	if (error != 0) {
		pause_end(volume);
		create_fail(volume, error, "the origin cannot be read", error);
		return;
	}
	if (newest == NULL || newest->log == NULL || store_is_broken(newest) || log_error(newest->log) != 0 ||
	    log_is_settled(newest->log)) {
		seal(volume);
		return;
	}
	volume->settle = (struct log_settle){ .done = newest_settled, .context = volume };
	log_settle_start(newest->log, &volume->settle);
}

static void paused_flushed(struct disk_io *io, int error)
{
	struct volume *volume = io->context;

	error = origin_barrier_result(volume, error);
	if (error != 0) {
		pause_end(volume);
		create_fail(volume, error, "the origin cannot be flushed", error);
		return;
	}
	fingerprint_read_start(volume, fingerprint_known);
}

static void paused(struct volume *volume)
{
	operation_flush_origin(volume, paused_flushed);
}

static void flushed(struct disk_io *io, int error)
{
	struct volume *volume = io->context;

	error = origin_barrier_result(volume, error);
	if (error != 0) {
		create_fail(volume, error, "the origin cannot be flushed", error);
		return;
	}
	pause_begin(volume, paused);
	write_back_lift(volume); /* what comes from here on is held by the pause */
}

/* ---- before the pause ---- */

static void prepared(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	const struct store *store = volume->operation->store;

	/*
	 * From the seal on a start needs it: if one copy can't be written now, and the other is torn when it is made active,
	 * the store would be empty.
	 */
	if (error == 0 && store->degraded)
		error = store->first_error;
	if (error != 0) {
		create_fail(volume, error, "cannot be written", error);
		return;
	}
	/* Before the commit point, and outside the pause: from the seal on, a start needs this store's path. */
	record_remember(volume, volume->operation->snapshot);
	operation_flush_origin(volume, flushed);
}

static void apply_prepared(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;
	const struct store *newest = newest_store(volume);

	superblock->volume_uuid = volume->uuid;
	superblock->state = STATE_PREPARED;
	superblock->sequence = volume->sequence_last + 1;
	memcpy(superblock->name, volume->operation->name, sizeof(superblock->name));
	superblock->origin_bytes = volume->origin_bytes;
	superblock->created_ns = disk_host_wall_ns(volume->host);
	memset(&superblock->predecessor_uuid, 0, sizeof(superblock->predecessor_uuid));
	if (newest != NULL)
		superblock->predecessor_uuid = newest->superblock.store_uuid;
}

static int prepare_memory(struct volume *volume, struct store *store)
{
	block_t blocks = (volume->origin_bytes + store->superblock.geometry.block_bytes - 1) /
			 store->superblock.geometry.block_bytes;
	int error = map_create(blocks, &store->map);

	if (error == 0)
		error = log_create(store, &volume->log_ops);
	if (error == 0)
		error = snapshot_create(volume, store, &volume->operation->snapshot);
	if (error == 0)
		(void)snprintf(volume->operation->snapshot->export.name, sizeof(volume->operation->snapshot->export.name),
			       "%s", volume->operation->name);
	return error;
}

static bool is_unsuitable(struct volume *volume, const struct store *store)
{
	struct complaint *complaint = &volume->operation->complaint;
	const struct superblock *superblock = &store->superblock;

	if (superblock->state != STATE_EMPTY)
		complaint_set(complaint, store->path,
			      "is not empty: it holds %s %s (drop that first, or format the store anew with --force)",
			      superblock->role == ROLE_PART ? "a part of snapshot" : "snapshot", superblock->name);
	else if ((superblock->ro_compat & ~FEATURES_RO_COMPAT) != 0)
		complaint_set(complaint, store->path, "was made by a newer rowsnap and can be read, but not written");
	else if (volume->chain_count > 0 && superblock->geometry.block_bytes != volume->block_bytes)
		complaint_set(complaint, store->path,
			      "has blocks of %u bytes, the volume has %u: format it with --block-size=%u",
			      superblock->geometry.block_bytes, volume->block_bytes, volume->block_bytes);
	else if (store_capacity_slots(store) < superblock->geometry.slots_per_area)
		complaint_set(complaint, store->path, "is too small: it has no room for a single area");
	return complaint->why[0] != '\0';
}

static void loaded(struct store_load *load, int error)
{
	struct volume *volume = load->context;
	struct store *store = volume->operation->store;

	if (error == -ENODATA)
		create_fail(volume, error, "is not a rowsnap store: make it one with 'rowsnap format'", 0);
	else if (error != 0)
		create_fail(volume, error, load->why != NULL ? load->why : "its superblock cannot be read",
			    load->why != NULL ? 0 : error);
	else if (is_unsuitable(volume, store))
		create_fail(volume, -EINVAL, "", 0);
	else if ((error = prepare_memory(volume, store)) != 0)
		create_fail(volume, error, "out of memory", 0);
	else
		operation_update_store(volume, store, apply_prepared, prepared);
}

void create_start(struct volume *volume, struct operation *operation)
{
	struct disk_info info;
	int error;

	if (operation->store_path == NULL) {
		create_fail(volume, -ENOMEM, "out of memory", 0);
		return;
	}
	if (!name_is_valid(operation->name)) {
		complaint_set(&operation->complaint, operation->name,
			      "is no snapshot name: 1 to 63 of A-Za-z0-9._-, not starting with - or ., not 'origin'");
		create_fail(volume, -EINVAL, "", 0);
		return;
	}
	if (volume_find(volume, operation->name, NULL) != NULL || volume_name_is_absent(volume, operation->name)) {
		complaint_set(&operation->complaint, operation->name, "there is a snapshot of this name already");
		create_fail(volume, -EEXIST, "", 0);
		return;
	}
	if (volume->chain_count == CHAIN_STORES_MAX || volume->origin_barrier_failed || fold_is_newest(volume)) {
		complaint_set(&operation->complaint, operation->name, "%s",
			      volume->origin_barrier_failed ? "a flush of the origin has failed: nothing can be promised any more" :
			      fold_is_newest(volume)	    ? "the drop of the newest snapshot has failed: drop it again first" :
							      "the chain has 256 snapshots already");
		create_fail(volume, -EINVAL, "", 0);
		return;
	}
	if (volume->sequence_last == UINT64_MAX) {
		complaint_set(&operation->complaint, operation->name,
			      "no sequence number is left: a snapshot here has the last there is");
		create_fail(volume, -EOVERFLOW, "", 0);
		return;
	}
	error = store_open(volume->host, operation->store_path, DISK_OPEN_LOCK, &operation->store);
	if (error != 0) {
		operation_complain_open(volume, error);
		create_fail(volume, error, "", 0);
		return;
	}
	disk_get_info(operation->store->disk, &info);
	if (disk_is_same(operation->store->disk, volume->origin) || info.read_only) {
		create_fail(volume, -EINVAL, info.read_only ? "is read-only" : "is the origin itself", 0);
		return;
	}
	volume->operation_load = (struct store_load){ .done = loaded, .context = volume };
	store_load_start(operation->store, &volume->operation_load);
}
