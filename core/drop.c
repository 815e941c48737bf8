/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dropping a snapshot.
 *
 *   the oldest     its export goes; its successor is told that it is the oldest now; its superblocks are wiped. No data is
 *                  read or written, whatever its size.
 *   the only one   the same without a successor, in a pause: no write goes unprotected before the wipe is durable.
 *   any other      its exceptions are folded into the next older store first: fold.c.
 *
 * Nothing is wiped while it is being read: first the export goes (new requests are refused), then its requests end, then
 * the pins of other snapshots' reads.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

bool drop_can_start(const struct volume *volume, const struct operation *operation)
{
	const struct snapshot *snapshot = volume_find(volume, operation->name, NULL);

	if (volume->fold == NULL || snapshot == NULL)
		return true;
	if (fold_is_stalled(volume))
		return true;
	/* Only the oldest, if it has no part in the fold, can go while one is under way. */
	return snapshot == volume->chain[0] && !fold_involves(volume, snapshot);
}

bool snapshot_is_unread(const struct volume *volume, const struct operation *operation)
{
	(void)volume;
	return operation->snapshot->requests == 0;
}

static void drop_fail(struct volume *volume, int error, const char *why)
{
	struct operation *operation = volume->operation;

	if (operation->complaint.why[0] == '\0')
		complaint_set(&operation->complaint, operation->name, "%s: %s", why, strerror(-error));
	log_warning("volume %s: snapshot %s is not dropped: %s", volume->name, operation->name, operation->complaint.why);
	operation_end(volume, error);
}

static void come_back(struct volume *volume)
{
	struct snapshot *snapshot = volume->operation->snapshot;

	snapshot->dropping = false;
	snapshot->export.gone = false;
	export_add(volume->exports, &snapshot->export);
	record_remember(volume, snapshot);
}

/* ---- the end: the store is wiped ---- */

static void drop_finished(struct volume *volume)
{
	struct snapshot *snapshot = volume->operation->snapshot;

	snapshot_destroy(snapshot);
	operation_end(volume, 0);
}

/* The store is wiped, but a part of it is not, as the log says. */
static void drop_finished_but_parts(struct volume *volume)
{
	struct snapshot *snapshot = volume->operation->snapshot;
	int error = snapshot->store->part_error;

	complaint_set(&volume->operation->complaint, snapshot->store->path,
		      "the snapshot is dropped, but a part of its store could not be wiped: %s (format that anew)",
		      strerror(-error));
	snapshot_destroy(snapshot);
	operation_end(volume, error);
}

static void wiped(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct snapshot *snapshot = volume->operation->snapshot;

	/* Not before the wipe: by its record the next start finds the store and wipes it, if we are killed in between. */
	record_forget(volume, snapshot);
	if (error == 0 && snapshot->store->part_error != 0) {
		drop_finished_but_parts(volume);
		return;
	}
	if (error != 0) {
		/* It is out of the chain already; its store only looks used. */
		log_warning("store %s: cannot be wiped: %s", snapshot->store->path, strerror(-error));
		complaint_set(&volume->operation->complaint, snapshot->store->path,
			      "the snapshot is dropped, but its store could not be wiped: %s", strerror(-error));
		snapshot_destroy(snapshot);
		operation_end(volume, error);
		return;
	}
	drop_finished(volume);
}

static bool store_is_unpinned(const struct volume *volume, const struct operation *operation)
{
	(void)volume;
	return operation->snapshot->store->pins == 0 &&
	       (operation->snapshot->store->log == NULL || log_can_close(operation->snapshot->store->log));
}

static void wipe(struct volume *volume, struct operation *operation)
{
	if (operation->snapshot->store->log != NULL)
		log_close(operation->snapshot->store->log);
	operation_update_store(volume, operation->snapshot->store, NULL, wiped);
}

/* ---- the oldest ---- */

static void successor_told(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error != 0) {
		come_back(volume);
		drop_fail(volume, error, "its successor's superblock cannot be written");
		return;
	}
	memset(&volume->absent_older, 0, sizeof(volume->absent_older));
	volume_remove_from_chain(volume, 0);
	operation_wait(volume, store_is_unpinned, wipe);
}

static void apply_oldest(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	superblock_inherit_witness(superblock, &volume->chain[0]->store->superblock);
	memset(&superblock->predecessor_uuid, 0, sizeof(superblock->predecessor_uuid));
}

