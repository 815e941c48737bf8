/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The structure of a volume: its chain, its turn, its reports. See engine.h for the other parts.
 *
 *   origin export --> write.c --> copy.c --> the active snapshot's log
 *                        |                        (durable, in the map)
 *                        `--> origin <-------------------'
 *   snapshot export --> read.c --> the first store of the chain that has the block, else the origin
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

void complaint_set(struct complaint *complaint, const char *what, const char *format, ...)
{
	va_list arguments;

	(void)snprintf(complaint->what, sizeof(complaint->what), "%s", what);
	va_start(arguments, format);
	(void)vsnprintf(complaint->why, sizeof(complaint->why), format, arguments);
	va_end(arguments);
}

block_t volume_block_count(const struct volume *volume)
{
	assert(volume->block_bytes != 0);
	return (volume->origin_bytes + volume->block_bytes - 1) / volume->block_bytes;
}

struct snapshot *volume_active(const struct volume *volume)
{
	if (volume->chain_count == 0)
		return NULL;
	if (fold_is_newest(volume))
		return volume->chain[volume->chain_count - 2];
	return volume->chain[volume->chain_count - 1];
}

bool store_is_broken(const struct store *store)
{
	return store->superblock.broken.reason != BROKEN_NOT;
}

bool volume_is_broken(const struct volume *volume)
{
	const struct snapshot *active = volume_active(volume);

	/* What a broken newest lacks has been overwritten already: it cannot be preserved in the one it is folded into. */
	return active != NULL && (store_is_broken(active->store) ||
				  (fold_is_newest(volume) && store_is_broken(fold_source(volume)->store)));
}

struct log *volume_log(const struct volume *volume)
{
	const struct snapshot *active = volume_active(volume);

	return active == NULL || volume_is_broken(volume) ? NULL : active->store->log;
}

struct snapshot *volume_find(const struct volume *volume, const char *name, size_t *index)
{
	for (size_t i = 0; i < volume->chain_count; i++) {
		if (strcmp(volume->chain[i]->store->superblock.name, name) != 0)
			continue;
		if (index != NULL)
			*index = i;
		return volume->chain[i];
	}
	return NULL;
}

void volume_remove_from_chain(struct volume *volume, size_t index)
{
	assert(index < volume->chain_count);
	volume->chain_count--;
	for (size_t i = index; i < volume->chain_count; i++)
		volume->chain[i] = volume->chain[i + 1];
}

struct placement chain_find(const struct volume *volume, size_t index, block_t block, uint64_t limit)
{
	for (size_t i = index; i < volume->chain_count; i++) {
		struct store *store = volume->chain[i]->store;
		struct map_run run = map_find(store->map, block, limit);

		switch (run.kind) {
		case MAP_SLOT:
			return (struct placement){ PLACE_SLOT, store, run.slot, run.count };
		case MAP_ZERO:
			return (struct placement){ .place = PLACE_ZERO, .count = run.count };
		case MAP_LOST:
			return (struct placement){ .place = PLACE_LOST, .store = store, .count = run.count };
		case MAP_ABSENT:
			break;
		}
		limit = run.count;
		if (store_is_broken(store))
			return (struct placement){ .place = PLACE_BROKEN, .store = store, .count = limit };
	}
	return (struct placement){ .place = PLACE_ORIGIN, .count = limit };
}

/* ---- exports ---- */

void origin_submit_now(struct volume *volume, struct request *request)
{
	request_begin(volume, request);
	switch (request->op) {
	case REQUEST_READ:
	case REQUEST_EXTENTS:
		origin_read_submit(volume, request);
		return;
	case REQUEST_WRITE:
	case REQUEST_ZERO:
	case REQUEST_DISCARD:
		write_submit(volume, request);
		return;
	case REQUEST_FLUSH:
		flush_submit_request(volume, request);
		return;
	}
	request_end(volume, request, -EINVAL);
}

static void origin_submit(struct request *request)
{
	struct volume *volume = container_of(request->export, struct volume, origin_export);
	int error = request_check(request);

	if (error != 0)
		request->complete(request, error);
	else if (volume->write_back != NULL)
		write_back_submit(volume, request);
	else
		origin_submit_now(volume, request);
}

static void origin_released(struct export *export)
{
	(void)export; /* part of the volume, which outlives its transports */
}

static void snapshot_released(struct export *export)
{
	struct snapshot *snapshot = container_of(export, struct snapshot, export);

	if (snapshot->store == NULL && snapshot->requests == 0)
		free(snapshot);
}

static const struct export_ops snapshot_export_ops = { snapshot_submit, snapshot_released };
const struct export_ops origin_export_ops = { origin_submit, origin_released };

int snapshot_create(struct volume *volume, struct store *store, struct snapshot **out)
{
	const struct superblock *superblock = &store->superblock;
	struct snapshot *snapshot = calloc(1, sizeof(*snapshot));

	if (snapshot == NULL)
		return -ENOMEM;
	snapshot->volume = volume;
	snapshot->store = store;
	snapshot->export = (struct export){
		.ops = &snapshot_export_ops,
		.size_bytes = volume->origin_bytes,
		.block_bytes = superblock->geometry.block_bytes,
		.sector_bytes = volume->device_sector_bytes,
		.read_only = true,
		.created_ns = superblock->created_ns,
		.gone = true, /* until it is added */
	};
	list_init(&snapshot->export.link);
	(void)snprintf(snapshot->export.name, sizeof(snapshot->export.name), "%s", superblock->name);
	*out = snapshot;
	return 0;
}

/* The store is closed already, or goes with it. Clients may still hold the export: then the last of them frees. */
void snapshot_destroy(struct snapshot *snapshot)
{
	assert(snapshot->export.gone && snapshot->requests == 0);
	slot_cache_forget(snapshot->volume->slot_cache, snapshot->store);
	store_close(snapshot->store);
	snapshot->store = NULL;
	if (snapshot->export.references == 0)
		free(snapshot);
}

int request_check(const struct request *request)
{
	const struct export *export = request->export;

	if (export->gone)
		return -ESHUTDOWN;
	if (request->op == REQUEST_FLUSH)
		return 0;
	if (export->read_only && request->op != REQUEST_READ && request->op != REQUEST_EXTENTS)
		return -EPERM;
	if (request->offset > export->size_bytes || request->length > export->size_bytes - request->offset)
		return -EINVAL;
	if ((request->op == REQUEST_READ || request->op == REQUEST_WRITE) && request->length > REQUEST_DATA_BYTES_MAX)
		return -EINVAL;
	return 0;
}

void request_begin(struct volume *volume, struct request *request)
{
	list_init(&request->link);
	list_init(&request->waiting_link);
	list_append(&volume->requests, &request->all_link);
	volume->requests_now++;
	request->cursor = request->offset;
	request->piece_end = request->offset;
	request->pending = 0;
	request->needs_barrier = false;
	request->step = 0;
	request->error = 0;
	request->bounce = NULL;
	request->bounce_bytes = 0;
	request->started_ns = 0;
}

void request_end(struct volume *volume, struct request *request, int error)
{
	assert(request->bounce == NULL && request->pending == 0);
	list_remove(&request->all_link);
	list_remove(&request->link);
	list_remove(&request->waiting_link);
	volume->requests_now--;
	request->complete(request, error);
}

/* ---- its beginning and its end ---- */

int volume_create(struct disk_host *host, struct export_table *exports, const struct volume_options *options,
		  struct volume **out)
{
	struct volume *volume = calloc(1, sizeof(*volume));
	int error;

	if (volume == NULL)
		return -ENOMEM;
	*out = volume;
	volume->host = host;
	volume->exports = exports;
	volume->on_full = options->on_full;
	volume->discard_copy = options->discard_copy;
	memcpy(volume->warn_at, options->warn_at, sizeof(volume->warn_at));
	volume->warn_count = options->warn_count;
	volume->event = options->event;
	volume->event_context = options->event_context;
	volume->log_ops = (struct log_ops){ broken_log_stuck, volume, &volume->log_counters };
	(void)snprintf(volume->name, sizeof(volume->name), "%s", options->name);
	struct list *lists[] = { &volume->requests,	    &volume->writing,	     &volume->overlapping,
				 &volume->held,		    &volume->bounce_waiters, &volume->copies,
				 &volume->copies_free,	    &volume->copies_unlogged, &volume->copy_starved,
				 &volume->segments_free,    &volume->segment_starved, &volume->fingerprint_waiters,
				 &volume->operations,	     &volume->barrier_waiting, &volume->barrier_joined };
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		list_init(lists[i]);
	volume->fingerprint_image = aligned_alloc(ARENA_PAGE_BYTES, 2 * ARENA_PAGE_BYTES);
	volume->fingerprint_next = aligned_alloc(ARENA_PAGE_BYTES, 2 * ARENA_PAGE_BYTES);
	volume->fingerprint_block = aligned_alloc(ARENA_PAGE_BYTES, BLOCK_BYTES_MAX);
	if (volume->fingerprint_image == NULL || volume->fingerprint_next == NULL || volume->fingerprint_block == NULL)
		return -ENOMEM;
	error = arena_create(BOUNCE_ARENA_BYTES, &volume->bounce_arena);
	if (error == 0)
		error = slot_cache_create(&volume->slot_cache);
	if (error == 0)
		error = copy_pool_create(volume);
	if (error == 0 && options->write_back_bytes > 0)
		error = write_back_create(volume, options->write_back_bytes);
	return error == 0 ? segment_pool_create(volume) : error;
}

static void close_chain(struct volume *volume)
{
	while (volume->chain_count > 0) {
		struct snapshot *snapshot = volume->chain[--volume->chain_count];

		if (!snapshot->export.gone)
			export_remove(volume->exports, &snapshot->export);
		snapshot_destroy(snapshot);
	}
}

void volume_close(struct volume *volume)
{
	if (volume == NULL)
		return;
	fold_free(volume);
	if (volume->origin_export.ops != NULL && !volume->origin_export.gone)
		export_remove(volume->exports, &volume->origin_export);
	close_chain(volume);
	for (unsigned i = 0; volume->segment_pool != NULL && i < SEGMENTS_MAX; i++)
		slot_read_fini(&volume->segment_pool[i].slots);
	free(volume->segment_pool);
	free(volume->copy_pool);
	free(volume->items);
	slot_cache_destroy(volume->slot_cache);
	if (volume->copy_arena != NULL)
		arena_destroy(volume->copy_arena);
	if (volume->bounce_arena != NULL)
		arena_destroy(volume->bounce_arena);
	free(volume->fingerprint_image);
	free(volume->fingerprint_next);
	free(volume->fingerprint_block);
	write_back_destroy(volume->write_back);
	disk_close(volume->origin);
	record_destroy(volume->record);
	free(volume->origin_path);
	free(volume);
}

/* ---- the turn and the tick ---- */

/* Whether chain[index] is to take exceptions: as the active one, or in a fold. */
static bool log_is_wanted(const struct volume *volume, size_t index)
{
	return volume->chain[index] == volume_active(volume) || fold_involves(volume, volume->chain[index]);
}

static void logs_turn(struct volume *volume)
{
	for (size_t i = 0; i < volume->chain_count; i++) {
		struct log *log = volume->chain[i]->store->log;

		if (log == NULL || log_is_stuck(log))
			continue;
		if (volume->active_unready && i + 1 == volume->chain_count)
			continue;
		if (!log_is_wanted(volume, i) && log_can_close(log))
			log_close(log);
		else if (volume->chain[i] != volume_active(volume) || !copy_holds_commit(volume))
			log_push(log);
	}
}

void volume_turn(struct volume *volume)
{
	/*
	 * What a step of an operation, or the end of a copy that failed, makes possible is done now: without a disk request
	 * under way there may be no other turn until the next tick.
	 */
	do {
		fold_turn(volume);
		copy_turn(volume);
		write_turn(volume);
		read_turn(volume);
		write_back_turn(volume);
		logs_turn(volume);
		barrier_turn(volume);
		pause_check(volume);
	} while (operation_turn(volume) || volume->copy_freed);
	disk_host_push(volume->host);
}

static void settled(struct log_settle *settle, int error)
{
	struct volume *volume = settle->context;

	volume->settling = false;
	volume->busy_ns = disk_host_monotonic_ns(volume->host);
	if (error != 0 && error != -ENOSPC && volume_log(volume) != NULL)
		log_fail(volume_log(volume), error);
	pause_check(volume);
}

/* An idle moment records how far the log is known durable. */
static void settle_when_idle(struct volume *volume)
{
	struct log *log = volume_log(volume);
	uint64_t now_ns = disk_host_monotonic_ns(volume->host);

	if (log == NULL || volume->operation != NULL || volume->fold != NULL || volume->stopping || volume->pauses > 0 ||
	    volume->settling || log_error(log) != 0 || !log_is_idle(log) || !copy_is_idle(volume)) {
		volume->busy_ns = now_ns;
		return;
	}
	if (log_is_settled(log) || now_ns - volume->busy_ns < IDLE_SETTLE_NS)
		return;
	volume->settling = true;
	volume->settle = (struct log_settle){ .done = settled, .context = volume };
	log_settle_start(log, &volume->settle);
}

/* ---- what the log was not told ---- */

void origin_answered(struct volume *volume, const struct disk_io *io, int error)
{
	static const char *const names[] = { [DISK_READ] = "read", [DISK_WRITE] = "write", [DISK_ZERO] = "write of zeroes",
					     [DISK_DISCARD] = "discard" };

	if (error == 0 && volume->origin_failures > 0) {
		trouble_tell(&volume->back_trouble, volume->host, "origin %s: answers again, after %llu requests that failed",
			     volume->origin_path, (unsigned long long)volume->origin_failures);
		volume->origin_failures = 0;
	}
	if (error == 0 || error == -EOPNOTSUPP)
		return;
	volume->origin_failures++;
	trouble_tell(&volume->origin_trouble, volume->host, "origin %s: a %s of %llu bytes at %llu failed: %s",
		     volume->origin_path, names[io->op], (unsigned long long)io->length, (unsigned long long)io->offset,
		     strerror(-error));
}

void troubles_end(struct volume *volume)
{
	for (size_t i = 0; i < volume->chain_count; i++) {
		struct store *store = volume->chain[i]->store;

		trouble_end(&store->trouble, "store", store->path);
	}
	trouble_end(&volume->origin_trouble, "origin", volume->origin_path);
	trouble_end(&volume->back_trouble, "back and gone: origin", volume->origin_path);
	trouble_end(&volume->lost_trouble, "blocks lost: origin", volume->origin_path);
	trouble_end(&volume->read_trouble, "volume", volume->name);
}

static void trouble_ticks(struct volume *volume)
{
	for (size_t i = 0; i < volume->chain_count; i++) {
		struct store *store = volume->chain[i]->store;

		trouble_tick(&store->trouble, volume->host, "store", store->path);
	}
	trouble_tick(&volume->origin_trouble, volume->host, "origin", volume->origin_path);
	trouble_tick(&volume->back_trouble, volume->host, "back and gone: origin", volume->origin_path);
	trouble_tick(&volume->lost_trouble, volume->host, "blocks lost: origin", volume->origin_path);
	trouble_tick(&volume->read_trouble, volume->host, "volume", volume->name);
}

void volume_tick(struct volume *volume)
{
	trouble_ticks(volume);
	broken_tick(volume);
	warn_tick(volume);
	settle_when_idle(volume);
	write_back_tick(volume);
	volume_turn(volume);
}

void volume_touch_buffers(struct volume *volume)
{
	arena_touch(volume->copy_arena);
	arena_touch(volume->bounce_arena);
	write_back_touch(volume);
}

/* ---- reports ---- */

uint32_t volume_block_bytes(const struct volume *volume)
{
	return volume->chain_count == 0 ? 0 : volume->block_bytes;
}

static bool has_store(const struct snapshot *snapshot, const uuid128_t *uuid)
{
	return snapshot != NULL && uuid_equal(&snapshot->store->superblock.store_uuid, uuid);
}

/* In the chain, or out of it with a wipe still to come. */
static bool is_here(const struct volume *volume, const uuid128_t *uuid)
{
	for (size_t i = 0; i < volume->chain_count; i++)
		if (has_store(volume->chain[i], uuid))
			return true;
	return (volume->operation != NULL && has_store(volume->operation->snapshot, uuid)) ||
	       (volume->fold != NULL && has_store(fold_source(volume), uuid));
}

/*
 * The record's stores that are not here, in its order, come before the chain: the one with this index, or NULL, and how many
 * there are. The record has those that are here in the chain's order, but for moments.
 */
static const struct record_store *absent_store(const struct volume *volume, size_t index, size_t *count)
{
	const struct record_store *found = NULL;
	size_t at = 0;

	*count = 0;
	for (size_t i = 0; i < volume->record->store_count; i++) {
		const struct record_store *store = &volume->record->stores[i];

		if (at < volume->chain_count && has_store(volume->chain[at], &store->uuid))
			at++;
		else if (!is_here(volume, &store->uuid) && (*count)++ == index)
			found = store;
	}
	return found;
}

bool volume_name_is_absent(const struct volume *volume, const char *name)
{
	const struct record_store *store;
	size_t count;

	for (size_t i = 0; (store = absent_store(volume, i, &count)) != NULL; i++)
		if (strcmp(store->name, name) == 0)
			return true;
	return false;
}

size_t volume_snapshot_count(const struct volume *volume)
{
	size_t absent;

	(void)absent_store(volume, 0, &absent);
	return absent + volume->chain_count;
}

static const char *snapshot_state(const struct volume *volume, const struct snapshot *snapshot)
{
	if (store_is_broken(snapshot->store))
		return "broken";
	if (fold_involves(volume, snapshot) && snapshot->dropping)
		return "folding";
	if (snapshot == volume_active(volume))
		return "active";
	return "sealed";
}

void snapshot_report_sizes(struct snapshot_report *report, const struct store *store)
{
	report->store = store->path;
	report->used_bytes = store_used_bytes(store);
	report->size_bytes = store_limit_bytes(store);
	report->full_percent = store_percent(store);
	report->part_count = store_part_count(store);
	for (uint32_t i = 0; i < report->part_count; i++) {
		report->parts[i].store = store_part(store, i)->path;
		report->parts[i].used_bytes = store_part_used_bytes(store, i);
		report->parts[i].size_bytes = store_part_limit_bytes(store, i);
	}
}

void volume_report_snapshot(const struct volume *volume, size_t index, struct snapshot_report *report)
{
	size_t absent;
	const struct record_store *away = absent_store(volume, index, &absent);
	const struct snapshot *snapshot;
	const struct superblock *superblock;

	memset(report, 0, sizeof(*report));
	if (away != NULL) {
		(void)snprintf(report->name, sizeof(report->name), "%s", away->name);
		report->uuid = away->uuid;
		report->created_ns = away->created_ns;
		report->state = "absent";
		report->store = away->path;
		return;
	}
	snapshot = volume->chain[index - absent];
	superblock = &snapshot->store->superblock;
	memcpy(report->name, superblock->name, sizeof(report->name));
	report->uuid = superblock->store_uuid;
	report->created_ns = superblock->created_ns;
	report->state = snapshot_state(volume, snapshot);
	report->blocks = map_block_count(snapshot->store->map);
	snapshot_report_sizes(report, snapshot->store);
	if (snapshot == volume_active(volume) && report->full_percent != 0)
		report->warned_percent = warn_level(volume, snapshot->store);
	report->broken = store_is_broken(snapshot->store);
	report->broken_reason = broken_reason_text(superblock->broken.reason);
	report->broken_ns = superblock->broken.time_ns;
	fold_report(volume, snapshot, report);
}

static const char *on_full_text(enum on_full on_full)
{
	switch (on_full) {
	case ON_FULL_BREAK:
		return "break";
	case ON_FULL_FAIL:
		return "fail";
	case ON_FULL_WAIT:
		return "wait";
	}
	return "break";
}

void volume_report(const struct volume *volume, struct volume_report *report)
{

	*report = volume->counters;
	report->name = volume->name;
	report->uuid = volume->uuid;
	report->origin_path = volume->origin_path;
	report->origin_bytes = volume->origin_bytes;
	report->block_bytes = volume->block_bytes;
	report->on_full = on_full_text(volume->on_full);
	report->unprotected = volume_is_broken(volume);
	report->stuck = volume->stuck_since_ns != 0;
	report->requests_now = volume->requests_now;
	report->map_bytes = 0;
	for (size_t i = 0; i < volume->chain_count; i++)
		report->map_bytes += map_memory_bytes(volume->chain[i]->store->map);
	report->commits = volume->log_counters.commits;
	report->barriers = volume->log_counters.barriers;
	report->store_writes = volume->log_counters.writes;
	report->store_data_bytes = volume->log_counters.data_bytes;
	report->store_metadata_bytes = volume->log_counters.metadata_bytes;
	report->store_zeroed_bytes = volume->log_counters.zeroed_bytes;
	report->commit_ns = volume->log_counters.commit_ns;
	report->buffer_bytes = COPY_ARENA_BYTES + BOUNCE_ARENA_BYTES;
	write_back_get_report(volume, &report->write_back);
	report->requests_held = 0;
	list_for_each(link, &volume->held)
		report->requests_held++;
}
