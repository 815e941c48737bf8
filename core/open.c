/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Start-up: nothing is served until everything is known and durable.
 *
 *   origin       opened, locked, its size looked at; the record consulted
 *   stores       opened, locked, superblocks read; put in order (chain.c)
 *   recovery     each log read back; the one that takes exceptions is made appendable, with a barrier
 *   fingerprint  the origin must be as the stores last saw it
 *   mending      what a crash left unfinished: links, leftovers, unborn stores
 *   run          the active store's clean mark is cleared, durably, with the present fingerprint; logs and exports open
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"
#include "io/probe.h"

struct opening {
	struct volume *volume;
	struct complaint *complaint;
	const struct volume_options *options;
	struct store *stores[CHAIN_STORES_MAX];
	size_t store_count;
	struct chain_entry entries[CHAIN_STORES_MAX];
	struct chain_verdict verdict;
	struct fingerprint allowed; /* the value of each sector that the stores accept, as far as it matches the origin */
	bool matched[FINGERPRINT_SECTORS];
	bool from_record;
	bool origin_changed;
};

extern const struct export_ops origin_export_ops;

/* ---- the origin ---- */

static int refuse_open(struct complaint *complaint, const char *path, int error)
{
	char text[PROBE_TEXT_BYTES];

	if (error == -EBUSY && probe_busy(path, text) == 1)
		complaint_set(complaint, path, "is in use: %s", text);
	else if (error == -EBUSY)
		complaint_set(complaint, path, "is in use by another program");
	else if (error == -ENOTBLK)
		complaint_set(complaint, path, "is neither a block device nor a regular file");
	else
		complaint_set(complaint, path, "%s", strerror(-error));
	return error;
}

static int open_origin(struct opening *opening, const char *path)
{
	struct volume *volume = opening->volume;
	char text[PROBE_TEXT_BYTES];
	struct disk_info info;
	int error;

	volume->origin_path = strdup(path);
	if (volume->origin_path == NULL)
		return -ENOMEM;
	error = disk_open(volume->host, path, DISK_OPEN_LOCK, &volume->origin);
	if (error != 0)
		return refuse_open(opening->complaint, path, error);
	if (probe_busy(path, text) == 1) {
		complaint_set(opening->complaint, path, "is in use: %s", text);
		return -EBUSY;
	}
	disk_get_info(volume->origin, &info);
	if (info.read_only) {
		complaint_set(opening->complaint, path, "is read-only");
		return -EROFS;
	}
	if (info.size_bytes == 0 || info.size_bytes % 512 != 0 || info.size_bytes > ORIGIN_BYTES_MAX) {
		complaint_set(opening->complaint, path,
			      info.size_bytes == 0	   ? "is empty" :
			      info.size_bytes % 512 != 0 ? "has %llu bytes, which is not a multiple of 512" :
							   "has %llu bytes; the most is 16 TiB",
			      (unsigned long long)info.size_bytes);
		return -EINVAL;
	}
	volume->origin_bytes = info.size_bytes;
	volume->sector_bytes = info.sector_bytes;
	volume->device_sector_bytes = info.is_device ? info.sector_bytes : 512;
	return 0;
}

/* ---- the stores ---- */

static int check_same_file(struct opening *opening, const char *path)
{
	const struct volume *volume = opening->volume;
	struct disk *disk = NULL;
	int error = 0;

	/* It may be locked by ourselves: opened without a lock it can be compared. */
	if (disk_open(volume->host, path, DISK_OPEN_READ_ONLY, &disk) != 0)
		return 0;
	if (disk_is_same(disk, volume->origin)) {
		complaint_set(opening->complaint, path, "is the origin itself");
		error = -EINVAL;
	}
	for (size_t i = 0; i < opening->store_count && error == 0; i++) {
		if (!disk_is_same(disk, opening->stores[i]->disk))
			continue;
		complaint_set(opening->complaint, path, "is the same file as %s: given twice", opening->stores[i]->path);
		error = -EINVAL;
	}
	disk_close(disk);
	return error;
}

