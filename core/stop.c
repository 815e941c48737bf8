/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The clean stop: what is under way ends, the log is settled, the origin is flushed, and the newest store's superblock
 * records the log's end and the origin's fingerprint. Where a step fails the stop is as after a crash, which is safe: the
 * next start recovers.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

static void stop_end(struct volume *volume, int error, const char *why)
{
	int late_error = write_back_late_error(volume);

	if (error != 0) {
		complaint_set(&volume->operation->complaint, volume->name, "%s (%s): the next start recovers as after a crash",
			      why, strerror(-error));
	} else if (late_error != 0) {
		error = late_error;
		complaint_set(&volume->operation->complaint, volume->name,
			      "stopped cleanly, but writes that were buffered failed (%s) and no flush has told",
			      strerror(-error));
	}
	troubles_end(volume);
	operation_end(volume, error);
}

static void marked_clean(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	stop_end(volume, error, "the clean stop could not be recorded");
}

static void apply_clean(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;
	slot_t end = store_end(volume_active(volume)->store);

	superblock->clean = true;
	superblock->log_slots = end.index;
	superblock->durable_slots = end.index;
	superblock->fingerprint = volume->fingerprint;
}

static void stop_fingerprinted(struct volume *volume, int error)
{
	if (error != 0)
		stop_end(volume, error, "the origin cannot be read");
	else
		operation_update_store(volume, volume_active(volume)->store, apply_clean, marked_clean);
}

static void stop_flushed(struct disk_io *io, int error)
{
	struct volume *volume = io->context;

	if (error == 0 && volume->origin_barrier_failed)
		error = -EIO;
	if (error != 0)
		stop_end(volume, error, "the origin could not be flushed");
	else if (volume_active(volume) == NULL)
		stop_end(volume, 0, NULL);
	else
		fingerprint_read_start(volume, stop_fingerprinted);
}

static void stop_settled(struct log_settle *settle, int error)
{
	struct volume *volume = settle->context;

	if (error != 0)
		stop_end(volume, error, "the newest store could not be settled");
	else
		operation_flush_origin(volume, stop_flushed);
}

static void stop_quiet(struct volume *volume, struct operation *operation)
{
	struct snapshot *active = volume_active(volume);
	struct log *log = active == NULL ? NULL : active->store->log;

	(void)operation;
	fold_postpone(volume);
	/* What a transport still submits is refused from here. */
	if (!volume->origin_export.gone)
		export_remove(volume->exports, &volume->origin_export);
	for (size_t i = 0; i < volume->chain_count; i++)
		if (!volume->chain[i]->export.gone)
			export_remove(volume->exports, &volume->chain[i]->export);
	if (log == NULL || log_error(log) != 0 || log_is_settled(log)) {
		operation_flush_origin(volume, stop_flushed);
		return;
	}
	volume->settle = (struct log_settle){ .done = stop_settled, .context = volume };
	log_settle_start(log, &volume->settle);
}

static bool is_quiet(const struct volume *volume, const struct operation *operation)
{
	(void)operation;
	if (!write_back_is_empty(volume) || volume->requests_now > 0 || !copy_is_idle(volume) || !fold_is_quiet(volume) ||
	    volume->settling || !warn_is_quiet(volume))
		return false;
	for (size_t i = 0; i < volume->chain_count; i++)
		if (volume->chain[i]->store->log != NULL && !log_can_close(volume->chain[i]->store->log))
			return false;
	return true;
}

void stop_start(struct volume *volume, struct operation *operation)
{
	(void)operation;
	broken_pause(volume);
	operation_wait(volume, is_quiet, stop_quiet);
}
