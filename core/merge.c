/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Putting the origin back to a snapshot: the target, Sk of the chain S1 ... Sk ... Sn. In this order:
 *
 *   tidy      what a start would mend or recover is mended by one, which is stopped at once: all logs end cleanly then
 *   look      every block that one of Sk ... Sn has must be readable; else the merge does not begin
 *   verify    all of it is read and its checksums verified: a merge that began must be able to end
 *   mark      the record, then Sk, Sk+1, ... Sn, each in both superblock copies, as merging with the target Sk
 *   write     every block that one of Sk ... Sn has goes to the origin, as a read of Sk gives it
 *   flush     the origin
 *   finish    Sk: active, the newest, clean at its log's end, with the origin's new fingerprint     <== commit point
 *   wipe      Sn, ... Sk+1
 *   record    forgets them and the merge
 *
 * Why it is right, block by block. In none of Sk ... Sn: the origin has had Sk's content all along (rule 2), and is
 * not written. In some: the first of them that has it says what Sk holds, and the origin gets that. So the origin
 * equals Sk afterwards, and Sk without the newer ones reads as before: its own exceptions, else the origin. An older
 * snapshot reads what Sk reads wherever none before Sk has the block, so it needs no change; its store may even be
 * absent. Sk keeps its exceptions: they are still true of it, and those blocks count as preserved.
 *
 * A crash. Until Sn is marked nothing of the origin is written: the marks are taken back at the next start (Sk's
 * last), or set again. From there on, every chain that could be served has Sn in it and is refused (chain.c, rule 6).
 * What the writes are made from lies in Sk ... Sn, which are not written meanwhile but for the same marks, so the
 * merge is resumed by doing it again from the start, which also makes up for a flush that failed. The commit point is
 * one superblock change: Sk says that it is the newest, so what follows it is left over, and wiped at the next start
 * if it was not yet. The older stores are not marked: a chain without the newer ones is never served.
 */
#include "core/merge.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/ahead.h"

#define ZERO_PIECE_BYTES (UINT64_C(64) << 20)

struct merge;

/* A piece on its way to the origin. */
struct piece_write {
	struct merge *merge;
	struct ahead_piece *piece;
	struct disk_io io;
};

struct merge {
	struct disk_host *host;
	const char *origin_path;
	const char *const *store_paths;
	size_t store_count;
	const struct merge_options *options;
	struct merge_report *report;
	struct complaint *complaint;

	struct offline *offline;
	struct volume *volume; /* the offline's */
	size_t target, newest; /* of volume->chain */
	bool origin_changed;   /* while it was half merged, and that was accepted */

	/* The stage under way. */
	struct ahead ahead;
	block_t next;
	uint64_t done_bytes;
	unsigned writing; /* pieces */
	int error;
	char fault[OFFLINE_FAULT_TEXT_BYTES]; /* with an error but -EINTR: what is at fault */
	struct piece_write writes[AHEAD_PIECES];
};

static struct store *store_at(const struct merge *merge, size_t index)
{
	return merge->volume->chain[index]->store;
}

static const char *target_name(const struct merge *merge)
{
	return store_at(merge, merge->target)->superblock.name;
}

/* ---- tidying ---- */

struct brief_service {
	struct operation stop;
	bool stopped;
	int error;
};

static void brief_service_ended(struct operation *operation, int error)
{
	struct brief_service *service = operation->context;

	service->stopped = true;
	service->error = error;
}

/* Whether the volume goes on with its next turn; else it waits for a disk. */
static bool is_turn_due(const struct volume *volume)
{
	const struct operation *operation = volume->operation;

	return operation == NULL || (operation->is_ready != NULL && operation->is_ready(volume, operation));
}