static int open_store(struct opening *opening, const char *path)
{
	char text[PROBE_TEXT_BYTES];
	struct store *store;
	const char *why = NULL;
	int error = check_same_file(opening, path);

	if (error != 0)
		return error;
	error = store_open(opening->volume->host, path, DISK_OPEN_LOCK, &store);
	if (error != 0)
		return refuse_open(opening->complaint, path, error);
	opening->stores[opening->store_count++] = store;
	if (probe_busy(path, text) == 1) {
		complaint_set(opening->complaint, path, "is in use: %s", text);
		return -EBUSY;
	}
	error = store_load_wait(store, &why);
	if (error != 0)
		complaint_set(opening->complaint, path, "%s", store_load_text(error, why));
	else if ((store->superblock.ro_compat & ~FEATURES_RO_COMPAT) != 0)
		complaint_set(opening->complaint, path, "was made by a newer rowsnap and can be read, but not written");
	else if (store->degraded)
		log_warning("store %s: one copy of its superblock is damaged, the other is used", path);
	return error == 0 && opening->complaint->why[0] != '\0' ? -EPROTONOSUPPORT : error;
}

/* Whether what lies at a recorded path is something else by now (wiped, or made a store anew): then it is closed again. */
static bool is_another(struct opening *opening, const struct record_store *recorded, int error)
{
	struct store *store;

	if (opening->store_count == 0 || (error != 0 && error != -ENODATA))
		return false;
	store = opening->stores[opening->store_count - 1];
	if (error == 0 && uuid_equal(&store->superblock.store_uuid, &recorded->uuid))
		return false;
	log_notice("%s is not the store of snapshot %s any more", recorded->path, recorded->name);
	opening->complaint->what[0] = '\0';
	opening->complaint->why[0] = '\0';
	opening->store_count--;
	store_close(store);
	return true;
}

/* The record's stores; those whose file is not there are left out, and the chain tells whether they can be. */
static int open_recorded(struct opening *opening)
{
	const struct record *record = opening->volume->record;
	size_t missing = 0, wiped = 0;

	for (size_t i = 0; i < record->store_count; i++) {
		const struct record_store *recorded = &record->stores[i];
		struct disk *disk;
		int error = disk_open(opening->volume->host, recorded->path, DISK_OPEN_READ_ONLY, &disk);

		if (error == -ENOENT || error == -ENXIO) {
			log_notice("store %s of snapshot %s is not there", recorded->path, recorded->name);
			missing++;
			continue;
		}
		if (error == 0)
			disk_close(disk);
		error = open_store(opening, recorded->path);
		if (is_another(opening, recorded, error)) {
			missing++;
			wiped += error == -ENODATA;
			continue;
		}
		if (error != 0)
			return error;
		log_notice("using store %s of snapshot %s, as last time", recorded->path, recorded->name);
	}
	opening->from_record = true;
	/* A drop of the only one that was cut short behind its wipe leaves a record of a wiped store. */
	if (missing == 0 || missing < record->store_count || wiped == record->store_count)
		return 0;
	if (opening->options->accept_origin) {
		log_warning("origin %s: none of its snapshots' stores is there: going on without snapshots",
			    opening->volume->origin_path);
		return 0;
	}
	complaint_set(opening->complaint, record->stores[record->store_count - 1].path,
		      "is not there: the store of the newest snapshot, %s (name it where it is now, or go on without its snapshots with --accept-origin)",
		      record->stores[record->store_count - 1].name);
	return -ENOENT;
}

static int find_record(struct opening *opening, const uuid128_t *volume_uuid)
{
	struct volume *volume = opening->volume;

	record_destroy(volume->record);
	volume->record = NULL;
	return record_find(opening->options->state_directory, volume->origin_path, volume_uuid, &volume->record);
}

