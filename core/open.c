/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Start-up: nothing is served until everything is known and durable.
 *
 *   reading      origin, stores, chain, recovery, fingerprint (opening.c)
 *   mending      what a crash left unfinished: links, leftovers, unborn stores, marks of a merge that did not begin
 *   run          the active store's clean mark is cleared, durably, with the present fingerprint; logs and exports open
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/opening.h"
#include "io/log.h"

/* ---- mending ---- */

static int mend_outsider(struct opening *opening, const struct chain_entry *entry)
{
	struct store *store = entry->context;
	int error;

	switch (entry->place) {
	case CHAIN_LEFTOVER:
		log_notice(store->superblock.state == STATE_MERGING ?
				   "store %s: the origin was put back to before snapshot %s: its store is wiped now" :
				   "store %s: snapshot %s was dropped: its store is wiped now",
			   store->path, store->superblock.name);
		error = store_wipe_wait(store);
		break;
	case CHAIN_UNBORN:
		log_notice("store %s: the creation of snapshot %s was not finished: the store is empty again", store->path,
			   store->superblock.name);
		error = store_update_wait(store, superblock_make_empty, NULL);
		break;
	case CHAIN_MEMBER:
	default:
		return 0;
	}
	if (error != 0)
		complaint_set(opening->complaint, store->path, "cannot be written: %s", strerror(-error));
	return error;
}

static void apply_predecessor(struct superblock *superblock, void *context)
{
	superblock->predecessor_uuid = *(const uuid128_t *)context;
}

static void apply_as_it_is(struct superblock *superblock, void *context)
{
	(void)superblock;
	(void)context;
}

/* What the superblocks say decides what is written from here on; a killed server may have left it in a cache only. */
static int flush_stores(struct opening *opening)
{
	int error = 0;

	for (size_t i = 0; i < opening->store_count && error == 0; i++) {
		error = store_flush_wait(opening->stores[i]);
		if (error != 0)
			complaint_set(opening->complaint, opening->stores[i]->path, "cannot be flushed: %s",
				      strerror(-error));
	}
	return error;
}

static void apply_unmark(struct superblock *superblock, void *context)
{
	(void)context;
	superblock->state = STATE_SEALED;
	memset(&superblock->merge_target_uuid, 0, sizeof(superblock->merge_target_uuid));
}

/* A merge whose marks are not all there has not begun. The target's goes last, as it came first. */
static int take_marks_back(struct opening *opening)
{
	int error = 0;

	for (size_t i = opening->verdict.count; i-- > 0 && error == 0;) {
		struct store *store = opening->entries[i].context;

		if (store->superblock.state != STATE_MERGING)
			continue;
		if (uuid_equal(&store->superblock.merge_target_uuid, &store->superblock.store_uuid))
			log_notice("store %s: the merge to snapshot %s had not begun: it is given up", store->path,
				   store->superblock.name);
		error = store_update_wait(store, apply_unmark, NULL);
		if (error != 0)
			complaint_set(opening->complaint, store->path, "cannot be written: %s", strerror(-error));
	}
	return error;
}

static int mend_copies(struct opening *opening, struct store *store)
{
	int error = 0;

	for (uint32_t i = 0; i < store_part_count(store) && error == 0; i++) {
		struct store *part = store_part(store, i);

		if (part->degraded || part->uneven)
			error = store_update_wait(part, apply_as_it_is, NULL);
		if (error != 0)
			complaint_set(opening->complaint, part->path, "cannot be written: %s", strerror(-error));
	}
	return error;
}

/* Parts that no store has: of one that is gone, or to which they were never joined. */
static int mend_loose_parts(struct opening *opening)
{
	int error = 0;

	for (size_t i = 0; i < opening->loose_count && error == 0; i++) {
		struct store *part = opening->loose[i].part;

		log_notice(opening->loose[i].left_over ?
				   "store %s: snapshot %s, to whose store it was joined, was dropped: it is wiped now" :
				   "store %s: it was not joined to the store of snapshot %s in the end: it is empty again",
			   part->path, part->superblock.name);
		error = disk_flush_wait(part->host, part->disk);
		if (error == 0 && opening->loose[i].left_over)
			error = store_wipe_wait(part);
		else if (error == 0)
			error = store_update_wait(part, superblock_make_empty, NULL);
		if (error != 0)
			complaint_set(opening->complaint, part->path, "cannot be written: %s", strerror(-error));
	}
	return error;
}

