/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From paths to a chain that is known and verified:
 *
 *   origin       opened, locked, its size looked at; the record consulted
 *   stores       opened, locked, superblocks read; put in order (chain.c)
 *   recovery     each log read back; the one that takes exceptions is made appendable, with a barrier
 *   marks        of chains that are broken: the stores' own, their witnesses', the record's
 *   fingerprint  the origin must be as the stores last saw it
 *
 * For the offline tools nothing is written: recovery stays in memory. Those that only read share the disks with other
 * readers, but not with anything that may write: a server, a mount that is not read-only.
 */
#include "core/opening.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "io/log.h"
#include "io/probe.h"

/* ---- opening without disturbing anybody, and undisturbed ---- */

/* Whether somebody uses it in a way that excludes ours, as probe_busy(). */
static int probe_rival(const struct opening *opening, const char *path, char text[static PROBE_TEXT_BYTES])
{
	return opening->read_only ? probe_written(path, text) : probe_busy(path, text);
}

/* The claim on a device keeps mounts away, so it is taken unless those who have one already only read. */
static unsigned open_flags(const struct opening *opening, const char *path)
{
	char text[PROBE_TEXT_BYTES];

	if (!opening->read_only)
		return DISK_OPEN_LOCK;
	if (probe_busy(path, text) == 1 && probe_written(path, text) == 0)
		return DISK_OPEN_LOCK | DISK_OPEN_READ_ONLY | DISK_OPEN_SHARED;
	return DISK_OPEN_LOCK | DISK_OPEN_READ_ONLY;
}

static int refuse_open(const struct opening *opening, const char *path, int error)
{
	struct complaint *complaint = opening->complaint;
	char text[PROBE_TEXT_BYTES];

	if (error == -EBUSY && probe_rival(opening, path, text) == 1)
		complaint_set(complaint, path, "is in use: %s", text);
	else if (error == -EBUSY)
		complaint_set(complaint, path, "is in use by another program");
	else if (error == -ENOTBLK)
		complaint_set(complaint, path, "is neither a block device nor a regular file");
	else
		complaint_set(complaint, path, "%s", strerror(-error));
	return error;
}

static int refuse_rival(const struct opening *opening, const char *path)
{
	char text[PROBE_TEXT_BYTES];

	if (probe_rival(opening, path, text) != 1)
		return 0;
	complaint_set(opening->complaint, path, "is in use: %s", text);
	return -EBUSY;
}

/* ---- the origin ---- */