/* Stores of another volume than the one this origin is known to belong to are refused. */
static int check_known_volume(struct opening *opening)
{
	static const uuid128_t nil;
	const struct superblock *superblock = &opening->stores[0]->superblock;
	const struct record *record;

	if (uuid_is_nil(&superblock->volume_uuid) || find_record(opening, &nil) != 0)
		return 0;
	record = opening->volume->record;
	if (record->store_count == 0 || uuid_equal(&record->volume_uuid, &superblock->volume_uuid))
		return 0;
	if (opening->options->accept_origin) {
		opening->origin_changed = true;
		return 0;
	}
	complaint_set(opening->complaint, opening->stores[0]->path,
		      "belongs to another volume: the origin's last known newest store is %s (--accept-origin leaves that one out)",
		      record->stores[record->store_count - 1].path);
	return -EINVAL;
}

static int open_stores(struct opening *opening, const char *const *paths, size_t count)
{
	static const uuid128_t nil;
	int error = 0;

	if (count == 0) {
		error = find_record(opening, &nil);
		if (error == -EUCLEAN && !opening->options->accept_origin) {
			complaint_set(opening->complaint, opening->volume->origin_path,
				      "a damaged record in %s may name its snapshots' stores: name them, or go on without with --accept-origin",
				      opening->options->state_directory);
			return error;
		}
		return error == 0 ? open_recorded(opening) : 0;
	}
	if (count > CHAIN_STORES_MAX) {
		complaint_set(opening->complaint, paths[CHAIN_STORES_MAX], "is one store too many: 256 is the most");
		return -E2BIG;
	}
	for (size_t i = 0; i < count && error == 0; i++)
		error = open_store(opening, paths[i]);
	return error == 0 ? check_known_volume(opening) : error;
}

/* ---- the chain ---- */

static void name_missing(struct opening *opening)
{
	const struct record *record = opening->volume->record;
	const struct record_store *store =
		record == NULL ? NULL : record_store_find(record, &opening->verdict.missing);
	char uuid[UUID_TEXT_BYTES];

	if (store == NULL)
		return;
	uuid_text(&opening->verdict.missing, uuid);
	complaint_set(opening->complaint, opening->verdict.what,
		      "needs the next newer snapshot's store: %s, last seen at %s (%s)", store->name, store->path, uuid);
}

static int order_chain(struct opening *opening)
{
	struct volume *volume = opening->volume;
	int error;

	for (size_t i = 0; i < opening->store_count; i++)
		opening->entries[i] = (struct chain_entry){ .superblock = &opening->stores[i]->superblock,
							    .path = opening->stores[i]->path,
							    .context = opening->stores[i] };
	error = chain_order(opening->entries, opening->store_count, &opening->verdict);
	if (error != 0) {
		complaint_set(opening->complaint, opening->verdict.what, "%s", opening->verdict.why);
		if (!uuid_is_nil(&opening->verdict.missing))
			name_missing(opening);
		return error;
	}
	if (opening->store_count == 0)
		return 0;
	if (opening->entries[0].superblock->origin_bytes != volume->origin_bytes) {
		complaint_set(opening->complaint, volume->origin_path,
			      "has %llu bytes, but the snapshots were taken of %llu",
			      (unsigned long long)volume->origin_bytes,
			      (unsigned long long)opening->entries[0].superblock->origin_bytes);
		return -EINVAL;
	}
	return 0;
}

/* ---- recovery and the fingerprint ---- */

static void fingerprint_match(const struct fingerprint *fingerprint, void *context)
{
	struct opening *opening = context;

	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++)
		if (fingerprint->sector[i] == opening->volume->fingerprint.sector[i])
			opening->matched[i] = true;
}

/* The index of the member that takes exceptions from now on. */
static size_t active_index(const struct opening *opening)
{
	const struct chain_verdict *verdict = &opening->verdict;
	size_t newest = verdict->count - 1;

	if (verdict->fold_pending && opening->entries[verdict->fold_into].superblock->state == STATE_ACTIVE)
		return verdict->fold_into;
	return newest;
}