/* A start and a clean stop: neither the chain nor the origin is given to anybody. */
static int tidy(const struct merge *merge)
{
	const struct volume_options options = {
		.name = "offline",
		.on_full = ON_FULL_FAIL,
		.skip_wiped = true,
		.state_directory = merge->options->state_directory,
	};
	struct brief_service service = { .stopped = false };
	struct export_table exports;
	struct volume *volume;
	int error;

	export_table_init(&exports);
	error = volume_open(merge->host, &exports, merge->origin_path, merge->store_paths, merge->store_count, &options,
			    &volume, merge->complaint);
	if (error != 0)
		return error;
	service.stop = (struct operation){ .done = brief_service_ended, .context = &service };
	volume_stop(volume, &service.stop);
	while (!service.stopped) {
		volume_turn(volume);
		if (!service.stopped && !is_turn_due(volume))
			disk_host_wait(merge->host);
	}
	volume_close(volume);
	if (service.error != 0)
		*merge->complaint = service.stop.complaint;
	return service.error;
}

/* ---- looking ---- */

static int open_chain(struct merge *merge, bool tidied)
{
	const struct offline_options options = {
		.state_directory = merge->options->state_directory,
		.accept_origin = merge->options->accept_origin,
		.tidied = tidied,
		.merging = true,
		.writable = !merge->options->dry_run,
	};
	int error = offline_open(merge->host, merge->origin_path, merge->store_paths, merge->store_count, &options,
				 &merge->offline, merge->complaint);

	if (error == 0) {
		merge->volume = merge->offline->volume;
		merge->newest = merge->volume->chain_count - 1;
	}
	return error;
}

static int refuse_dropping(const struct merge *merge)
{
	for (size_t i = 0; i < merge->volume->chain_count; i++)
		if (merge->volume->chain[i]->dropping) {
			complaint_set(merge->complaint, merge->volume->chain[i]->store->superblock.name,
				      "is being dropped: serve the volume until that is done");
			return -EBUSY;
		}
	return 0;
}

static int open_tidy_chain(struct merge *merge)
{
	int error = open_chain(merge, false);

	if (error == 0)
		error = refuse_dropping(merge);
	if (error != 0 || !merge->offline->untidy || merge->offline->merge_begun || merge->options->dry_run)
		return error;
	offline_close(merge->offline);
	merge->offline = NULL;
	error = tidy(merge);
	if (error == 0)
		error = open_chain(merge, true);
	return error;
}

static int find_target(struct merge *merge)
{
	const struct offline *offline = merge->offline;
	const char *name = merge->options->snapshot;
	int error;

	if (!offline->merge_begun) {
		error = offline_find(offline, name, &merge->target, merge->complaint);
		if (error == 0 && merge->target == merge->volume->chain_count) {
			complaint_set(merge->complaint, name, "is not a snapshot");
			error = -EINVAL;
		}
		return error;
	}
	merge->target = offline->merge_target;
	merge->report->resumed = true;
	if (strcmp(target_name(merge), name) == 0)
		return 0;
	complaint_set(merge->complaint, merge->origin_path,
		      "is being put back to snapshot %s, and that is unfinished: finish that one first",
		      target_name(merge));
	return -EINPROGRESS;
}

static uint64_t run_bytes(const struct merge *merge, block_t first, uint64_t blocks)
{
	uint64_t offset = first * merge->volume->block_bytes, bytes = blocks * merge->volume->block_bytes;
	uint64_t rest = merge->volume->origin_bytes - offset;

	return bytes < rest ? bytes : rest;
}

/* Counts what is to be written. A block that is known to be unreadable refuses. */
static int survey(const struct merge *merge)
{
	block_t count = volume_block_count(merge->volume), block = 0;

	while (block < count) {
		struct placement at = chain_find(merge->volume, merge->target, block, count - block);

		switch (at.place) {
		case PLACE_SLOT:
		case PLACE_ZERO:
			merge->report->bytes += run_bytes(merge, block, at.count);
			break;
		case PLACE_ORIGIN:
			break;
		case PLACE_LOST:
			complaint_set(merge->complaint, target_name(merge),
				      "block %" PRIu64 " was unreadable when it was to be preserved, so the origin cannot be put back",
				      block);
			return -EIO;
		case PLACE_BROKEN:
			complaint_set(merge->complaint, target_name(merge),
				      "the chain is broken at it or behind it, and what was not preserved then is not known (block %" PRIu64
				      "), so the origin cannot be put back",
				      block);
			return -EIO;
		}
		block += at.count;
	}
	for (size_t i = merge->target + 1; i <= merge->newest; i++)
		memcpy(merge->report->gone[merge->report->gone_count++], store_at(merge, i)->superblock.name,
		       sizeof(merge->report->gone[0]));
	return 0;
}