static int mend(struct opening *opening)
{
	int error = flush_stores(opening);

	if (error == 0)
		error = take_marks_back(opening);

	for (size_t i = 0; i < opening->verdict.count && error == 0; i++)
		error = mend_copies(opening, opening->entries[i].context);
	if (error == 0)
		error = mend_loose_parts(opening);
	for (size_t i = opening->verdict.count; i < opening->store_count && error == 0; i++)
		error = mend_outsider(opening, &opening->entries[i]);
	for (size_t i = 1; i < opening->verdict.count && error == 0; i++) {
		struct store *store = opening->entries[i].context;
		uuid128_t predecessor = opening->entries[i - 1].superblock->store_uuid;

		if (!uuid_equal(&store->superblock.predecessor_uuid, &predecessor))
			error = store_update_wait(store, apply_predecessor, &predecessor);
		if (error != 0)
			complaint_set(opening->complaint, store->path, "cannot be written: %s", strerror(-error));
	}
	return error;
}

/* ---- the run begins ---- */

struct run {
	const struct volume *volume;
	slot_t end;
	const struct superblock *predecessor; /* for a prepared store; NULL: none here */
};

static void apply_run(struct superblock *superblock, void *context)
{
	const struct run *run = context;

	if (superblock->state == STATE_PREPARED && run->predecessor != NULL)
		superblock->created_ns = run->predecessor->sealed_ns;
	superblock->state = STATE_ACTIVE;
	superblock->sealed_ns = 0;
	superblock->clean = false;
	superblock->log_slots = 0;
	superblock->durable_slots = run->end.index;
	superblock->fingerprint = run->volume->fingerprint;
}

struct clearing {
	struct log_settle settle;
	bool done;
	int error;
};

static void cleared(struct log_settle *settle, int error)
{
	struct clearing *clearing = settle->context;

	clearing->done = true;
	clearing->error = error;
}

/* A store that was clean: what a commit given up may have left in its metadata must not lie under the next. */
static int clear_log(struct opening *opening, struct store *store)
{
	struct clearing clearing = { .settle = { .done = cleared, .context = &clearing } };

	log_settle_start(store->log, &clearing.settle);
	while (!clearing.done)
		disk_host_wait(store->host);
	return clearing.error == 0 ? 0 : opening_unappendable(opening, store, true, clearing.error);
}

static int begin_run(struct opening *opening)
{
	struct volume *volume = opening->volume;
	size_t active = opening_active_index(opening);
	struct store *store = opening->entries[active].context;
	struct run run = { volume, store->end, active > 0 ? opening->entries[active - 1].superblock : NULL };
	bool fold = opening->verdict.fold_pending;
	size_t into = opening->verdict.fold_into;
	int error = log_create(store, &volume->log_ops);

	if (error == 0 && store->superblock.clean)
		error = clear_log(opening, store);
	if (error != 0)
		return error;
	error = store_update_wait(store, apply_run, &run);
	if (error != 0) {
		complaint_set(opening->complaint, store->path, "cannot be written: %s", strerror(-error));
		return error;
	}
	if (error == 0 && fold && into != active)
		error = log_create(opening->entries[into].context, &volume->log_ops);
	if (error == 0)
		error = opening_take_chain(opening);
	if (error == 0 && fold)
		error = fold_resume(volume, into + 1, into == active);
	return error;
}

/* ---- the record ---- */

/* Whether the store that it was to be joined to is here, and does not name it. */
static bool is_no_part(const struct volume *volume, const struct record_part *part)
{
	for (size_t i = 0; i < volume->chain_count; i++) {
		const struct superblock *superblock = &volume->chain[i]->store->superblock;

		if (!uuid_equal(&superblock->store_uuid, &part->main_uuid))
			continue;
		for (uint32_t at = 0; at < superblock->part_count; at++)
			if (uuid_equal(&superblock->parts[at].uuid, &part->uuid))
				return false;
		return true;
	}
	return false;
}