/* A log that can be read but not go on: the newest store counts as one that failed while serving, by the policy. */
static int unappendable(struct opening *opening, struct store *store, bool active, int error)
{
	if (store_is_broken(store))
		return 0;
	if (!active || opening->options->on_full != ON_FULL_BREAK) {
		complaint_set(opening->complaint, store->path, "cannot be written: %s", strerror(-error));
		return error;
	}
	log_warning("store %s: cannot be written (%s): the chain is BROKEN at snapshot %s: blocks not preserved by now are lost",
		    store->path, strerror(-error), store->superblock.name);
	store->superblock.broken = (struct broken_mark){ BROKEN_STORE_ERROR, disk_host_wall_ns(store->host) };
	return 0;
}

static int recover_member(struct opening *opening, size_t index)
{
	struct store *store = opening->entries[index].context;
	bool fold_into = opening->verdict.fold_pending && index == opening->verdict.fold_into;
	bool active = index == active_index(opening);
	struct recovery recovery = { .writable = active || fold_into };
	int error;

	if (active && !store->superblock.clean) {
		recovery.fingerprint = fingerprint_match;
		recovery.context = opening;
	}
	error = store_recover(store, &recovery);
	if (error != 0) {
		complaint_set(opening->complaint, store->path, "its log cannot be read back: %s", strerror(-error));
		return error;
	}
	if (recovery.slots_cut > 0)
		log_notice("store %s: %llu exceptions that were not durable yet are cut off", store->path,
			   (unsigned long long)recovery.slots_cut);
	if (recovery.append_error != 0)
		return unappendable(opening, store, active, recovery.append_error);
	if (!recovery.lost_metadata || store_is_broken(store))
		return 0;
	log_warning("store %s: entries that were durable cannot be read: snapshot %s and those before it are BROKEN: blocks not preserved are lost",
		    store->path, store->superblock.name);
	store->superblock.broken = (struct broken_mark){ BROKEN_METADATA, disk_host_wall_ns(store->host) };
	return 0;
}

static void adopt_mark(struct opening *opening, const uuid128_t *uuid, const struct broken_mark *mark)
{
	for (size_t i = 0; i < opening->verdict.count; i++) {
		struct store *store = opening->entries[i].context;

		if (mark->reason != BROKEN_NOT && uuid_equal(uuid, &store->superblock.store_uuid) &&
		    !store_is_broken(store))
			store->superblock.broken = *mark;
	}
}

/* Marks that a store could not carry itself lie with another store or in the record. */
static void adopt_marks(struct opening *opening)
{
	const struct record *record = opening->volume->record;

	for (size_t i = 0; i < opening->verdict.count; i++) {
		const struct superblock *superblock = opening->entries[i].superblock;

		adopt_mark(opening, &superblock->witness_uuid, &superblock->witness);
	}
	for (size_t i = 0; record != NULL && i < record->store_count; i++)
		adopt_mark(opening, &record->stores[i].uuid, &record->stores[i].broken);
}

static int check_fingerprint(struct opening *opening)
{
	struct volume *volume = opening->volume;
	size_t active = active_index(opening);
	struct store *store = opening->entries[active].context;
	const struct superblock *superblock = &store->superblock;
	bool same = true;

	/* A prepared store has no fingerprint yet: the one before it was sealed with the present one. */
	if (superblock->state == STATE_PREPARED)
		superblock = opening->entries[active - 1].superblock;
	fingerprint_match(&superblock->fingerprint, opening);
	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++)
		same = same && opening->matched[i];
	opening->origin_changed = opening->origin_changed || !same;
	/* A newest that is broken, and is being folded, tells nothing of what was written since either. */
	if (!opening->origin_changed || store_is_broken(store) ||
	    store_is_broken(opening->entries[opening->verdict.count - 1].context))
		return 0;
	if (!opening->options->accept_origin) {
		complaint_set(opening->complaint, volume->origin_path,
			      "was changed without its snapshots (mounted, checked or written directly?): they are not valid any more for what was overwritten; --accept-origin goes on with the chain marked broken");
		return -ESTALE;
	}
	log_warning("origin %s: was changed without its snapshots: the chain is BROKEN, as accepted", volume->origin_path);
	store->superblock.broken = (struct broken_mark){ BROKEN_ORIGIN_CHANGED, disk_host_wall_ns(volume->host) };
	return 0;
}