static bool is_gone(const struct merge *merge, const uuid128_t *uuid)
{
	for (size_t i = merge->target + 1; i <= merge->newest; i++)
		if (uuid_equal(&store_at(merge, i)->superblock.store_uuid, uuid))
			return true;
	return false;
}

/* What the newer stores testify of others that stay passes to the target, as far as there is room: for one. */
static void inherit_witnesses(const struct merge *merge, struct superblock *target)
{
	if (is_gone(merge, &target->witness_uuid)) {
		memset(&target->witness_uuid, 0, sizeof(target->witness_uuid));
		target->witness = (struct broken_mark){ BROKEN_NOT, 0 };
	}
	for (size_t i = merge->target + 1; i <= merge->newest; i++)
		if (!is_gone(merge, &store_at(merge, i)->superblock.witness_uuid))
			superblock_inherit_witness(target, &store_at(merge, i)->superblock);
}

static int check_witnesses(const struct merge *merge)
{
	struct superblock target = store_at(merge, merge->target)->superblock;

	inherit_witnesses(merge, &target);
	for (size_t i = merge->target + 1; i <= merge->newest; i++) {
		const struct superblock *one = &store_at(merge, i)->superblock;

		if (one->witness.reason == BROKEN_NOT || is_gone(merge, &one->witness_uuid) ||
		    uuid_equal(&one->witness_uuid, &target.store_uuid) ||
		    uuid_equal(&one->witness_uuid, &target.witness_uuid))
			continue;
		complaint_set(merge->complaint, store_at(merge, i)->path,
			      "says that an older snapshot is broken, and no other store has room to say so");
		return -EINVAL;
	}
	return 0;
}

/* ---- the origin, while it is half merged ---- */

/* Whether a fingerprinted sector is as the merge left it: as before, or, where it writes, as the target has it. */
static int check_sector(const struct merge *merge, unsigned sector, uint8_t *buffer, bool *good)
{
	uint64_t offset = fingerprint_offset(sector), now = merge->volume->fingerprint.sector[sector];
	struct placement at;
	int error;

	*good = offset >= merge->volume->origin_bytes ||
		now == store_at(merge, merge->newest)->superblock.fingerprint.sector[sector];
	if (*good)
		return 0;
	at = chain_find(merge->volume, merge->target, offset / merge->volume->block_bytes, 1);
	if (at.place == PLACE_ORIGIN)
		return 0;
	error = offline_read_wait(merge->offline, merge->target, buffer, offset, FINGERPRINT_SECTOR_BYTES);
	if (error == 0)
		*good = now == fingerprint_checksum(buffer);
	return error;
}

static int check_half_merged(struct merge *merge)
{
	uint8_t buffer[ARENA_PAGE_BYTES] __attribute__((aligned(ARENA_PAGE_BYTES)));

	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++) {
		bool good;
		int error = check_sector(merge, i, buffer, &good);

		if (error != 0) {
			complaint_set(merge->complaint, target_name(merge), "cannot be read: %s", strerror(-error));
			return error;
		}
		merge->origin_changed = merge->origin_changed || !good;
	}
	if (!merge->origin_changed || merge->options->accept_origin)
		return 0;
	complaint_set(merge->complaint, merge->origin_path,
		      "was changed while it was half put back (mounted, checked or written directly?): --accept-origin goes on, with the snapshot marked broken");
	return -ESTALE;
}

/* ---- from the stores to the origin ---- */

static bool is_in_stores(const struct placement *at)
{
	return at->place == PLACE_SLOT || at->place == PLACE_ZERO;
}

/* Where the next run of blocks that the stores have begins, from merge->next on: false when there is none. */
static bool find_run(struct merge *merge, bool *zero, uint64_t *count)
{
	block_t end = volume_block_count(merge->volume);

	while (merge->next < end) {
		struct placement at = chain_find(merge->volume, merge->target, merge->next, end - merge->next);

		*zero = at.place == PLACE_ZERO;
		*count = at.count;
		if (is_in_stores(&at))
			return true;
		merge->next += at.count;
	}
	return false;
}