/* What the record knows and the chain does not have stays only if it may be older than all that is here. */
static void prune_record(const struct volume *volume, struct record *record)
{
	bool older = !uuid_is_nil(&volume->absent_older);

	for (size_t i = 0; i < record->store_count;) {
		uuid128_t uuid = record->stores[i].uuid;
		bool here = false;

		for (size_t j = 0; j < volume->chain_count; j++)
			here = here || uuid_equal(&volume->chain[j]->store->superblock.store_uuid, &uuid);
		older = older && !here;
		if (here || older)
			i++;
		else
			record_remove(record, &uuid);
	}
	for (size_t i = record->part_count; i-- > 0;)
		if (is_no_part(volume, &record->parts[i]))
			record_remove_part(record, &record->parts[i].uuid);
}

static int update_record(struct opening *opening)
{
	struct volume *volume = opening->volume;
	struct record *record;
	int error = 0;

	if (volume->record == NULL || !uuid_equal(&volume->record->volume_uuid, &volume->uuid))
		error = opening_find_record(opening, &volume->uuid);
	record = volume->record;
	if (error != 0 || record == NULL)
		error = record_create(opening->options->state_directory, volume->origin_path, &volume->uuid, &record);
	if (error != 0)
		return error;
	error = record_set_origin(record, volume->origin_path);
	volume->record = record;
	record_disown(record);
	memset(&record->merging_uuid, 0, sizeof(record->merging_uuid)); /* the chain has been asked, and knows */
	prune_record(volume, record);
	for (size_t i = 0; i < volume->chain_count && error == 0; i++)
		error = record_add_store(record, volume->chain[i]->store);
	if (error == 0)
		record_save_or_warn(volume);
	return error;
}

static void report_absent(const struct volume *volume)
{
	char uuid[UUID_TEXT_BYTES];
	const struct record_store *store;

	if (uuid_is_nil(&volume->absent_older))
		return;
	uuid_text(&volume->absent_older, uuid);
	store = record_store_find(volume->record, &volume->absent_older);
	if (store != NULL)
		log_notice("volume %s: the store of older snapshot %s is not here (%s, last seen at %s)", volume->name,
			   store->name, uuid, store->path);
	else
		log_notice("volume %s: an older snapshot's store is not here (%s)", volume->name, uuid);
}

/* ---- all of it ---- */

static int open_volume(struct opening *opening, const char *origin_path, const char *const *store_paths, size_t count)
{
	struct volume *volume = opening->volume;
	const struct chain_verdict *verdict = &opening->verdict;
	int error = opening_read(opening, origin_path, store_paths, count);

	if (error == 0)
		error = mend(opening);
	if (error != 0)
		return error;
	if (verdict->count > 0) {
		error = begin_run(opening);
	} else if (volume->record != NULL) {
		volume->uuid = volume->record->volume_uuid;
	} else {
		disk_host_random(volume->host, &volume->uuid, sizeof(volume->uuid));
		volume->uuid.bytes[6] = (uint8_t)((volume->uuid.bytes[6] & 0x0f) | 0x40);
		volume->uuid.bytes[8] = (uint8_t)((volume->uuid.bytes[8] & 0x3f) | 0x80);
	}
	if (error == 0)
		error = update_record(opening);
	if (error != 0)
		return error;
	report_absent(volume);
	opening_add_exports(volume);
	return 0;
}

int volume_open(struct disk_host *host, struct export_table *exports, const char *origin_path,
		const char *const *store_paths, size_t store_count, const struct volume_options *options,
		struct volume **out, struct complaint *complaint)
{
	struct opening *opening = calloc(1, sizeof(*opening));
	struct volume *volume = NULL;
	int error = -ENOMEM;

	memset(complaint, 0, sizeof(*complaint));
	if (opening != NULL)
		error = volume_create(host, exports, options, &volume);
	if (error == 0) {
		opening->volume = volume;
		opening->complaint = complaint;
		opening->options = options;
		error = open_volume(opening, origin_path, store_paths, store_count);
	}
	if (error != 0 && complaint->why[0] == '\0')
		complaint_set(complaint, origin_path, "%s", strerror(-error));
	if (opening != NULL)
		opening_end(opening);
	free(opening);
	if (error != 0)
		volume_close(volume);
	else
		*out = volume;
	return error;
}
