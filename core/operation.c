/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Operations: changes of the chain, one at a time, in the order they were asked for as far as they can start. A fold leaves
 * the queue once it is under way, so that snapshots can be taken while old ones are being folded.
 *
 * An operation is a sequence of functions. Each ends by starting something whose completion calls the next one, or with
 * operation_wait(), which has the next one called at the end of a turn when its condition holds; or with operation_end().
 *
 * The pause: origin writes are no longer issued; those issued, the copies under way and the open commit end; then
 * drained() is called. Requests that were not issued are held and start again when the pause ends.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

static void enqueue(struct volume *volume, struct operation *operation)
{
	operation->is_ready = NULL;
	operation->next = NULL;
	operation->store = NULL;
	operation->snapshot = NULL;
	operation->error = 0;
	operation->complaint.what[0] = '\0';
	operation->complaint.why[0] = '\0';
	list_append(&volume->operations, &operation->link);
}

void volume_snapshot(struct volume *volume, struct operation *operation, const char *name, const char *store_path)
{
	operation->kind = OPERATION_CREATE;
	(void)snprintf(operation->name, sizeof(operation->name), "%s", name);
	operation->store_path = strdup(store_path);
	enqueue(volume, operation);
}

void volume_extend(struct volume *volume, struct operation *operation, const char *name, const char *store_path,
		   uint64_t size_bytes)
{
	operation->kind = OPERATION_EXTEND;
	(void)snprintf(operation->name, sizeof(operation->name), "%s", name);
	operation->store_path = store_path == NULL ? NULL : strdup(store_path);
	operation->size_bytes = store_path == NULL ? size_bytes : 0;
	enqueue(volume, operation);
}

void volume_drop(struct volume *volume, struct operation *operation, const char *name, bool forget_older)
{
	operation->kind = OPERATION_DROP;
	(void)snprintf(operation->name, sizeof(operation->name), "%s", name);
	operation->store_path = NULL;
	operation->forget_older = forget_older;
	enqueue(volume, operation);
}

void volume_stop(struct volume *volume, struct operation *operation)
{
	operation->kind = OPERATION_STOP;
	operation->store_path = NULL;
	operation->name[0] = '\0';
	volume->stopping = true;
	enqueue(volume, operation);
}

static bool can_start(struct volume *volume, const struct operation *operation)
{
	if (volume->stopping)
		return true;
	switch (operation->kind) {
	case OPERATION_CREATE:
		return !fold_bars_creation(volume) && write_back_barrier(volume);
	case OPERATION_DROP:
		return drop_can_start(volume, operation);
	case OPERATION_EXTEND:
	case OPERATION_STOP:
		return true;
	}
	return false;
}

static void start(struct volume *volume, struct operation *operation)
{
	list_remove(&operation->link);
	volume->operation = operation;
	if (volume->stopping && operation->kind != OPERATION_STOP) {
		complaint_set(&operation->complaint, operation->name, "the server is stopping");
		operation_end(volume, -ESHUTDOWN);
		return;
	}
	if (volume->unusable && operation->kind != OPERATION_STOP) {
		complaint_set(&operation->complaint, operation->name,
			      "what the newest store says is unknown after an error: stop the server and start it again");
		operation_end(volume, -EIO);
		return;
	}
	if (operation->kind == OPERATION_CREATE && write_back_late_error(volume) != 0) {
		complaint_set(&operation->complaint, operation->name,
			      "a buffered write has failed, and no flush has told yet: the snapshot would lack it");
		operation_end(volume, write_back_late_error(volume));
		return;
	}
	switch (operation->kind) {
	case OPERATION_CREATE:
		create_start(volume, operation);
		return;
	case OPERATION_EXTEND:
		extend_start(volume, operation);
		return;
	case OPERATION_DROP:
		drop_start(volume, operation);
		return;
	case OPERATION_STOP:
		stop_start(volume, operation);
		return;
	}
}

bool operation_turn(struct volume *volume)
{
	struct operation *operation = volume->operation;
	bool barred = write_back_is_barred(volume);

	if (operation != NULL) {
		void (*next)(struct volume *, struct operation *) = operation->next;

		if (operation->is_ready == NULL || !operation->is_ready(volume, operation))
			return false;
		operation->is_ready = NULL;
		next(volume, operation);
		return true;
	}
	list_for_each(link, &volume->operations) {
		operation = container_of(link, struct operation, link);
		if (!can_start(volume, operation))
			continue;
		start(volume, operation);
		return true;
	}
	return write_back_is_barred(volume) != barred; /* it drains now, so that one can start */
}