static void tell_successor(struct volume *volume, struct operation *operation)
{
	(void)operation;
	operation_update_store(volume, volume->chain[1]->store, apply_oldest, successor_told);
}

/* ---- the only one ---- */

/* The drop has failed: it is a snapshot again, if its superblock could be put back. */
static void only_restored(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct operation *operation = volume->operation;
	struct store *store = operation->snapshot->store;

	if (error == 0)
		error = log_create(store, &volume->log_ops);
	if (error != 0) {
		volume->unusable = true;
		log_warning("store %s: its state is unknown (%s): all writes fail until the next start", store->path,
			    strerror(-error));
	}
	pause_end(volume);
	come_back(volume);
	drop_fail(volume, operation->error, "its store cannot be wiped");
}

static void apply_nothing(struct superblock *superblock, void *context)
{
	(void)superblock;
	(void)context;
}

static void only_wiped(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error != 0) {
		volume->operation->error = error;
		operation_update_store(volume, volume->operation->snapshot->store, apply_nothing, only_restored);
		return;
	}
	volume_remove_from_chain(volume, 0);
	memset(&volume->absent_older, 0, sizeof(volume->absent_older));
	pause_end(volume);
	/* Not before the wipe: without its record the origin would be served bare. */
	record_forget(volume, volume->operation->snapshot);
	if (volume->operation->snapshot->store->part_error != 0)
		drop_finished_but_parts(volume);
	else
		drop_finished(volume);
}

static void only_wipe(struct volume *volume, struct operation *operation)
{
	/* After a drop that failed halfway there may be none. */
	if (operation->snapshot->store->log != NULL)
		log_close(operation->snapshot->store->log);
	operation_update_store(volume, operation->snapshot->store, NULL, only_wiped);
}

static void only_paused(struct volume *volume)
{
	operation_wait(volume, store_is_unpinned, only_wipe);
}

static void only_pause(struct volume *volume, struct operation *operation)
{
	(void)operation;
	pause_begin(volume, only_paused);
}

/* ---- the start ---- */

/* Nobody reads it, and the older store's log, which a seal may have left to be closed, is closed: its end is known. */
static bool fold_can_begin(const struct volume *volume, const struct operation *operation)
{
	size_t index;

	return snapshot_is_unread(volume, operation) && volume_find(volume, operation->name, &index) != NULL &&
	       volume->chain[index - 1]->store->log == NULL;
}

static void begin_fold(struct volume *volume, struct operation *operation)
{
	size_t index;

	(void)volume_find(volume, operation->name, &index);
	fold_start(volume, index, operation);
}

static bool is_refused(struct volume *volume, struct operation *operation, size_t index)
{
	const char *name = operation->name;

	if (volume_name_is_absent(volume, name))
		complaint_set(&operation->complaint, name, "its store is not here: 'rowsnap drop STORE' drops it offline");
	else if (operation->snapshot == NULL)
		complaint_set(&operation->complaint, name, "no such snapshot");
	else if (index == 0 && !uuid_is_nil(&volume->absent_older) && !operation->forget_older)
		complaint_set(&operation->complaint, name,
			      "an older snapshot, whose store is not here, needs it (--forget-older drops it all the same)");
	else if (fold_is_stalled(volume) && operation->snapshot != fold_source(volume))
		complaint_set(&operation->complaint, name, "the drop of snapshot %s has failed: drop that first",
			      fold_source(volume)->store->superblock.name);
	return operation->complaint.why[0] != '\0';
}

void drop_start(struct volume *volume, struct operation *operation)
{
	size_t index = 0;

	operation->snapshot = volume_find(volume, operation->name, &index);
	if (is_refused(volume, operation, index)) {
		operation_end(volume, operation->snapshot == NULL ? -ENOENT : -EINVAL);
		return;
	}
	if (fold_is_stalled(volume)) {
		fold_restart(volume, operation);
		return;
	}
	operation->snapshot->dropping = true;
	export_remove(volume->exports, &operation->snapshot->export);
	if (index > 0)
		operation_wait(volume, fold_can_begin, begin_fold);
	else if (volume->chain_count > 1)
		operation_wait(volume, snapshot_is_unread, tell_successor);
	else
		operation_wait(volume, snapshot_is_unread, only_pause);
	if (operation->begun != NULL && index == 0)
		operation->begun(operation);
}