/* How many blocks from merge->next on (at most `most`) the stores have, zeroes among them or not. */
static uint64_t measure_run(const struct merge *merge, uint64_t most)
{
	block_t end = volume_block_count(merge->volume);
	uint64_t count = 0;

	while (count < most && merge->next + count < end) {
		struct placement at = chain_find(merge->volume, merge->target, merge->next + count, most - count);

		if (!is_in_stores(&at))
			break;
		count += at.count;
	}
	return count;
}

/* Starts reads until no piece is free, or all is planned. Long zeroes are pieces by themselves, and not read. */
static void plan_ahead(struct merge *merge)
{
	uint64_t block_bytes = merge->volume->block_bytes, most = AHEAD_BYTES / block_bytes;
	uint64_t zero_most = ZERO_PIECE_BYTES / block_bytes, count;
	bool zero;

	while (find_run(merge, &zero, &count)) {
		zero = zero && count >= most;
		if (!zero)
			count = measure_run(merge, most - merge->next % most);
		else if (count > zero_most)
			count = zero_most;
		if (!ahead_start(&merge->ahead, merge->next * block_bytes, run_bytes(merge, merge->next, count), zero))
			return;
		merge->next += count;
	}
}

static void piece_end(struct merge *merge, struct ahead_piece *piece)
{
	merge->done_bytes += piece->length;
	ahead_release(&merge->ahead, piece);
}

static void piece_written(struct disk_io *io, int error)
{
	struct piece_write *write = io->context;
	struct merge *merge = write->merge;

	if (error != 0 && merge->error == 0) {
		merge->error = error;
		(void)snprintf(merge->fault, sizeof(merge->fault), "cannot be written at byte %" PRIu64 ": %s",
			       write->piece->offset, strerror(-error));
	}
	merge->writing--;
	piece_end(merge, write->piece);
}

static void piece_write(struct merge *merge, struct ahead_piece *piece)
{
	struct piece_write *write = &merge->writes[piece->index];

	write->merge = merge;
	write->piece = piece;
	write->io = (struct disk_io){
		.disk = merge->volume->origin,
		.op = piece->hole ? DISK_ZERO : DISK_WRITE,
		.offset = piece->offset,
		.length = piece->length,
		.single = { .iov_base = piece->buffer, .iov_len = piece->hole ? 0 : (size_t)piece->length },
		.done = piece_written,
		.context = write,
	};
	merge->writing++;
	disk_submit(&write->io);
}

static int fault_found(const struct offline_fault *fault, void *context)
{
	struct merge *merge = context;

	if (merge->error == 0)
		offline_fault_text(fault, merge->fault);
	return -EIO;
}

static void deliver(struct merge *merge, enum merge_stage stage, struct ahead_piece *piece)
{
	int error = 0;

	if (piece->error != 0 && merge->error == 0)
		error = offline_salvage(merge->offline, merge->target, piece->buffer, piece->offset, piece->length,
					fault_found, merge);
	if (merge->error == 0) /* a write may have failed meanwhile */
		merge->error = error;
	if (merge->error == 0 && stage == MERGE_WRITING)
		piece_write(merge, piece);
	else
		piece_end(merge, piece);
}

/*
 * Reads all that is to be written, and writes it if that is the stage. 0, or the first error with merge->fault, once
 * nothing is under way any more. -EINTR: cancelled.
 */
static int run_stage(struct merge *merge, enum merge_stage stage)
{
	const struct merge_options *options = merge->options;
	struct ahead_piece *piece;
	bool all = false;

	merge->next = 0;
	merge->done_bytes = 0;
	merge->error = ahead_init(&merge->ahead, merge->offline, merge->target);
	(void)snprintf(merge->fault, sizeof(merge->fault), "%s", strerror(-merge->error));
	while (merge->error == 0 && !all) {
		options->progress(stage, merge->done_bytes, merge->report->bytes, options->context);
		if (options->is_cancelled(options->context)) {
			merge->error = -EINTR;
			break;
		}
		plan_ahead(merge);
		piece = ahead_take(&merge->ahead);
		if (piece != NULL)
			deliver(merge, stage, piece);
		else if (merge->writing > 0)
			offline_wait(merge->offline);
		else
			all = merge->next == volume_block_count(merge->volume);
	}
	while (merge->writing > 0)
		offline_wait(merge->offline);
	ahead_fini(&merge->ahead);
	return merge->error;
}