void operation_wait(struct volume *volume, bool (*is_ready)(const struct volume *volume, const struct operation *operation),
		    void (*next)(struct volume *volume, struct operation *operation))
{
	volume->operation->is_ready = is_ready;
	volume->operation->next = next;
}

void operation_end(struct volume *volume, int error)
{
	struct operation *operation = volume->operation;

	assert(operation != NULL && volume->drained == NULL);
	volume->operation = NULL;
	write_back_lift(volume);
	free(operation->store_path);
	operation->store_path = NULL;
	operation->done(operation, error);
}

/* Who holds it is for the asker to find out: looking around in the system here may lead into our own exports. */
void operation_complain_open(struct volume *volume, int error)
{
	struct complaint *complaint = &volume->operation->complaint;
	const char *path = volume->operation->store_path;

	if (error == -EBUSY)
		complaint_set(complaint, path, "is in use by this volume already, or by another process");
	else if (error == -ENOTBLK)
		complaint_set(complaint, path, "is neither a block device nor a regular file");
	else
		complaint_set(complaint, path, "%s", strerror(-error));
}

void operation_flush_origin(struct volume *volume, void (*done)(struct disk_io *io, int error))
{
	volume->operation_io = (struct disk_io){
		.disk = volume->origin, .op = DISK_FLUSH, .done = done, .context = volume
	};
	disk_submit(&volume->operation_io);
}

void operation_update_store(struct volume *volume, struct store *store,
			    void (*apply)(struct superblock *superblock, void *context),
			    void (*done)(struct store_update *update, int error))
{
	volume->operation_update = (struct store_update){ .apply = apply, .done = done, .context = volume };
	store_update_start(store, &volume->operation_update);
}

static void warn_of_record(const struct volume *volume, int error)
{
	log_warning("volume %s: its record in %s cannot be written (%s): the next start needs the stores named", volume->name,
		    volume->record->directory, strerror(-error));
}

void record_save_or_warn(struct volume *volume)
{
	int error = record_save(volume->record);

	if (error != 0)
		warn_of_record(volume, error);
}

/* The record is read from anywhere. An absolute path stays as it is: it may be a name that outlives what it leads to. */
static char *recorded_path(const struct store *store)
{
	char *path = store->path[0] == '/' ? NULL : realpath(store->path, NULL);

	return path != NULL ? path : strdup(store->path);
}

int record_add_store(struct record *record, const struct store *store)
{
	const struct superblock *superblock = &store->superblock;
	int error = 0;

	for (uint32_t i = 0; i < store_part_count(store) && error == 0; i++) {
		char *path = recorded_path(store_part(store, i));

		if (path == NULL)
			error = -ENOMEM;
		else if (i == 0)
			error = record_add(record, &superblock->store_uuid, superblock->name, path, superblock->created_ns);
		else
			error = record_add_part(record, &superblock->store_uuid, &superblock->parts[i - 1].uuid, path);
		free(path);
	}
	return error;
}

void record_remember(struct volume *volume, const struct snapshot *snapshot)
{
	int error = record_add_store(volume->record, snapshot->store);

	if (error == 0)
		record_save_or_warn(volume);
	else
		warn_of_record(volume, error);
}

void record_forget(struct volume *volume, const struct snapshot *snapshot)
{
	record_remove(volume->record, &snapshot->store->superblock.store_uuid);
	record_save_or_warn(volume);
}

/* ---- the pause ---- */

void pause_begin(struct volume *volume, void (*drained)(struct volume *volume))
{
	assert(volume->drained == NULL);
	if (volume->pauses++ == 0)
		volume->pause_started_ns = disk_host_monotonic_ns(volume->host);
	volume->drained = drained;
	broken_pause(volume);
}

void pause_end(struct volume *volume)
{
	assert(volume->pauses > 0 && volume->drained == NULL);
	if (--volume->pauses > 0)
		return;
	histogram_add(&volume->counters.pause_ns, disk_host_monotonic_ns(volume->host) - volume->pause_started_ns);
	write_resume_held(volume);
}

void pause_check(struct volume *volume)
{
	const struct snapshot *active = volume_active(volume);
	void (*drained)(struct volume *volume) = volume->drained;

	if (drained == NULL || volume->issued > 0 || !copy_is_idle(volume) || volume->settling)
		return;
	if (active != NULL && active->store->log != NULL && !log_is_idle(active->store->log))
		return;
	if (active != NULL && active->store->update != NULL)
		return;
	volume->drained = NULL;
	drained(volume);
}