static int open_origin(struct opening *opening, const char *path)
{
	struct volume *volume = opening->volume;
	struct disk_info info;
	int error;

	volume->origin_path = strdup(path);
	if (volume->origin_path == NULL)
		return -ENOMEM;
	error = disk_open(volume->host, path, open_flags(opening, path) | DISK_OPEN_FIXED, &volume->origin);
	if (error != 0)
		return refuse_open(opening, path, error);
	error = refuse_rival(opening, path);
	if (error != 0)
		return error;
	disk_get_info(volume->origin, &info);
	if (info.read_only && !opening->read_only) {
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
	volume->origin_fua = info.has_fua;
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

/*
 * Whether a store that cannot be loaded was wiped. One copy all zeroes is enough: the other may have been torn by a
 * power cut when its turn came.
 */
static bool is_wiped(const struct store *store)
{
	for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++)
		if (is_zero(store->buffer + (size_t)i * SUPERBLOCK_BYTES, SUPERBLOCK_BYTES))
			return true;
	return false;
}

static int open_store(struct opening *opening, const char *path)
{
	struct store *store;
	const char *why = NULL;
	int error = check_same_file(opening, path);

	if (error == 0 && opening->store_count == OPENING_STORES_MAX) {
		complaint_set(opening->complaint, path, "is one store too many: 512 is the most");
		error = -E2BIG;
	}
	if (error != 0)
		return error;
	error = store_open(opening->volume->host, path, open_flags(opening, path), &store);
	if (error != 0)
		return refuse_open(opening, path, error);
	opening->stores[opening->store_count++] = store;
	error = refuse_rival(opening, path);
	if (error != 0)
		return error;
	error = store_load_wait(store, &why);
	if (error == -EBADMSG && is_wiped(store))
		error = -ENODATA;
	if (error == -ENODATA && opening->options->skip_wiped && !opening->from_record && is_wiped(store)) {
		opening->store_count--;
		store_close(store);
		return 0;
	}
	if (error == 0 && opening->options->skip_empty && !opening->from_record && store->superblock.state == STATE_EMPTY) {
		opening->store_count--;
		store_close(store);
		return 0;
	}
	if (error != 0)
		complaint_set(opening->complaint, path, "%s", store_load_text(error, why));
	else if (!opening->read_only && (store->superblock.ro_compat & ~FEATURES_RO_COMPAT) != 0)
		complaint_set(opening->complaint, path, "was made by a newer rowsnap and can be read, but not written");
	else if (store->degraded)
		log_warning("store %s: one copy of its superblock is damaged, the other is used", path);
	return error == 0 && opening->complaint->why[0] != '\0' ? -EPROTONOSUPPORT : error;
}

static bool was_wiped(const struct opening *opening, const uuid128_t *uuid)
{
	for (size_t i = 0; i < opening->wiped_count; i++)
		if (uuid_equal(&opening->wiped[i], uuid))
			return true;
	return false;
}

static bool is_wanted_part(const struct opening *opening, const uuid128_t *main_uuid)
{
	for (size_t i = 0; i < opening->store_count; i++)
		if (uuid_equal(&opening->stores[i]->superblock.store_uuid, main_uuid))
			return true;
	return was_wiped(opening, main_uuid);
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
	/* Its parts may be wiped for that, so it must stay: what was read may be in a cache only. */
	if (error == -ENODATA && opening->wiped_count < CHAIN_STORES_MAX &&
	    (opening->read_only || disk_flush_wait(store->host, store->disk) == 0))
		opening->wiped[opening->wiped_count++] = recorded->uuid;
	store_close(store);
	return true;
}

/* The record's parts of stores that are there, or were wiped; what is not there is found missing when they are joined. */
static int open_recorded_parts(struct opening *opening)
{
	const struct record *record = opening->volume->record;
	int error = 0;

	for (size_t i = 0; i < record->part_count && error == 0; i++) {
		const struct record_part *part = &record->parts[i];
		const struct record_store *main = record_store_find(record, &part->main_uuid);
		struct record_store recorded = { .uuid = part->uuid };
		struct disk *disk;

		if (main == NULL || !is_wanted_part(opening, &part->main_uuid))
			continue;
		if (disk_open(opening->volume->host, part->path, DISK_OPEN_READ_ONLY, &disk) != 0)
			continue;
		disk_close(disk);
		(void)snprintf(recorded.path, sizeof(recorded.path), "%s", part->path);
		memcpy(recorded.name, main->name, sizeof(recorded.name));
		error = open_store(opening, part->path);
		if (is_another(opening, &recorded, error))
			error = 0;
		else if (error == 0 && opening->stores[opening->store_count - 1]->superblock.role != ROLE_PART)
			store_close(opening->stores[--opening->store_count]); /* it was not joined in the end */
	}
	return error;
}

/* With none of its stores here, only the record knows. A merge that has ended but for that is known by its stores. */
static int refuse_half_merged(const struct opening *opening)
{
	const struct record *record = opening->volume->record;
	const struct record_store *target;
	char uuid[UUID_TEXT_BYTES];

	if (record == NULL || uuid_is_nil(&record->merging_uuid))
		return 0;
	uuid_text(&record->volume_uuid, uuid);
	target = record_store_find(record, &record->merging_uuid);
	complaint_set(opening->complaint, opening->volume->origin_path,
		      "is being put back to snapshot %s, and that is unfinished: finish it with 'rowsnap merge' and the stores, %s among them (if they are lost for good, remove the record %s.json in %s)",
		      target == NULL ? "(unknown)" : target->name, target == NULL ? "the snapshot's" : target->path, uuid,
		      record->directory);
	return -EINPROGRESS;
}

/* The record's stores; those whose file is not there are left out, and the chain tells whether they can be. */
static int open_recorded(struct opening *opening)
{
	const struct record *record = opening->volume->record;
	size_t missing = 0, wiped = 0;
	int error;

	opening->from_record = true;
	for (size_t i = 0; i < record->store_count; i++) {
		const struct record_store *recorded = &record->stores[i];
		struct disk *disk;

		error = disk_open(opening->volume->host, recorded->path, DISK_OPEN_READ_ONLY, &disk);
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
	error = open_recorded_parts(opening);
	if (error != 0)
		return error;
	/* A drop of the only one that was cut short behind its wipe leaves a record of a wiped store. */
	if (missing == 0 || missing < record->store_count || wiped == record->store_count)
		return 0;
	if (!uuid_is_nil(&record->merging_uuid))
		return refuse_half_merged(opening);
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

int opening_find_record(struct opening *opening, const uuid128_t *volume_uuid)
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
	const struct superblock *superblock;
	const struct record *record;

	if (opening->store_count == 0) /* all that were named are wiped, and left out */
		return 0;
	superblock = &opening->stores[0]->superblock;
	if (uuid_is_nil(&superblock->volume_uuid) || opening_find_record(opening, &nil) != 0)
		return 0;
	record = opening->volume->record;
	if (record->store_count == 0 || uuid_equal(&record->volume_uuid, &superblock->volume_uuid))
		return 0;
	if (!uuid_is_nil(&record->merging_uuid))
		return refuse_half_merged(opening);
	if (opening->options->accept_origin) {
		opening->origin_changed = true;
		return 0;
	}
	complaint_set(opening->complaint, opening->stores[0]->path,
		      "belongs to another volume: the origin's last known newest store is %s (--accept-origin leaves that one out)",
		      record->stores[record->store_count - 1].path);
	return -EINVAL;
}

static int refuse_storeless(const struct opening *opening)
{
	complaint_set(opening->complaint, opening->volume->origin_path,
		      "no record in %s names its snapshots' stores: name them", opening->options->state_directory);
	return -ENOENT;
}

static int open_stores(struct opening *opening, const char *const *paths, size_t count)
{
	static const uuid128_t nil;
	int error = 0;

	if (count == 0) {
		error = opening_find_record(opening, &nil);
		if (error == -EUCLEAN && !opening->options->accept_origin) {
			complaint_set(opening->complaint, opening->volume->origin_path,
				      "a damaged record in %s may name its snapshots' stores: name them, or go on without with --accept-origin",
				      opening->options->state_directory);
			return error;
		}
		if (error == 0)
			error = open_recorded(opening);
		else
			error = opening->offline ? refuse_storeless(opening) : 0;
		return error;
	}
	if (count > OPENING_STORES_MAX) {
		complaint_set(opening->complaint, paths[OPENING_STORES_MAX], "is one store too many: 512 is the most");
		return -E2BIG;
	}
	for (size_t i = 0; i < count && error == 0; i++)
		error = open_store(opening, paths[i]);
	return error;
}

/* ---- parts ---- */

/* Where it was seen last, if the record knows. */
static void name_missing_part(struct opening *opening, const struct store *main, uint32_t index)
{
	const uuid128_t *uuid = &main->superblock.parts[index - 1].uuid;
	const struct record_part *part = NULL;
	char text[UUID_TEXT_BYTES];

	if (opening->volume->record != NULL)
		part = record_part_find(opening->volume->record, uuid);
	if (part == NULL && opening_find_record(opening, &main->superblock.volume_uuid) == 0)
		part = record_part_find(opening->volume->record, uuid);
	if (part == NULL)
		return;
	uuid_text(uuid, text);
	complaint_set(opening->complaint, main->path, "lies in %u stores and needs part %u, last seen at %s (%s)",
		      store_part_count(main), index, part->path, text);
}

/* Parts go to their stores; `stores` has the stores only then, and `loose` the parts that are none's. */
static int join_parts(struct opening *opening)
{
	struct store *main = NULL;
	uint32_t part = 0;
	size_t count = 0;
	char text[STORE_TEXT_BYTES];
	int error = stores_join(opening->stores, opening->store_count, &main, &part);

	for (size_t i = 0; i < opening->store_count; i++) {
		struct store *store = opening->stores[i];

		if (store != NULL && store->superblock.role == ROLE_PART)
			opening->loose[opening->loose_count++].part = store;
		else if (store != NULL)
			opening->stores[count++] = store;
	}
	opening->store_count = count;
	if (error != 0) {
		stores_join_text(error, main, part, text);
		complaint_set(opening->complaint, main->path, "%s", text);
		if (error == -ENOENT)
			name_missing_part(opening, main, part);
		return error;
	}
	if (count <= CHAIN_STORES_MAX)
		return count > 0 && !opening->from_record ? check_known_volume(opening) : 0;
	complaint_set(opening->complaint, opening->stores[CHAIN_STORES_MAX]->path,
		      "is one store too many: 256 is the most");
	return -E2BIG;
}

static bool is_store_given(const struct opening *opening, const uuid128_t *uuid)
{
	for (size_t i = 0; i < opening->store_count; i++)
		if (uuid_equal(&opening->stores[i]->superblock.store_uuid, uuid))
			return true;
	return false;
}

/*
 * Whether the store that a part belongs to is known to be gone: the chain is whole from its oldest to its newest, and that
 * store is not in it, nor among those older ones that are absent. That it is not where the record has it proves nothing: its
 * disk may have another name today.
 */
static bool is_store_gone(const struct opening *opening, const struct superblock *part)
{
	const struct chain_verdict *verdict = &opening->verdict;
	const struct superblock *oldest;

	if (verdict->count == 0)
		return false;
	oldest = opening->entries[0].superblock;
	return uuid_equal(&oldest->volume_uuid, &part->volume_uuid) &&
	       (uuid_is_nil(&verdict->absent_older) || part->sequence > oldest->sequence);
}

/* The record's part of a store that is not at its place, but not known to be gone: nothing needs it, and it stays as it is. */
static void leave_part_out(struct opening *opening, size_t at)
{
	const struct store *part = opening->loose[at].part;

	log_notice("store %s is left as it is: it is part %u of the store of snapshot %s, which is not at its place (if that was dropped: rowsnap drop --force %s)",
		   part->path, part->superblock.part_index, part->superblock.name, part->path);
	store_close(opening->loose[at].part);
	opening->loose_count--;
	memmove(&opening->loose[at], &opening->loose[at + 1],
		(opening->loose_count - at) * sizeof(opening->loose[0]));
}

static int judge_loose_parts(struct opening *opening)
{
	for (size_t i = opening->loose_count; i-- > 0;) {
		const struct store *part = opening->loose[i].part;
		char uuid[UUID_TEXT_BYTES];

		if (is_store_given(opening, &part->superblock.main_uuid))
			continue;
		opening->loose[i].left_over = is_store_gone(opening, &part->superblock);
		if (opening->loose[i].left_over)
			continue;
		if (opening->from_record && was_wiped(opening, &part->superblock.main_uuid)) {
			leave_part_out(opening, i);
			continue;
		}
		uuid_text(&part->superblock.main_uuid, uuid);
		complaint_set(opening->complaint, part->path,
			      "is part %u of the store of snapshot %s, %s, which was not given", part->superblock.part_index,
			      part->superblock.name, uuid);
		return -EINVAL;
	}
	return 0;
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

static int refuse_merging(const struct opening *opening)
{
	const char *name = opening->entries[opening->verdict.merge_target].superblock->name;

	complaint_set(opening->complaint, opening->volume->origin_path,
		      "is being put back to snapshot %s, and that is unfinished: finish it with 'rowsnap merge --snapshot=%s %s STORE...'",
		      name, name, opening->volume->origin_path);
	return -EINPROGRESS;
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
	if (opening->verdict.count == 0)
		error = refuse_half_merged(opening);
	if (error != 0 || opening->store_count == 0)
		return error;
	if (opening->verdict.merging && !opening->merging)
		return refuse_merging(opening);
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

size_t opening_active_index(const struct opening *opening)
{
	const struct chain_verdict *verdict = &opening->verdict;
	size_t newest = verdict->count - 1;

	if (verdict->fold_pending && opening->entries[verdict->fold_into].superblock->state == STATE_ACTIVE)
		return verdict->fold_into;
	return newest;
}

int opening_unappendable(struct opening *opening, struct store *store, bool active, int error)
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
	bool active = index == opening_active_index(opening);
	struct recovery recovery = { .writable = !opening->offline && (active || fold_into) };
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
		return opening_unappendable(opening, store, active, recovery.append_error);
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
	size_t active = opening_active_index(opening);
	struct store *store = opening->entries[active].context;
	const struct superblock *superblock = &store->superblock;
	bool same = true;

	if (opening->verdict.merging)
		return 0; /* what is there now is neither the old nor the new: see core/merge.c */
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
	if (!opening->read_only)
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
		(void)opening_find_record(opening, &opening->entries[0].superblock->volume_uuid);
	adopt_marks(opening);
	return check_fingerprint(opening);
}

/* ---- all of it ---- */

int opening_read(struct opening *opening, const char *origin_path, const char *const *store_paths, size_t store_count)
{
	int error = open_origin(opening, origin_path);

	if (error == 0)
		error = open_stores(opening, store_paths, store_count);
	if (error == 0)
		error = join_parts(opening);
	if (error == 0)
		error = order_chain(opening);
	if (error == 0)
		error = judge_loose_parts(opening);
	return error == 0 ? recover_chain(opening) : error;
}

bool opening_is_untidy(const struct opening *opening)
{
	const struct chain_verdict *verdict = &opening->verdict;

	if (verdict->count != opening->store_count || verdict->reopen_newest || verdict->fold_pending ||
	    opening->loose_count > 0)
		return true;
	for (size_t i = 0; i < verdict->count; i++) {
		const struct store *store = opening->entries[i].context;
		const struct superblock *superblock = &store->superblock;

		if (!superblock->clean)
			return true;
		for (uint32_t part = 0; part < store_part_count(store); part++)
			if (store_part(store, part)->degraded || store_part(store, part)->uneven)
				return true;
		if (superblock->state == STATE_MERGING && !verdict->merging)
			return true;
		if (i > 0 && !uuid_equal(&superblock->predecessor_uuid,
					 &opening->entries[i - 1].superblock->store_uuid))
			return true;
	}
	return false;
}

static void take_store(struct opening *opening, const struct store *store)
{
	for (size_t i = 0; i < opening->store_count; i++)
		if (opening->stores[i] == store)
			opening->stores[i] = NULL;
}

int opening_take_chain(struct opening *opening)
{
	struct volume *volume = opening->volume;

	volume->uuid = opening->entries[0].superblock->volume_uuid;
	volume->block_bytes = opening->entries[0].superblock->geometry.block_bytes;
	volume->absent_older = opening->verdict.absent_older;
	for (size_t i = 0; i < opening->verdict.count; i++) {
		struct snapshot *snapshot;
		int error = snapshot_create(volume, opening->entries[i].context, &snapshot);

		if (error != 0)
			return error;
		take_store(opening, snapshot->store);
		volume->chain[volume->chain_count++] = snapshot;
		volume->sequence_last = snapshot->store->superblock.sequence;
	}
	return 0;
}

void opening_add_exports(struct volume *volume)
{
	volume->origin_export = (struct export){
		.ops = &origin_export_ops,
		.name = "origin",
		.size_bytes = volume->origin_bytes,
		.block_bytes = volume->block_bytes != 0 ? volume->block_bytes : BLOCK_BYTES_MIN,
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

void opening_end(struct opening *opening)
{
	for (size_t i = 0; i < opening->store_count; i++)
		store_close(opening->stores[i]);
	for (size_t i = 0; i < opening->loose_count; i++)
		store_close(opening->loose[i].part);
}