static int recover_chain(struct opening *opening)
{
	struct volume *volume = opening->volume;
	int error = 0;

	if (opening->verdict.count == 0)
		return 0;
	/* What a killed server wrote may be in a cache only, and the fingerprint to be recorded must not be taken back. */
	error = disk_flush_wait(volume->host, volume->origin);
	if (error != 0) {
		complaint_set(opening->complaint, volume->origin_path, "cannot be flushed: %s", strerror(-error));
		return error;
	}
	error = fingerprint_read(volume);
	if (error != 0) {
		complaint_set(opening->complaint, volume->origin_path, "cannot be read: %s", strerror(-error));
		return error;
	}
	for (size_t i = 0; i < opening->verdict.count && error == 0; i++)
		error = recover_member(opening, i);
	if (error != 0)
		return error;
	if (volume->record == NULL ||
	    !uuid_equal(&volume->record->volume_uuid, &opening->entries[0].superblock->volume_uuid))
		(void)find_record(opening, &opening->entries[0].superblock->volume_uuid);
	adopt_marks(opening);
	return check_fingerprint(opening);
}

/* ---- mending ---- */

static void apply_unborn(struct superblock *superblock, void *context)
{
	(void)context;
	*superblock = (struct superblock){
		.compat = superblock->compat,
		.ro_compat = superblock->ro_compat,
		.incompat = superblock->incompat,
		.generation = superblock->generation,
		.store_uuid = superblock->store_uuid,
		.role = ROLE_SNAPSHOT,
		.state = STATE_EMPTY,
		.geometry = superblock->geometry,
		.limit_bytes = superblock->limit_bytes,
		.clean = true,
	};
}

static int mend_outsider(struct opening *opening, const struct chain_entry *entry)
{
	struct store *store = entry->context;
	int error;

	switch (entry->place) {
	case CHAIN_LEFTOVER:
		log_notice("store %s: snapshot %s was dropped: its store is wiped now", store->path, store->superblock.name);
		error = store_wipe_wait(store);
		break;
	case CHAIN_UNBORN:
		log_notice("store %s: the creation of snapshot %s was not finished: the store is empty again", store->path,
			   store->superblock.name);
		error = store_update_wait(store, apply_unborn, NULL);
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
		error = disk_flush_wait(opening->volume->host, opening->stores[i]->disk);
		if (error != 0)
			complaint_set(opening->complaint, opening->stores[i]->path, "cannot be flushed: %s",
				      strerror(-error));
	}
	return error;
}