static int verify(struct merge *merge)
{
	int error = run_stage(merge, MERGE_VERIFYING);

	if (error == -EINTR)
		complaint_set(merge->complaint, merge->origin_path, "interrupted: nothing was changed");
	else if (error != 0)
		complaint_set(merge->complaint, target_name(merge), "cannot be read whole, so nothing was changed: %s",
			      merge->fault);
	return error;
}

/* ---- marking ---- */

static int remember_stores(const struct volume *volume, struct record *record)
{
	int error = 0;

	for (size_t i = 0; i < volume->chain_count && error == 0; i++)
		error = record_add_store(record, volume->chain[i]->store);
	return error;
}

/* The record knows the merge first, and forgets it last: where stores are at hand, they decide. */
static int mark_record(const struct merge *merge)
{
	struct volume *volume = merge->volume;
	struct record *record = volume->record;
	int error = 0;

	if (record == NULL)
		error = record_create(merge->options->state_directory, volume->origin_path, &volume->uuid, &record);
	if (error != 0)
		return error;
	volume->record = record;
	error = record_set_origin(record, volume->origin_path);
	if (error == 0)
		error = remember_stores(volume, record);
	if (error != 0)
		return error;
	record->merging_uuid = store_at(merge, merge->target)->superblock.store_uuid;
	error = record_save(record);
	if (error != 0)
		complaint_set(merge->complaint, merge->options->state_directory,
			      "the volume's record cannot be written: %s", strerror(-error));
	return error;
}

static void unmark_record(const struct merge *merge)
{
	struct record *record = merge->volume->record;

	memset(&record->merging_uuid, 0, sizeof(record->merging_uuid));
	record_save_or_warn(merge->volume);
}

static void apply_mark(struct superblock *superblock, void *context)
{
	superblock->state = STATE_MERGING;
	superblock->merge_target_uuid = *(const uuid128_t *)context;
}

static void apply_unmark(struct superblock *superblock, void *context)
{
	superblock->state = *(const enum store_state *)context;
	memset(&superblock->merge_target_uuid, 0, sizeof(superblock->merge_target_uuid));
}

/* Of the stores from the target to `last`, marked or not; the target's goes last. False: it may have begun. */
static bool take_marks_back(const struct merge *merge, size_t last)
{
	for (size_t i = last + 1; i-- > merge->target;) {
		enum store_state before = i == merge->newest ? STATE_ACTIVE : STATE_SEALED;

		if (store_update_wait(store_at(merge, i), apply_unmark, &before) == 0)
			continue;
		if (i == merge->newest)
			return false;
		break; /* the next start takes them back */
	}
	unmark_record(merge);
	return true;
}

/* Both copies must carry the mark: with one only, a fault of it would let the other say that nothing has begun. */
static int mark(const struct merge *merge)
{
	uuid128_t target = store_at(merge, merge->target)->superblock.store_uuid;
	int error = mark_record(merge);
	bool begun;

	for (size_t i = merge->target; i <= merge->newest && error == 0; i++) {
		struct store *store = store_at(merge, i);

		error = store_update_wait(store, apply_mark, &target);
		if (error == 0 && store->degraded)
			error = -EIO;
		if (error == 0)
			continue;
		begun = merge->offline->merge_begun || !take_marks_back(merge, i);
		complaint_set(merge->complaint, store->path,
			      begun ? "cannot be written: %s (the merge is unfinished: run it again)" :
				      "cannot be written: %s (nothing was changed)",
			      strerror(-error));
	}
	return error;
}

/* ---- writing and finishing ---- */

static int write_origin(struct merge *merge)
{
	int error = run_stage(merge, MERGE_WRITING);

	if (error != 0)
		complaint_set(merge->complaint, merge->origin_path,
			      "%s: it is half put back to snapshot %s, and is not served until the same command has finished that",
			      error == -EINTR ? "interrupted" : merge->fault, target_name(merge));
	return error;
}

