/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happens when the active store can take no more exceptions: the origin comes first, by the volume's policy.
 *
 *   break   the chain is marked broken, durably, before the first unprotected write: in the store itself, else in another
 *           store of the chain (as a witness), else in the volume's record. If nowhere, the writes fail.
 *   fail    the writes that need a copy fail.
 *   wait    they wait: for room it is looked again every second; a store that failed waits for the stop.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

#define LOG_EVERY_NS (UINT64_C(10) * 1000 * 1000 * 1000)

static enum broken_reason reason_of(int error)
{
	return error == -ENOSPC ? BROKEN_FULL : BROKEN_STORE_ERROR;
}

static void give_up(struct volume *volume, int error)
{
	struct log *log = volume->broken_log;

	volume->broken_log = NULL;
	volume->copy_freed = true;
	log_abort(log, error);
}

static bool is_time_to_log(struct volume *volume)
{
	uint64_t now_ns = disk_host_monotonic_ns(volume->host);

	if (volume->stuck_logged_ns != 0 && now_ns - volume->stuck_logged_ns < LOG_EVERY_NS)
		return false;
	volume->stuck_logged_ns = now_ns;
	return true;
}

static const struct snapshot *broken_snapshot(const struct volume *volume)
{
	return volume_active(volume);
}

static void apply_own_mark(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	superblock->broken = volume->broken_mark;
}

static void apply_witness(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	superblock->witness_uuid = broken_snapshot(volume)->store->superblock.store_uuid;
	superblock->witness = volume->broken_mark;
}

static void marked(struct volume *volume)
{
	struct store *store = broken_snapshot(volume)->store;

	store_mark_broken(store, volume->broken_mark);
	log_warning("volume %s: the chain is BROKEN at snapshot %s (%s): writes go on, blocks not preserved by now are lost to this and older snapshots",
		    volume->name, store->superblock.name, broken_reason_text(volume->broken_mark.reason));
	warn_tell(volume, VOLUME_EVENT_BROKEN, 0);
	give_up(volume, volume->broken_error);
}

static void mark_next(struct volume *volume);

static int note_in_record(struct volume *volume)
{
	struct record_store *store =
		record_store_find(volume->record, &broken_snapshot(volume)->store->superblock.store_uuid);
	int error;

	if (store == NULL)
		return -ENOENT;
	store->broken = volume->broken_mark;
	error = record_save(volume->record);
	if (error != 0)
		store->broken = (struct broken_mark){ .reason = BROKEN_NOT };
	return error;
}

/* A mark in another store goes to the record as well, if it can: that store may be an older one, and be left away. */
static void mark_done(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error != 0) {
		mark_next(volume);
		return;
	}
	if (volume->broken_witness > 1)
		(void)note_in_record(volume);
	marked(volume);
}

static void mark_in_record(struct volume *volume)
{
	int error = note_in_record(volume);

	if (error == 0) {
		marked(volume);
		return;
	}
	if (is_time_to_log(volume))
		log_warning("volume %s: the broken mark can be written nowhere (record: %s): writes fail", volume->name,
			    strerror(-error));
	give_up(volume, -EIO);
}

/* The store itself first, then the others from the newest down, then the record. */
static void mark_next(struct volume *volume)
{
	struct store *own = broken_snapshot(volume)->store, *store = NULL;

	while (store == NULL && volume->broken_witness <= volume->chain_count) {
		size_t at = volume->broken_witness++;

		if (at == 0)
			store = own;
		else if (volume->chain[volume->chain_count - at]->store != own)
			store = volume->chain[volume->chain_count - at]->store;
	}
	if (store == NULL) {
		mark_in_record(volume);
		return;
	}
	volume->broken_update = (struct store_update){
		.apply = store == own ? apply_own_mark : apply_witness, .done = mark_done, .context = volume
	};
	store_update_start(store, &volume->broken_update);
}

static void tell_full(struct volume *volume, int error)
{
	uint32_t end = log_end(volume->broken_log).index;

	if (error != -ENOSPC || (volume->full_told && volume->full_told_end == end))
		return;
	volume->full_told = true;
	volume->full_told_end = end;
	warn_tell(volume, VOLUME_EVENT_FULL, 0);
}

void broken_log_stuck(struct log *log, int error, void *context)
{
	struct volume *volume = context;
	const struct snapshot *active = volume_active(volume);

	if (active == NULL || active->store->log != log) {
		fold_log_stuck(volume, log, error);
		return;
	}
	volume->broken_log = log;
	volume->broken_error = error;
	if (volume->pauses > 0 && error == -ENOSPC) {
		give_up(volume, error); /* no write went unprotected yet: what waited is held, and meets the new snapshot */
		return;
	}
	if (volume->on_full == ON_FULL_WAIT && (volume->pauses > 0 || volume->stopping)) {
		give_up(volume, error); /* the pause, or the stop, would wait for what waits for them */
		return;
	}
	switch (volume->on_full) {
	case ON_FULL_BREAK:
		volume->broken_mark = (struct broken_mark){ reason_of(error), disk_host_wall_ns(volume->host) };
		volume->broken_witness = 0;
		mark_next(volume);
		return;
	case ON_FULL_FAIL:
		if (is_time_to_log(volume))
			log_warning("volume %s: store %s: %s: writes fail", volume->name, active->store->path,
				    strerror(-error));
		tell_full(volume, error);
		give_up(volume, error);
		return;
	case ON_FULL_WAIT:
		if (is_time_to_log(volume))
			log_warning("volume %s: store %s: %s: writes wait", volume->name, active->store->path,
				    strerror(-error));
		volume->stuck_since_ns = disk_host_monotonic_ns(volume->host);
		tell_full(volume, error);
		return;
	}
}

void broken_tick(struct volume *volume)
{
	if (volume->stuck_since_ns != 0 &&
	    disk_host_monotonic_ns(volume->host) - volume->stuck_since_ns >= STUCK_RETRY_NS)
		broken_retry(volume);
}

void broken_retry(struct volume *volume)
{
	struct log *log = volume->broken_log;

	if (volume->stuck_since_ns == 0 || log == NULL || log_error(log) != 0)
		return;
	volume->stuck_since_ns = 0;
	volume->broken_log = NULL;
	log_retry(log);
	if (log_is_stuck(log) && volume->broken_log == NULL) {
		volume->broken_log = log;
		volume->stuck_since_ns = disk_host_monotonic_ns(volume->host);
	}
}

/* A pause, or the stop, waits for the open commit to end; one that waits for better times is given up instead. */
void broken_pause(struct volume *volume)
{
	if (volume->broken_log == NULL || volume->on_full != ON_FULL_WAIT)
		return;
	volume->stuck_since_ns = 0;
	give_up(volume, volume->broken_error);
}