static int mend(struct opening *opening)
{
	int error = flush_stores(opening);

	for (size_t i = 0; i < opening->verdict.count && error == 0; i++) {
		struct store *store = opening->entries[i].context;

		if (store->degraded || store->uneven)
			error = store_update_wait(store, apply_as_it_is, NULL);
		if (error != 0)
			complaint_set(opening->complaint, store->path, "cannot be written: %s", strerror(-error));
	}
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

static void take_store(struct opening *opening, const struct store *store)
{
	for (size_t i = 0; i < opening->store_count; i++)
		if (opening->stores[i] == store)
			opening->stores[i] = NULL;
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
	return clearing.error == 0 ? 0 : unappendable(opening, store, true, clearing.error);
}

static int begin_run(struct opening *opening)
{
	struct volume *volume = opening->volume;
	size_t active = active_index(opening);
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
	for (size_t i = 0; i < opening->verdict.count && error == 0; i++) {
		struct snapshot *snapshot;

		error = snapshot_create(volume, opening->entries[i].context, &snapshot);
		if (error != 0)
			break;
		take_store(opening, snapshot->store);
		volume->chain[volume->chain_count++] = snapshot;
		volume->sequence_last = snapshot->store->superblock.sequence;
	}
	if (error == 0 && fold)
		error = fold_resume(volume, into + 1, into == active);
	return error;
}

static void open_exports(struct volume *volume)
{
	volume->origin_export = (struct export){
		.ops = &origin_export_ops,
		.name = "origin",
		.size_bytes = volume->origin_bytes,
		.block_bytes = volume->block_bytes != 0 ? volume->block_bytes : BLOCK_BYTES_MIN,
		.sector_bytes = volume->device_sector_bytes,
		.can_discard = true,
		.can_punch = volume->discard_copy,
		.created_ns = disk_host_wall_ns(volume->host),
	};
	export_add(volume->exports, &volume->origin_export);
	for (size_t i = 0; i < volume->chain_count; i++) {
		struct snapshot *snapshot = volume->chain[i];

		if (snapshot->dropping)
			continue;
		snapshot->export.gone = false;
		export_add(volume->exports, &snapshot->export);
	}
}

/* ---- the record ---- */

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
}

static int update_record(struct opening *opening)
{
	struct volume *volume = opening->volume;
	struct record *record;
	int error = 0;

	if (volume->record == NULL || !uuid_equal(&volume->record->volume_uuid, &volume->uuid))
		error = find_record(opening, &volume->uuid);
	record = volume->record;
	if (error != 0 || record == NULL)
		error = record_create(opening->options->state_directory, volume->origin_path, &volume->uuid, &record);
	if (error != 0)
		return error;
	error = record_set_origin(record, volume->origin_path);
	volume->record = record;
	record_disown(record);
	prune_record(volume, record);
	for (size_t i = 0; i < volume->chain_count && error == 0; i++) {
		const struct store *store = volume->chain[i]->store;

		error = record_add(record, &store->superblock.store_uuid, store->superblock.name, store->path,
				   store->superblock.created_ns);
	}
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

static int volume_create(struct disk_host *host, struct export_table *exports, const struct volume_options *options,
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
	volume->log_ops = (struct log_ops){ broken_log_stuck, volume, &volume->log_counters };
	(void)snprintf(volume->name, sizeof(volume->name), "%s", options->name);
	struct list *lists[] = { &volume->requests,	    &volume->writing,	     &volume->overlapping,
				 &volume->held,		    &volume->bounce_waiters, &volume->copies,
				 &volume->copies_free,	    &volume->copies_unlogged, &volume->copy_starved,
				 &volume->segments_free,    &volume->segment_starved, &volume->fingerprint_waiters,
				 &volume->operations };
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
	return error == 0 ? segment_pool_create(volume) : error;
}

static int open_volume(struct opening *opening, const char *origin_path, const char *const *store_paths, size_t count)
{
	struct volume *volume = opening->volume;
	const struct chain_verdict *verdict = &opening->verdict;
	int error = open_origin(opening, origin_path);

	if (error == 0)
		error = open_stores(opening, store_paths, count);
	if (error == 0)
		error = order_chain(opening);
	if (error == 0)
		error = recover_chain(opening);
	if (error == 0)
		error = mend(opening);
	if (error != 0)
		return error;
	if (verdict->count > 0) {
		volume->uuid = opening->entries[0].superblock->volume_uuid;
		volume->block_bytes = opening->entries[0].superblock->geometry.block_bytes;
		volume->absent_older = verdict->absent_older;
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
	open_exports(volume);
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
	for (size_t i = 0; opening != NULL && i < opening->store_count; i++)
		store_close(opening->stores[i]);
	free(opening);
	if (error != 0)
		volume_close(volume);
	else
		*out = volume;
	return error;
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
	disk_close(volume->origin);
	record_destroy(volume->record);
	free(volume->origin_path);
	free(volume);
}