static void apply_finish(struct superblock *superblock, void *context)
{
	const struct merge *merge = context;
	const struct store *target = store_at(merge, merge->target);

	superblock->state = STATE_ACTIVE;
	memset(&superblock->successor_uuid, 0, sizeof(superblock->successor_uuid));
	memset(&superblock->merge_target_uuid, 0, sizeof(superblock->merge_target_uuid));
	superblock->sealed_ns = 0;
	superblock->clean = true;
	superblock->log_slots = target->end.index;
	superblock->durable_slots = target->end.index;
	superblock->fingerprint = merge->volume->fingerprint;
	inherit_witnesses(merge, superblock);
	if (merge->origin_changed && superblock->broken.reason == BROKEN_NOT)
		superblock->broken = (struct broken_mark){ BROKEN_ORIGIN_CHANGED, disk_host_wall_ns(merge->host) };
}

static int finish(struct merge *merge)
{
	struct store *target = store_at(merge, merge->target);
	const char *what = merge->origin_path;
	int error = disk_flush_wait(merge->host, merge->volume->origin);

	if (error == 0)
		error = fingerprint_read(merge->volume);
	if (error == 0) {
		what = target->path;
		error = store_update_wait(target, apply_finish, merge);
	}
	if (error != 0)
		complaint_set(merge->complaint, what,
			      what == target->path ? "cannot be written: %s: the merge is unfinished, run the same command again" :
						     "cannot be flushed and read: %s: the merge is unfinished, run the same command again",
			      strerror(-error));
	return error;
}

static int wipe_newer(const struct merge *merge)
{
	struct record *record = merge->volume->record;

	for (size_t i = merge->newest; i > merge->target; i--) {
		struct store *store = store_at(merge, i);
		int error = store_wipe_wait(store);

		if (error == 0)
			error = store->part_error;
		if (error != 0) {
			complaint_set(merge->complaint, store->path,
				      "cannot be wiped: %s (the origin is put back; the next start with this store wipes it)",
				      strerror(-error));
			return error;
		}
		record_remove(record, &store->superblock.store_uuid);
	}
	return 0;
}

/* ---- all of it ---- */

static int prepare(struct merge *merge)
{
	int error = open_tidy_chain(merge);

	if (error == 0)
		error = find_target(merge);
	if (error == 0)
		error = survey(merge);
	if (error == 0)
		error = check_witnesses(merge);
	if (error == 0 && merge->offline->merge_begun)
		error = check_half_merged(merge);
	else if (error == 0 && merge->offline->untidy && !merge->options->dry_run) {
		complaint_set(merge->complaint, merge->origin_path, "its stores cannot be put in order: serve it once");
		error = -EUCLEAN;
	}
	return error;
}

static int merge_all(struct merge *merge)
{
	int error = prepare(merge);

	/* One that has begun needs no trial: what cannot be read will be told, and what can need not wait. */
	if (error == 0 && (!merge->offline->merge_begun || merge->options->dry_run))
		error = verify(merge);
	if (error != 0 || merge->options->dry_run)
		return error;
	error = mark(merge);
	if (error == 0)
		error = write_origin(merge);
	if (error == 0)
		error = finish(merge);
	if (error != 0)
		return error;
	error = wipe_newer(merge);
	unmark_record(merge);
	return error;
}

int merge_run(struct disk_host *host, const char *origin_path, const char *const *store_paths, size_t store_count,
	      const struct merge_options *options, struct merge_report *report, struct complaint *complaint)
{
	struct merge *merge = calloc(1, sizeof(*merge));
	int error = -ENOMEM;

	memset(report, 0, sizeof(*report));
	memset(complaint, 0, sizeof(*complaint));
	if (merge != NULL) {
		merge->host = host;
		merge->origin_path = origin_path;
		merge->store_paths = store_paths;
		merge->store_count = store_count;
		merge->options = options;
		merge->report = report;
		merge->complaint = complaint;
		error = merge_all(merge);
		offline_close(merge->offline);
	}
	if (error != 0 && complaint->why[0] == '\0')
		complaint_set(complaint, origin_path, "%s", strerror(-error));
	free(merge);
	return error;
}
